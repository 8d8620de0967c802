"""MaxViT-T (Tu et al., 2022, arXiv:2204.01697) on ImageNet-1k.

    python -m vision_jax.main --config configs/maxvit.py:T --workdir runs/maxvit_t

| argument | topology | step at least | published top-1 |
| --- | --- | --- | --- |
| T | v5e:8x8 | 38.1 ms | 83.6 % |

The numbers are those of maxvit/models/hp in github.com/google-research/maxvit.
"""

from _imagenet import IMAGENET, google_ops, imagenet_1k, variant

VARIANTS = {"T": ("maxvit_tiny_tf_224", 0.2)}  # drop-path


def get_config(arg="T"):
    name, drop_path = variant(arg, VARIANTS, "maxvit")
    c = imagenet_1k(google_ops("random_resized_crop(224)", magnitude=15, mixup=0.8, normalize=IMAGENET))
    c.total = "300 epochs"
    c.data.batch_size = 4096

    c.model.name = name
    c.model.drop_path_rate = drop_path
    c.task.label_smoothing = 0.1

    c.optim.lr = 3e-3
    c.optim.weight_decay = 0.05
    c.optim.clip = 1.0
    c.optim.schedule.warmup = "10000 steps"
    c.optim.schedule.end = 1e-5
    c.ema = 0.9999
    return c
