"""LookupViT against vit-pytorch's LookViT: compressed tokens between pixels, heads narrower than the model.

The reference is a module `official.look_vit` around `vit_pytorch.look_vit` of vit-pytorch 1.26.11. `create_model` takes
its defaults for what is not given, without dropout; the positions keep the map's dtype, which there become
float32; the parameter that is not used is left out; norms tell their epsilon; `forward_intermediates` collects what
the blocks make of the image's tokens.
"""

from golden import Case

CASES = {
    "lookupvit": Case(
        "lookupvit_patch16_256",
        dict(img_size=24, patch_size=4, compressed_size=2, embed_dim=16, depth=2, num_heads=2, num_classes=7)
        | dict(mlp_ratio=3.0, lookup_mlp_ratio=2.0, kernel_size=3),
        "official.look_vit:LookViT",
        dict(image_size=24, highres_patch_size=4, patch_size=12, dim=16, depth=2, heads=2, dim_head=8, num_classes=7)
        | dict(cross_attn_heads=2, cross_attn_dim_head=8, mlp_factor=3, highres_mlp_factor=2, patch_conv_kernel_size=3),
        size=(24, 24),
        init=dict(depth=1),
        drop_path=(0.3,),
        names="vit_pytorch",
    ),
}
