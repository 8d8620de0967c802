"""In the place of data that need not be here: encoded photographs of several sizes, for their shapes alone."""

import functools
import io

import numpy as np
from PIL import Image

SIZES = ((375, 500), (640, 427), (1200, 1600))  # height and width, as ImageNet's differ
LENGTH = 1_281_167  # ImageNet-1k's training split; durations in epochs are counted by it


class StandIn:
    """A source of grey PNG files.

    Args:
      num_classes: of the data that it stands for.
    """

    def __init__(self, num_classes):
        self.class_names = tuple(map(str, range(num_classes)))

    def __len__(self):
        return LENGTH

    def __getitem__(self, i):
        return {"image": _photograph(SIZES[i % len(SIZES)]), "label": 0}

    def name(self, i):
        """The size of the image."""
        height, width = SIZES[i % len(SIZES)]
        return f"an image of {height}x{width} in the data's place"


@functools.cache
def _photograph(size):
    file = io.BytesIO()
    Image.fromarray(np.full((*size, 3), 128, np.uint8)).save(file, "PNG")
    return file.getvalue()
