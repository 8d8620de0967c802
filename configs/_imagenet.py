"""What the ImageNet recipes share: the data, how images are evaluated, and the augmentation that most papers use."""

from vision_jax.errors import unknown
from vision_jax.train.config import default_config

INCEPTION = "normalize(mean=(0.5,), std=(0.5,))"  # to [-1, 1], as Google's models take images
IMAGENET = "normalize"  # by ImageNet's mean and standard deviation, as most others do


def imagenet_1k(ops, size=224, resize=256, normalize=IMAGENET):
    """A config with ImageNet-1k as TFDS prepares it, in bfloat16, state and gradients split over all devices.

    Args:
      ops: of the training images; normalisation is among them.
      size, resize: evaluated is a central crop of `size` pixels of images whose shorter side has `resize`.
      normalize: of the images evaluated.
    """
    c = default_config()
    c.dtype = "bfloat16"
    c.data.source = "tfds"
    c.data.options = {"dataset": "imagenet2012"}
    c.data.ops = ops
    c.data.workers = 16
    c.eval.split = "validation"
    c.eval.ops = ("decode", f"resize({resize})", f"center_crop({size})", normalize)
    c.eval.batch_size = 1024
    c.mesh = {"data": 1, "fsdp": -1, "tensor": 1}
    return c


def deit_ops(size=224, erasing=True):
    """DeiT's augmentation (arXiv:2012.12877, table 9), which Swin, ConvNeXt, NAT and CAFormer took over unchanged.

    timm's rand-m9-mstd0.5-inc1; with it, timm leaves colours alone whatever --color-jitter says.
    """
    ops = ("decode", f"random_resized_crop({size})", "flip", "rand_augment(2, 9)", IMAGENET)
    return (*ops, *(("random_erasing(0.25)",) if erasing else ()), "mix(mixup=0.8, cutmix=1.0)")


def inception_crop(size):
    """big_vision's `inception_crop(size)`."""
    return f"random_resized_crop({size}, scale=(0.05, 1.0), interpolation='bilinear')"


def google_ops(crop, magnitude, mixup, normalize=INCEPTION):
    """A crop, `flip_lr`, `randaug(2, magnitude)` and mixup as big_vision and MaxViT have them."""
    scales = f"std=0, increasing=False, fill=(128, 128, 128), max_magnitude={magnitude}"
    return ("decode", crop, "flip", f"rand_augment(2, {magnitude}, {scales})", normalize, f"mix(mixup={mixup})")


def variant(arg, table, what):
    """The row of a table that a recipe's argument names.

    Raises:
      InputError: there is none, with those that are.
    """
    if arg not in table:
        raise unknown(f"variant of {what}", arg, table)
    return table[arg]
