import numpy as np

from vision_jax.layers.mixed_conv import MixedConv


class Constant:
    """Stands for a convolution: a map of `dout` channels, all of them the mean of its input plus the kernel size."""

    def __init__(self, din, dout, kernel_size):
        self.din, self.dout, self.kernel_size = din, dout, kernel_size

    def __call__(self, x):
        assert x.shape[-1] == self.din
        return np.repeat(x.mean(-1, keepdims=True) + self.kernel_size, self.dout, axis=-1)


def test_equals_the_paper():
    """Section 3.1 of arXiv:1907.09595: shares of the channels, the first with the remainder, each a kernel of its own.

    The released code's `_split_channels` leaves the remainder to the first.
    """
    x = np.arange(8.0).reshape(1, 1, 1, 8)
    wanted = [1.5 + 3] * 3 + [4.5 + 5] * 2 + [6.5 + 70] * 2
    np.testing.assert_array_equal(MixedConv(8, 7, (3, 5, 70), Constant)(x)[0, 0, 0], wanted)
