"""CAFormer-S18 (Yu et al., 2022, arXiv:2210.13452) on ImageNet-1k.

    python -m vision_jax.main --config configs/caformer.py:S18 --workdir runs/caformer_s18

| argument | topology | step at least | published top-1 |
| --- | --- | --- | --- |
| S18 | v5e:8x8 | 47.1 ms | 83.6 % |

The numbers are those of scripts/caformer/train_caformer_s18.sh and the defaults of train.py in
github.com/sail-sg/metaformer; timm's LAMB clips at 1.
"""

from _imagenet import deit_ops, imagenet_1k, variant

VARIANTS = {"S18": ("caformer_s18", 0.15)}  # drop-path


def get_config(arg="S18"):
    name, drop_path = variant(arg, VARIANTS, "caformer")
    c = imagenet_1k(deit_ops(), resize=224)
    c.total = "300 epochs"
    c.data.batch_size = 4096

    c.model.name = name
    c.model.drop_path_rate = drop_path
    c.model.scan_blocks = True
    c.task.label_smoothing = 0.1

    c.optim.name = "lamb"
    c.optim.lr = 8e-3
    c.optim.weight_decay = 0.05
    c.optim.clip = 1.0
    c.optim.schedule.warmup = "20 epochs"
    c.optim.schedule.end = 1e-5
    return c
