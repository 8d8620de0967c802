"""A ResNet-18 on your own photographs: a directory with a folder for each class.

    python -m vision_jax.main --config configs/folder.py:DIRECTORY --workdir runs/mine

`DIRECTORY/train/<class>/*.jpg` and `DIRECTORY/val/<class>/*.jpg` where it has these splits; of plain
`DIRECTORY/<class>/*.jpg` every tenth image of each class is held out for evaluation. Start from a weight file with
--config.init_from=model.safetensors and a hundredth of the learning rate.
"""

import os

from vision_jax.train.config import default_config


def get_config(arg="photos"):
    c = default_config()
    c.total = "50 epochs"

    c.model.name = "resnet18"
    c.task.label_smoothing = 0.1

    c.data.source = "folder"
    c.data.options = {"root": arg, "holdout": 0.0 if os.path.isdir(os.path.join(arg, "train")) else 0.1}
    c.data.ops = ("decode", "random_resized_crop(224, scale=(0.3, 1.0))", "flip", "normalize")
    c.data.batch_size = 32
    c.data.workers = 2
    c.eval.split = "val"
    c.eval.ops = ("decode", "resize(256)", "center_crop(224)", "normalize")
    c.eval.batch_size = 32

    c.optim.name = "sgd"
    c.optim.options = {"momentum": 0.9, "nesterov": True}
    c.optim.lr = 0.05
    c.optim.weight_decay = 1e-4
    c.optim.schedule.warmup = "2 epochs"
    return c
