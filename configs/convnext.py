"""ConvNeXt-T and ConvNeXt-B (Liu et al., 2022, arXiv:2201.03545) on ImageNet-1k.

    python -m vision_jax.main --config configs/convnext.py:T --workdir runs/convnext_t

| argument | topology | step at least | published top-1 |
| --- | --- | --- | --- |
| T | v5e:8x8 | 21.9 ms | 82.1 % |
| B | v5e:8x8 | 62.1 ms | 83.8 % |

The numbers are those of TRAINING.md and the defaults of main.py in github.com/facebookresearch/ConvNeXt.
"""

from _imagenet import deit_ops, imagenet_1k, variant

VARIANTS = {"T": ("convnext_tiny", 0.1), "B": ("convnext_base", 0.5)}  # drop-path


def get_config(arg="T"):
    name, drop_path = variant(arg, VARIANTS, "convnext")
    c = imagenet_1k(deit_ops())
    c.total = "300 epochs"
    c.data.batch_size = 4096

    c.model.name = name
    c.model.drop_path_rate = drop_path
    c.model.scan_blocks = True
    c.task.label_smoothing = 0.1

    c.optim.lr = 4e-3
    c.optim.weight_decay = 0.05
    c.optim.clip = 0.0
    c.optim.schedule.warmup = "20 epochs"
    c.optim.schedule.end = 1e-6
    c.ema = 0.9999
    return c
