"""Swin-T and Swin-B (Liu et al., 2021, arXiv:2103.14030) on ImageNet-1k.

    python -m vision_jax.main --config configs/swin.py:T --workdir runs/swin_t

| argument | topology | step at least | published top-1 |
| --- | --- | --- | --- |
| T | v5e:4x4 | 20.7 ms | 81.2 % |
| B | v5e:4x4 | 57.0 ms | 83.5 % |

The numbers are those of config.py and configs/swin in github.com/microsoft/Swin-Transformer; rates are given there for
batches of 512, and scaled by the batch: 1024.
"""

from _imagenet import deit_ops, imagenet_1k, variant

VARIANTS = {"T": ("swin_tiny_patch4_window7_224", 0.2), "B": ("swin_base_patch4_window7_224", 0.5)}  # drop-path


def get_config(arg="T"):
    name, drop_path = variant(arg, VARIANTS, "swin")
    c = imagenet_1k(deit_ops())
    c.total = "300 epochs"
    c.data.batch_size = 1024

    c.model.name = name
    c.model.drop_path_rate = drop_path
    c.model.scan_blocks = True
    c.task.label_smoothing = 0.1

    c.optim.lr = 1e-3
    c.optim.weight_decay = 0.05
    c.optim.clip = 5.0
    c.optim.schedule.warmup = "20 epochs"
    c.optim.schedule.end = 1e-5
    return c
