"""Every family, and every token mixer, as small as it can be: for tests that compile each of them over a mesh.

Every attention has heads that four devices can share; no dimension of a parameter is a multiple of 11.
"""

import re

import jax
import numpy as np

import golden
from vision_jax.functional import split
from vision_jax.models import halonet
from vision_jax.models.inverted_residuals import Blocks
from vision_jax.names import dotted
from vision_jax.registry import create_model

TWO = dict(img_size=32, depths=(1, 1), embed_dims=(32, 64), num_classes=8)
PVT = dict(TWO, num_heads=(4, 8), sr_ratios=(2, 1), mlp_ratios=(2, 2))
MIXERS = dict(TWO, res_scale_init=(None, 1.0))
VIT = dict(img_size=8, patch_size=4, embed_dim=32, depth=1, num_heads=4, num_classes=8)
SWIN = dict(img_size=(20, 36), window_size=4, embed_dim=32, depths=(2,), num_heads=(4,), num_classes=8)
MOBILEVIT = dict(TWO, embed_dims=(16, 32), stem_dim=8, transformer_depths=(0, 1), transformer_dims=(0, 32))
MAXVIT = dict(img_size=32, depths=(1,), embed_dims=(32,), stem_dims=(8, 8), head_dim=8, num_classes=8)

ATTENTION = {
    "vit": ("vit_tiny_patch16_224", VIT),
    "vit, pooled by attention": ("vit_tiny_patch16_224", dict(VIT, class_token=False, global_pool="map", qk_norm=True)),
    "vit, wide": ("vit_small_patch16_18x2_224", dict(VIT, num_heads=8, differential=True)),
    "swin": ("swin_tiny_patch4_window7_224", SWIN),
    "swin, scanned": ("swin_tiny_patch4_window7_224", dict(SWIN, depths=(3,), scan_blocks=True)),
    "swin_v2": ("swinv2_tiny_window8_256", SWIN),
    "swin_v2_cr": ("swinv2_cr_tiny_224", dict(SWIN, depths=(2,))),
    "maxvit": ("maxvit_tiny_tf_224", dict(MAXVIT, window_size=4, head_hidden=None)),
    "maxvit, parallel": ("maxvit_tiny_pm_256", dict(MAXVIT, window_size=4)),
    "coatnet": (
        "coatnet_0_224",
        dict(MAXVIT, depths=(1, 1), conv_depths=(1, 0), embed_dims=(16, 32), head_hidden=None),
    ),
    "pvt": ("pvt_tiny", PVT),
    "pvt_v2": ("pvt_v2_b0", PVT),
    "pvt_v2, linear": ("pvt_v2_b2_li", PVT),
    "cvt": ("cvt_13", dict(img_size=32, depths=(1, 1, 1), embed_dims=(16, 32, 32), num_heads=(4, 4, 4), num_classes=8)),
    "crossvit": (
        "crossvit_tiny_240",
        dict(
            img_size=48,
            img_scale=(1.0, 2 / 3),
            embed_dim=(16, 32),
            num_encoders=1,
            depths=(1, 1),
            num_heads=(4, 4),
            num_classes=8,
        ),
    ),
    "convit": (
        "convit_tiny",
        dict(img_size=32, patch_size=8, embed_dim=32, num_heads=4, depth=2, local_depth=1, num_classes=8),
    ),
    "tnt": (
        "tnt_s_patch16_224",
        dict(
            img_size=32,
            patch_size=16,
            embed_dim=32,
            inner_dim=16,
            depth=1,
            num_heads=4,
            inner_num_heads=4,
            num_classes=8,
        ),
    ),
    "dinat": (
        "dinat_mini",
        dict(
            img_size=32, embed_dim=16, depths=(2, 1), num_heads=(4, 4), dilations=(2, 1), kernel_size=3, num_classes=8
        ),
    ),
    "ravlt": (
        "ravlt_tiny",
        dict(TWO, embed_dims=(16, 32), num_heads=(4, 4), mixers=("linear", "softmax"), projection=16)
        | dict(layer_scale_init=(1.0, 1.0), mlp_ratio=2.0),
    ),
    "l2vit": ("l2vit_tiny", dict(TWO, depths=(2, 2), num_heads=(4, 4), window_size=4)),
    "beit": ("beit_base_patch16_224", VIT),
    "eva": ("eva02_base_patch16_clip_224", VIT),
    "sapiens2": ("vit_base_patch16_sapiens2", dict(VIT, depth=3, num_heads=8, num_kv_heads=4, full_blocks=1)),
    "vit_relpos": ("vit_relpos_medium_patch16_cls_224", VIT),
    "lookupvit": (
        "lookupvit_patch16_256",
        dict(
            img_size=16,
            patch_size=4,
            compressed_size=2,
            embed_dim=32,
            depth=1,
            num_heads=4,
            kernel_size=3,
            num_classes=8,
        ),
    ),
    "vitamin": ("vitamin_small_224", dict(VIT, img_size=16, patch_size=16, stem_dims=(16, 16), stem_depths=(1, 1))),
    "vir": ("vir_small_patch16_224", VIT),
    "volo": ("volo_d1_224", dict(TWO, num_heads=(4, 8), class_depth=1, stem_dim=8)),
    "efficientformer": ("efficientformer_l1", dict(TWO, num_heads=4, key_dim=8, value_ratio=2, mlp_ratio=2.0)),
    "tiny_vit": ("tiny_vit_5m_224", dict(TWO, num_heads=(4, 4), window_sizes=(4, 4))),
    "fastvit": (
        "fastvit_sa12",
        dict(TWO, embed_dims=(32, 128), attend=(False, True), squeeze=(False, False), mlp_ratio=2.0),
    ),
    "nextvit": (
        "nextvit_small",
        dict(
            img_size=32,
            stem_dims=(8, 8, 8, 32),
            depths=(1, 1),
            embed_dims=(32, 32),
            mixed_dims=(0, 128),
            mixed_every=(0, 1),
            sr_ratios=(1, 2),
            head_dim=8,
            num_classes=8,
        ),
    ),
    "davit": (
        "davit_tiny",
        dict(img_size=24, depths=(1,), embed_dims=(32,), num_heads=(4,), window_size=3, num_classes=8),
    ),
    "gcvit": (
        "gcvit_xxtiny",
        dict(img_size=16, depths=(2,), embed_dim=32, num_heads=(4,), window_ratios=(8,), num_classes=8),
    ),
    "twins": (
        "twins_svt_small",
        dict(PVT, depths=(2,), embed_dims=(32,), num_heads=(4,), sr_ratios=(2,), mlp_ratios=(2,), window_size=4),
    ),
    "cait": ("cait_xxs24_224", dict(VIT, class_depth=1)),
    "xcit": (
        "xcit_tiny_12_p8_224",
        dict(img_size=16, patch_size=8, embed_dim=32, depth=1, class_depth=1, num_heads=4, num_classes=8),
    ),
    "pit": (
        "pit_ti_distilled_224",
        dict(img_size=16, patch_size=8, patch_stride=4, head_dim=8, depths=(1, 1), num_heads=(4, 4), num_classes=8),
    ),
    "visformer": (
        "visformer_tiny",
        dict(img_size=32, stem_dim=8, depths=(1, 1), embed_dims=(16, 32), num_heads=(0, 4), groups=4, num_classes=8),
    ),
    "nest": ("nest_tiny_jx", dict(TWO, img_size=16, embed_dims=(16, 32), num_heads=(4, 4), mlp_ratio=2.0)),
    "hiera": (
        "hiera_tiny_224",
        dict(img_size=32, embed_dim=32, num_heads=4, depths=(1, 1), local=(True, False), mlp_ratio=2.0, num_classes=8),
    ),
    "mobilevit": ("mobilevit_xxs", MOBILEVIT),
    "sam": (
        "samvit_base_patch16",
        dict(VIT, img_size=(12, 16), depth=2, global_every=2, window_size=2, neck_chans=8),
    ),
    "caformer": ("caformer_s18", dict(MIXERS, embed_dims=(32, 128), mixers=("conv", "attention"))),
}
SEPARABLE, MBCONV = (Blocks("separable", 1, 3, 1, 1, 16, 0.25),), (Blocks("mbconv", 1, 3, 2, 2, 16, 0.5),)
LAST_ACT = (SEPARABLE[0]._replace(skip=False, last_act=True),)
CONDITIONAL = (MBCONV[0]._replace(num_experts=4),)
FUSED = (Blocks("fused", 1, 3, 1, 2, 16, 0.25),)
UNIVERSAL = (
    Blocks("uib", 1, 3, 2, 2, 16, start=3),
    Blocks("mqa", 1, 3, 1, 1, 16, num_heads=4, head_dim=8, kv_stride=2),
)
MOBILE = dict(img_size=32, stem_dim=16, head_dim=32, num_classes=8)
HALONET = (
    halonet.Blocks(16, 1, (0,), halonet.Mixer("halo", 4, window_size=4, halo=2), 1, 1.0),
    halonet.Blocks(32, 1, (0,), halonet.Mixer("lambda", 4, 8, radius=3), 2, 1.0),
    halonet.Blocks(32, 1, (0,), halonet.Mixer("global", 4), 2, 1.0),
)
PATCHES = dict(img_size=32, patch_size=8, embed_dim=32, depth=1, num_classes=8)
OTHERS = {
    "resnet": ("resnet18", dict(img_size=32, embed_dims=(8, 16), depths=(1, 1), num_classes=8)),
    "resnext": ("resnext50_32x4d", dict(img_size=32, embed_dims=(16, 32), depths=(1, 1), cardinality=4, num_classes=8)),
    "sknet": ("skresnet50", dict(img_size=32, embed_dims=(16, 32), depths=(1, 1), num_classes=8)),
    "res2net": (
        "res2net50_26w_4s",
        dict(img_size=32, embed_dims=(32, 64), depths=(2, 1), base_width=16, num_classes=8),
    ),
    "resnest": ("resnest14d", dict(img_size=32, embed_dims=(32, 64), depths=(1, 1), cardinality=2, num_classes=8)),
    "densenet": ("densenet121", dict(img_size=48, depths=(2, 1), growth_rate=16, bottleneck=2, num_classes=8)),
    "regnet": (
        "regnety_002",
        dict(img_size=32, depth=2, initial_width=16, slope=16.0, multiplier=2.0, stem_dim=16, num_classes=8),
    ),
    "halonet": ("halonet26t", dict(img_size=32, act="silu", stem_dims=(16,), stages=HALONET, num_classes=8)),
    "resnet_v2": (
        "resnetv2_50x1_bit",
        dict(img_size=32, stem_dim=16, embed_dims=(32, 64), depths=(1, 1), norm_groups=4, num_classes=8),
    ),
    "convnext": ("convnext_atto", TWO),
    "convnextv2": ("convnextv2_atto", TWO),
    "inception_next": ("inception_next_atto", dict(TWO, embed_dims=(16, 32), mlp_ratios=(2, 2))),
    "shvit": (
        "shvit_s1",
        dict(
            img_size=64,
            depths=(1, 1),
            embed_dims=(32, 64),
            attention_dims=(8, 16),
            attend=(False, True),
            num_classes=8,
        ),
    ),
    "efficientformer_v2": (
        "efficientformerv2_s0",
        dict(
            img_size=64,
            depths=(0, 0, 1, 1),
            embed_dims=(16, 16, 32, 32),
            num_vit=1,
            num_heads=4,
            key_dim=8,
            down_key_dim=8,
            mlp_ratios=(1,) * 4,
            num_classes=8,
        ),
    ),
    "levit": ("levit_128s", dict(TWO, num_heads=(4, 4), key_dim=8)),
    "repvit": ("repvit_m0_9", dict(TWO, depths=(1, 2), embed_dims=(16, 32))),
    "edgenext": (
        "edgenext_xx_small",
        dict(
            TWO,
            depths=(1, 1),
            global_depths=(0, 1),
            num_heads=(4, 4),
            kernel_sizes=(3, 3),
            scales=(2, 2),
            positions=(False, True),
        ),
    ),
    "mobilevitv2": ("mobilevitv2_050", MOBILEVIT),
    "coat": (
        "coat_tiny",
        dict(
            img_size=32,
            depths=(1, 0, 0),
            embed_dims=(16, 32, 32),
            mlp_ratios=(2, 2, 2),
            parallel_depth=1,
            windows=((3, 2), (1, 2)),
            num_classes=8,
        ),
    ),
    "focalnet": ("focalnet_tiny_srf", dict(img_size=32, embed_dim=16, depths=(1, 1), num_classes=8)),
    "vit, parallel": ("vit_base_patch16_xp_224", VIT),
    "gfnet": ("gfnet_ti", dict(img_size=16, patch_size=4, depths=(1,), embed_dims=(32,), num_classes=8)),
    "mambaout": ("mambaout_femto", TWO),
    "efficientnet": ("efficientnet_cc_b0_4e", dict(MOBILE, stages=(SEPARABLE, CONDITIONAL))),
    "efficientnetv2": ("tf_efficientnetv2_b0", dict(MOBILE, stages=(FUSED, MBCONV))),
    "mnasnet": ("mnasnet_small", dict(MOBILE, img_size=48, stages=(SEPARABLE, MBCONV))),
    "mobilenetv3": ("mobilenetv3_small_100", dict(MOBILE, stages=(SEPARABLE, MBCONV))),
    "mobilenetv4": ("mobilenetv4_hybrid_large", dict(MOBILE, stages=(FUSED, UNIVERSAL))),
    "mobilenetv1": ("mobilenetv1_100", dict(MOBILE, stages=(LAST_ACT, LAST_ACT))),
    "mobilenetv2": ("mobilenetv2_100", dict(MOBILE, stages=(MBCONV,))),
    "mobilenet_edgetpu": ("mobilenet_edgetpu_v2_s", dict(MOBILE, stages=((FUSED[0]._replace(group_width=8),),))),
    "mixnet": ("mixnet_s", dict(MOBILE, stages=((MBCONV[0]._replace(kernel_size=(3, 5), splits=(2, 2)),),))),
    "tinynet": ("tinynet_e", dict(MOBILE, stages=(SEPARABLE,))),
    "fbnet": ("fbnetc_100", dict(MOBILE, stages=(MBCONV,))),
    "fbnetv3": ("fbnetv3_b", dict(MOBILE, stages=(MBCONV,))),
    "lcnet": ("lcnet_050", dict(MOBILE, stages=(LAST_ACT,))),
    "mlp_mixer": ("mixer_s16_224", PATCHES),
    "gmixer": ("gmixer_12_224", PATCHES),
    "resmlp": ("resmlp_12_224", PATCHES),
    "gmlp": ("gmlp_ti16_224", PATCHES),
    "identityformer": ("identityformer_s12", dict(MIXERS, mixers=("identity",) * 2)),
    "randformer": ("randformer_s12", dict(MIXERS, mixers=("random",) * 2)),
    "poolformer": ("poolformer_s12", dict(MIXERS, mixers=("pool",) * 2)),
}
FAMILIES = ATTENTION | OTHERS
# Parameters whose gradient is 0 but for rounding, in some families: a batch norm takes the bias before it away.
ALL_BUT_ZERO = (
    r"(stem\.conv|token_mixer\.(dwconv_\w+|conv1|conv\.bn)|patch_embed\.convs\.\d+|downsample\.reduction"
    r"|local_mp\.conv1|pw_proj\.bn|attn\.(key|value)\.norm)\.bias$"
)


def all_but_zero(name, names):
    """Whether the gradient of a parameter is 0 but for rounding, given the names of all."""
    # Visformer's patches: whatever comes next is normalised over the batch
    patches = name.endswith(".downsample.bn.bias") and name.replace("bn.bias", "position.table") in names
    # DenseNet's stem: the norms after it take its scale away, all but what the bias leaves
    stem = name == "stem.norms.0.scale"
    # what is added to all of the last map, whose mean such heads normalise
    addends = [n for n in names if re.search(r"blocks\..*mlp\.fc2\.bn\.bias$", n) and "head.head.bn.bias" in names]
    # the mobile networks' last block ends in a norm, which a convolution and another norm follow
    ends = [n for n in names if re.search(r"^blocks\..*bn[23]\.bias$", n) and "bn2.scale" in names]
    before_norm = name.endswith(".conv.bias") and f"{name[:-9]}bn.scale" in names
    # MobileViT: what its transformer adds to all of the map; and in MobileViTv2, whose first convolution is depthwise,
    # what scales and offsets the map before it, but for the borders
    mobile = {"stages.1.1.norm.bias"} if "stages.1.1.conv_kxk.conv.kernel" in names else set()
    if mobile and "stages.1.1.conv_fusion.conv.kernel" not in names:
        mobile |= {"stages.1.0.conv3_1x1.bn.scale", "stages.1.0.conv3_1x1.bn.bias"}
    return (
        patches
        or stem
        or name in mobile
        or name in sorted(addends)[-1:] + sorted(ends)[-1:]
        or re.search(ALL_BUT_ZERO, name)
        or before_norm
    )


# Activations of which each device gathers all heads. GC ViT: queries that all windows share come from no projection,
# each device takes its heads, and gathers their gradient. CaiT: talking heads mix the scores of all heads, both ways.
GATHERED = {"gcvit": ((11, 4, 4, 8),), "cait": ((11, 4, 4, 4), (4, 11, 4, 4))}


def build(key, **fields):
    """(static, variables that let every branch be seen, height and width of the images) of one of them."""
    name, own = FAMILIES[key]
    model = create_model(name, abstract=True, **{**own, **fields})
    static, shapes = split(model)
    return static, jax.tree_util.tree_map_with_path(_value, shapes), np.broadcast_to(model.config.img_size, 2).tolist()


def _value(path, leaf):
    name = dotted(path)
    value = golden.fill(name, leaf.shape)
    return 0.5 + abs(value) if name.endswith(".var") else value
