"""Sources of examples and the way from them to batches.

source = load_source("folder", "train", root="/data/imagenet")
host_ops, device_ops = split_ops(("decode", "random_resized_crop(224)", "flip", "normalize", "mix(mixup=0.8)"))
batches = train_batches(source, host_ops, batch_size=1024, seed=0, start=step, workers=8)
batch = device_ops(key, next(batches))        # inside the jitted step
"""

from vision_jax.data.ops import split_ops
from vision_jax.data.pipeline import eval_batches, train_batches
from vision_jax.data.sources import load_source

__all__ = ["eval_batches", "load_source", "split_ops", "train_batches"]
