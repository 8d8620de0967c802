"""Numbers of channels."""


def round_channels(channels, divisor=8, limit=0.9):
    """The multiple of `divisor` next to a number of channels, at least one; the one above where it loses too much.

    MobileNetV2's rule (arXiv:1801.04381, in its released code), which the networks after it scale their widths by.

    Args:
      channels: the number, perhaps a fraction.
      divisor: what the result is a multiple of.
      limit: the least share of `channels` that must be left.
    """
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < limit * channels else rounded
