"""A small ResNet on scikit-learn's handwritten digits, enlarged to 32x32 pixels; the argument is the image size.

python -m vision_jax.main --config configs/digits_resnet.py --workdir runs/digits_resnet
python -m vision_jax.main --config configs/digits_resnet.py:64 --workdir runs/digits_resnet_64
"""

from vision_jax.train.config import default_config


def get_config(arg="32"):
    c = default_config()
    size = int(arg)
    c.total = "20 epochs"

    c.model.name = "resnet18"
    c.model.stem_dim = 16
    c.model.embed_dims = (16, 32, 64, 128)
    c.model.drop_path_rate = 0.05

    c.data.source = "digits"
    c.data.ops = (
        "random_crop(8, padding=1)",
        f"resize({size})",
        "normalize(mean=(0.3,), std=(0.38,))",
        "mix(mixup=0.2)",
    )
    c.data.batch_size = 64
    c.eval.split = "test"
    c.eval.ops = ("decode(channels=1)", f"resize(({size}, {size}))", "normalize(mean=(0.3,), std=(0.38,))")
    c.eval.batch_size = 120
    c.eval.every = "5 epochs"

    c.optim.name = "sgd"
    c.optim.options = {"momentum": 0.9, "nesterov": True}
    c.optim.lr = 0.05
    c.optim.weight_decay = 5e-4
    c.optim.schedule.warmup = "1 epochs"
    c.ema = 0.99

    c.checkpoint.every = "5 epochs"
    return c
