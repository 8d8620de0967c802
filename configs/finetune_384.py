"""A ViT-B/16 fine-tuned on ImageNet-1k at 384 pixels; the argument is what it starts from.

    python -m vision_jax.main --config configs/finetune_384.py --workdir runs/vit_b16_384
    python -m vision_jax.main --config configs/finetune_384.py:runs/vit_b16 --workdir runs/vit_b16_384

| argument | topology | step at least | published top-1 |
| --- | --- | --- | --- |
| hf-hub:timm/vit_base_patch16_224.augreg_in21k | v5e:4x4 | 102.7 ms | 85.5 % (arXiv:2106.10270) |

A run's workdir (with another model in it, set config.model), a safetensors file or a hub id; positions are resampled,
the classifier is made anew. The numbers are those of big_vision's transfer.py, the rate the one that
github.com/google-research/vision_transformer found best for this model.
"""

from _imagenet import INCEPTION, imagenet_1k, inception_crop


def get_config(arg="hf-hub:timm/vit_base_patch16_224.augreg_in21k"):
    c = imagenet_1k(("decode", inception_crop(384), "flip", INCEPTION), 384, resize=448, normalize=INCEPTION)
    c.total = "20000 steps"
    c.data.batch_size = 512
    c.eval.batch_size = 512
    c.eval.every = "1000 steps"
    c.checkpoint.every = "1000 steps"

    c.init_from = arg
    c.model.name = "vit_base_patch16_384"
    c.model.scan_blocks = True
    c.model.remat = "dots_no_batch"  # 32 images fit a chip

    c.optim.name = "sgd"
    c.optim.options = {"momentum": 0.9}
    c.optim.moments_dtype = "bfloat16"
    c.optim.lr = 0.03
    c.optim.weight_decay = 0.0
    c.optim.clip = 1.0
    c.optim.schedule.warmup = "500 steps"
    return c
