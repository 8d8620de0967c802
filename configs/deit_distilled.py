"""DeiT with a distillation token (Touvron et al., 2021, arXiv:2012.12877) on ImageNet-1k: S or B.

    python -m vision_jax.main --config configs/deit_distilled.py:B --workdir runs/deit_b_distilled

| argument | topology | step at least | published top-1 |
| --- | --- | --- | --- |
| S | v5e:4x4 | 20.8 ms | 81.2 % |
| B | v5e:4x4 | 47.6 ms | 83.4 % |

The numbers are the defaults of main.py in github.com/facebookresearch/deit, for batches of 1024. The paper's teacher,
a RegNetY-16GF of 82.9 %, is not among the models here: a ConvNeXt-S of 83.1 % takes its place, a convolutional network
as the paper advises (section 5.2). A run of your own teaches with --config.task.teacher_weights=runs/convnext_b
--config.task.teacher=''.
"""

from _imagenet import deit_ops, imagenet_1k, variant

VARIANTS = {"S": "deit_small_distilled_patch16_224", "B": "deit_base_distilled_patch16_224"}


def get_config(arg="B"):
    c = imagenet_1k(deit_ops())
    c.total = "300 epochs"
    c.data.batch_size = 1024
    c.data.repeats = 3

    c.model.name = variant(arg, VARIANTS, "deit_distilled")
    c.model.drop_path_rate = 0.1
    c.model.scan_blocks = True
    c.task.label_smoothing = 0.1
    c.task.teacher = "convnext_small"
    c.task.teacher_weights = "hf-hub:timm/convnext_small.fb_in1k"
    c.task.distillation = "hard"
    c.task.distillation_weight = 0.5

    c.optim.lr = 1e-3
    c.optim.weight_decay = 0.05
    c.optim.clip = 0.0
    c.optim.schedule.warmup = "5 epochs"
    c.optim.schedule.end = 1e-5
    return c
