"""scikit-learn's handwritten digits: 1,797 grey scans of 8 x 8 pixels, part of its package, so no download."""

import numpy as np

from vision_jax.errors import unknown


class Digits:
    """1,437 training and 360 test images, uint8 [8, 8, 1], the same in every run.

    Sorted by class, every fifth image is a test image, so each class has a fifth of its own in the test set.
    """

    class_names = tuple("0123456789")

    def __init__(self, split):
        if split not in ("train", "test"):
            raise unknown("split of digits", split, ("train", "test"))
        from sklearn.datasets import load_digits

        digits = load_digits()
        by_class = np.argsort(digits.target, kind="stable")
        is_test = np.arange(len(by_class)) % 5 == 0
        self._ids = np.sort(by_class[is_test if split == "test" else ~is_test])
        self._images = np.round(digits.images[self._ids] * (255 / 16)).astype(np.uint8)[..., None]  # stored as 0..16
        self._labels = digits.target[self._ids]

    def __len__(self):
        return len(self._ids)

    def __getitem__(self, i):
        return {"image": self._images[i], "label": int(self._labels[i])}

    def name(self, i):
        """ "digits[17]": the number is that of the whole set."""
        return f"digits[{self._ids[i]}]"
