"""Large ViTs on ImageNet-21k: ViT-g/14 of a billion parameters, and one of four billions.

    python -m vision_jax.main --config configs/vit_i21k.py:g --workdir runs/vit_g14 \\
        --config.data.options.builder_dir=/data/imagenet21k/1.0.0

| argument | topology | step at least | published top-1 |
| --- | --- | --- | --- |
| g | v5e:16x16 | 130.8 ms | none on these data; L/16: 85.6 % on ImageNet-1k at 384 pixels (arXiv:2106.10270) |
| 4B | v5p:8x8x8 | 103.6 ms | none on these data; on JFT-3B 90.9 % (ViT-e: Chen et al., 2022, arXiv:2209.06794) |

The numbers are those of big_vision's vit_i21k.py for its largest model, L/16, with a softmax for its sigmoids; the
shapes are ViT-g/14's (Zhai et al., 2021, arXiv:2106.04560, table 2) and ViT-e's (PaLI, arXiv:2209.06794). TFDS has no
ImageNet-21k of its own: data.options.builder_dir is the directory of one that you prepared, or data.source "folder".
"""

from _imagenet import INCEPTION, google_ops, imagenet_1k, inception_crop, variant

VIT_E = {"embed_dim": 1792, "depth": 56, "num_heads": 16, "mlp_ratio": 15360 / 1792}
VARIANTS = {  # model, what differs from it, devices that the state is split over, each of a divisor of its width
    "g": ("vit_giant_patch14_224", {}, 128),
    "4B": ("vit_gigantic_patch14_224", VIT_E, 64),
}


def get_config(arg="g"):
    name, shape, fsdp = variant(arg, VARIANTS, "vit_i21k")
    c = imagenet_1k(google_ops(inception_crop(224), magnitude=15, mixup=0.5), normalize=INCEPTION)
    c.total = "90 epochs"
    c.data.options = {"builder_dir": "imagenet21k"}
    c.data.split = "train[51200:]"
    c.data.batch_size = 4096
    c.eval.split = "train[:25600]"
    c.eval.every = "10000 steps"
    c.checkpoint.every = "1000 steps"

    c.model = {"name": name, **shape, "num_classes": 21_843, "class_token": False, "global_pool": "avg"}
    c.model.scan_blocks = True
    c.model.remat = "dots_no_batch"  # matrix products are kept, attention is computed again

    c.optim.lr = 1e-3
    c.optim.weight_decay = 0.1
    c.optim.moments_dtype = "bfloat16"
    c.optim.schedule.warmup = "10000 steps"
    c.mesh = {"data": -1, "fsdp": fsdp, "tensor": 1}
    return c
