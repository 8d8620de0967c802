"""Made-up images, for measuring speed and trying out a model where there is no data."""

import zlib

import numpy as np

from vision_jax.errors import InputError, unknown


class Synthetic:
    """Noise over a colour of the class: example i of a split is always the same, and a model can learn the classes."""

    def __init__(self, split, image_size=224, num_classes=10, num_examples=1024, channels=3):
        if split not in ("train", "test"):
            raise unknown("split of synthetic", split, ("train", "test"))
        for option in ("image_size", "num_classes", "num_examples"):
            if locals()[option] < 1:
                raise InputError(f"synthetic: {option} is at least 1: given {locals()[option]}")
        if channels not in (1, 3):
            raise InputError(f"synthetic: channels is 1 or 3: given {channels}")
        self._split = split
        self._shape = (image_size, image_size, channels)
        self._num_examples = num_examples
        self.class_names = tuple(f"class {i}" for i in range(num_classes))

    def __len__(self):
        return self._num_examples

    def __getitem__(self, i):
        if not 0 <= i < len(self):
            raise IndexError(i)
        label = i % len(self.class_names)
        colour = np.random.default_rng(label).integers(0, 128, self._shape[2], np.uint8)
        rng = np.random.default_rng((zlib.crc32(self._split.encode()), i))
        return {"image": rng.integers(0, 128, self._shape, np.uint8) + colour, "label": label}

    def name(self, i):
        """ "synthetic/train[17]"."""
        return f"synthetic/{self._split}[{i}]"
