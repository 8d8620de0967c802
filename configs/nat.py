"""NAT-T (Hassani et al., 2023, arXiv:2204.07143) on ImageNet-1k.

    python -m vision_jax.main --config configs/nat.py:T --workdir runs/nat_t

| argument | topology | step at least | published top-1 |
| --- | --- | --- | --- |
| T | v5e:4x4 | 48.7 ms | 83.2 % |

The numbers are those of classification/configs/nat_tiny.yml and train.py in
github.com/SHI-Labs/Neighborhood-Attention-Transformer, but for the ten epochs at the last rate that it adds.
"""

from _imagenet import deit_ops, imagenet_1k, variant

VARIANTS = {"T": "nat_tiny"}


def get_config(arg="T"):
    c = imagenet_1k(deit_ops())
    c.total = "300 epochs"
    c.data.batch_size = 1024

    c.model.name = variant(arg, VARIANTS, "nat")
    c.model.drop_path_rate = 0.2
    c.model.scan_blocks = True
    c.task.label_smoothing = 0.1

    c.optim.lr = 1e-3
    c.optim.weight_decay = 0.05
    c.optim.clip = 5.0
    c.optim.schedule.warmup = "20 epochs"
    c.optim.schedule.end = 5e-6
    return c
