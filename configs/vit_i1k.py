"""Plain ViTs on ImageNet-1k, as big_vision trains them: S/16 (also B/16 and L/16).

    python -m vision_jax.main --config configs/vit_i1k.py:S --workdir runs/vit_s16

| argument | topology | step at least | published top-1 |
| --- | --- | --- | --- |
| S | v5e:4x4 | 15.0 ms | 76.5 %, with --config.total='300 epochs' 80.0 % (Beyer et al., 2022, arXiv:2205.01580) |
| B | v5e:8x8 | 41.5 ms | 77.9 % at 384 pixels (Dosovitskiy et al., 2021, arXiv:2010.11929, table 5) |
| L | v5e:8x8 | 121.1 ms | 76.5 % at 384 pixels (the same) |

S is big_vision's vit_s16_i1k.py: sine positions and average pooling. B and L are its vit_i1k.py, with more augmentation
and a class token (arXiv:2106.10270). There the decay of 1e-4 does not go by the rate: it is 0.1 of one of 1e-3.
"""

from _imagenet import INCEPTION, google_ops, imagenet_1k, inception_crop, variant

# model, epochs, batch, magnitude of RandAugment, alpha of mixup (B, L: "medium2")
VARIANTS = {
    "S": ("vit_small_patch16_224", 90, 1024, 10, 0.2),
    "B": ("vit_base_patch16_224", 300, 4096, 15, 0.5),
    "L": ("vit_large_patch16_224", 300, 4096, 15, 0.5),
}


def get_config(arg="S"):
    name, epochs, batch_size, magnitude, mixup = variant(arg, VARIANTS, "vit_i1k")
    c = imagenet_1k(google_ops(inception_crop(224), magnitude, mixup), normalize=INCEPTION)
    c.total = f"{epochs} epochs"
    c.data.split = "train[:99%]"
    c.data.batch_size = batch_size

    c.model.name = name
    c.model.scan_blocks = True
    if arg == "L":
        c.model.remat = "dots_no_batch"  # 64 images fit a chip
    if arg == "S":
        c.model.class_token = False
        c.model.global_pool = "avg"
        c.model.position = "sincos2d"

    c.optim.lr = 1e-3
    c.optim.weight_decay = 0.1
    c.optim.moments_dtype = "bfloat16"
    c.optim.schedule.warmup = "10000 steps"
    return c
