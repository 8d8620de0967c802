"""A ViT-S/16 on an image classification data set of TensorFlow Datasets, read without TensorFlow.

    python -m vision_jax.main --config configs/tfds.py:cats_vs_dogs --workdir runs/cats_vs_dogs
    python -m vision_jax.main --config configs/tfds.py:/data/my_dataset/1.0.0 --workdir runs/mine

The argument is a TFDS name, or the directory of one prepared version. It must be prepared as ArrayRecord; where it is
not, the error says the command. Other splits: --config.data.split='train[:90%]' --config.eval.split='train[90%:]'.
"""

import os

from vision_jax.train.config import default_config


def get_config(arg="imagenet2012"):
    c = default_config()
    c.total = "90 epochs"

    c.model.name = "vit_small_patch16_224"
    c.model.drop_path_rate = 0.1
    c.task.label_smoothing = 0.1

    c.data.source = "tfds"
    c.data.options = {"builder_dir": arg} if os.path.isdir(arg) else {"dataset": arg}
    c.data.ops = ("decode", "random_resized_crop(224)", "flip", "rand_augment(2, 10)", "normalize", "mix(mixup=0.2)")
    c.data.batch_size = 1024
    c.data.workers = 8
    c.eval.split = "validation" if arg == "imagenet2012" else "test"
    c.eval.ops = ("decode", "resize(256)", "center_crop(224)", "normalize")
    c.eval.batch_size = 1024

    c.optim.lr = 1e-3
    c.optim.weight_decay = 0.1
    c.optim.schedule.warmup = "10000 steps"
    return c
