"""DeiT III (Touvron et al., 2022, arXiv:2204.07118): ViT-S/16 and ViT-B/16 on ImageNet-1k for 800 epochs.

    python -m vision_jax.main --config configs/deit3.py:S --workdir runs/deit3_s
    python -m vision_jax.main --config configs/deit3.py:B --workdir runs/deit3_b_192
    python -m vision_jax.main --config configs/deit3.py:B-224 --workdir runs/deit3_b --config.init_from=runs/deit3_b_192

| argument | topology | step at least | published top-1 |
| --- | --- | --- | --- |
| S | v5e:4x4 | 61.1 ms | 81.4 % |
| B | v5e:4x4 | 86.1 ms | trained at 192 pixels, for B-224 |
| B-224 | v5e:4x4 | 17.1 ms | 83.8 % |

The numbers are those of the commands in README_revenge.md of github.com/facebookresearch/deit, for its batches of 2048,
and of 512 where B is fine-tuned; layer scales begin at the 1e-4 of its models_v2.py. Apex's FusedLAMB clips at 1.
"""

from _imagenet import IMAGENET, deit_ops, imagenet_1k, variant

VARIANTS = {  # model, pixels, learning rate, drop-path
    "S": ("deit3_small_patch16_224", 224, 4e-3, 0.05),
    "B": ("deit3_base_patch16_224", 192, 3e-3, 0.2),
    "B-224": ("deit3_base_patch16_224", 224, 1e-5, 0.2),
}


def get_config(arg="S"):
    name, size, lr, drop_path = variant(arg, VARIANTS, "deit3")
    finetune = arg.endswith("-224")
    three_augment = (
        "decode", f"random_resized_crop({size})", "flip", "three_augment", "color_jitter(0.3, 0.3, 0.3)", IMAGENET,
        "mix(mixup=0.8, cutmix=1.0)",
    )  # fmt: skip
    c = imagenet_1k(deit_ops(size, erasing=False) if finetune else three_augment, size, resize=size * 8 // 7)
    c.total = "20 epochs" if finetune else "800 epochs"
    c.data.batch_size = 512 if finetune else 2048
    c.data.repeats = 1 if finetune else 3

    c.model.name = name
    c.model.layer_scale_init = 1e-4
    c.model.drop_path_rate = drop_path
    c.model.scan_blocks = True
    c.task.loss = "softmax" if finetune else "sigmoid"
    c.task.label_smoothing = 0.1 if finetune else 0.0

    c.optim.name = "adamw" if finetune else "lamb"
    c.optim.lr = lr
    c.optim.weight_decay = 0.1 if finetune else 0.05
    c.optim.clip = 0.0 if finetune else 1.0
    c.optim.schedule.warmup = "5 epochs"
    c.optim.schedule.end = 1e-5  # timm's, so that the fine-tuning's rate stays
    return c
