"""A linear classifier of ImageNet-1k on a frozen ViT-S/16; the argument is where its weights are.

    python -m vision_jax.main --config configs/linear_probe.py --workdir runs/probe

| argument | topology | step at least | published top-1 |
| --- | --- | --- | --- |
| hf-hub:timm/vit_small_patch16_224.dino | v5e:4x4 | 3.0 ms | 77.0 % (DINO: Caron et al., 2021, arXiv:2104.14294) |

The published one reads the class tokens of the last four blocks, this one that of the last. The numbers are the
defaults of eval_linear.py in github.com/facebookresearch/dino, whose rate of 1e-3 is for batches of 256. A workdir
or a safetensors file may be given too.
"""

from _imagenet import IMAGENET, imagenet_1k


def get_config(arg="hf-hub:timm/vit_small_patch16_224.dino"):
    c = imagenet_1k(("decode", "random_resized_crop(224)", "flip", IMAGENET))
    c.total = "100 epochs"
    c.data.batch_size = 1024

    c.init_from = arg
    c.model.name = "vit_small_patch16_224"
    c.model.scan_blocks = True

    c.optim.freeze = (r"^(?!head\.)",)  # all but the classifier
    c.optim.name = "sgd"
    c.optim.options = {"momentum": 0.9}
    c.optim.lr = 4e-3
    c.optim.weight_decay = 0.0
    c.optim.clip = 0.0
    return c
