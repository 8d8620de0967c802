"""A small ViT on scikit-learn's handwritten digits: 1,797 scans of 8x8 pixels that come with the package.

    python -m vision_jax.main --config configs/digits_vit.py --workdir runs/digits_vit

Two CPU cores: about a minute, 98 to 99 % of the 360 test digits right.
"""

from vision_jax.train.config import default_config


def get_config(arg=""):
    c = default_config()
    c.total = "60 epochs"

    c.model.name = "vit_tiny_patch16_224"  # its shape is given below: 8x8 pixels are 16 patches of 2x2
    c.model.patch_size = 2
    c.model.embed_dim = 96
    c.model.depth = 4
    c.model.num_heads = 3
    c.model.class_token = False
    c.model.global_pool = "avg"
    c.model.position = "sincos2d"
    c.task.label_smoothing = 0.1

    c.data.source = "digits"
    c.data.ops = ("normalize(mean=(0.3,), std=(0.38,))", "mix(mixup=0.2)")
    c.data.batch_size = 64
    c.eval.split = "test"
    c.eval.ops = ("decode(channels=1)", "resize((8, 8))", "normalize(mean=(0.3,), std=(0.38,))")
    c.eval.batch_size = 360
    c.eval.every = "10 epochs"

    c.optim.name = "adamw"
    c.optim.lr = 1e-3
    c.optim.weight_decay = 0.05
    c.optim.schedule.warmup = "5 epochs"
    c.ema = 0.99

    c.checkpoint.every = "10 epochs"
    return c
