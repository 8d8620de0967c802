"""How the TPU kernel cuts a map into grid steps: bands of windows over the map's full width."""

import dataclasses
import functools
import math

import jax
from vision_jax.kernels import tile_table
from vision_jax.kernels.limits import largest_divisor, vmem
from vision_jax.kernels.packed_heads import LANES, Heads
from vision_jax.kernels.window_attention.fast_path import Call, beyond

SCORES = 2**15  # elements of one head's scores that are computed at once, and
WINDOWS = 8  # windows at most: fewer leave the units idle between dependent steps, more spill registers
CANDIDATES = (1, 2, 4, 8, 16, 32)  # windows computed at once that tuning tries


@dataclasses.dataclass(frozen=True)
class Bands(Call):
    """The layout of a call. `step_bands` bands of `step_images` images are one grid step.

    A band is one row of windows: `window[0]` rows of the map, `dilation[0]` apart, at their full width. `at_once`:
    windows computed at once.
    """

    heads: Heads
    at_once: int = dataclasses.field(init=False)

    def __post_init__(self):
        rule = min(max(SCORES // self.tokens**2, 1), WINDOWS)
        call = self.window, self.heads.head_dim
        object.__setattr__(self, "at_once", tile_table.choose("window_attention.tpu", call, rule, lambda: CANDIDATES))

    @property
    def columns(self):
        """Windows side by side in a band."""
        return self.size[1] // self.window[1]

    @property
    def bands(self):
        """Bands of the map."""
        return self.size[0] // self.window[0]

    @functools.cached_property
    def step_bands(self):
        """Bands of a step, neighbours in the map; where rows are dilated, phases of one block of rows."""
        most = self.bands if self.dilation[0] == 1 else self.dilation[0]
        return largest_divisor(most, self.at_once // self.columns)

    @functools.cached_property
    def step_images(self):
        """Images of a step."""
        return largest_divisor(self.batch, self.at_once // (self.columns * self.step_bands))

    @property
    def steps(self):
        """Steps down the map."""
        return self.bands // self.step_bands

    @property
    def rows(self):
        """Rows of the map in a step."""
        return self.step_bands * self.window[0]

    @property
    def step_windows(self):
        """Windows of one image in a step."""
        return self.step_bands * self.columns

    @property
    def grid(self):
        """(blocks of lanes, steps down the map, steps over the batch): what a batch shares stays in VMEM."""
        return (self.heads.steps, self.steps, self.batch // self.step_images)

    @property
    def block(self):
        """Shape of a step's part of the map, seen as `view` sees it."""
        bands, phases = (self.step_bands, 1) if self.dilation[0] == 1 else (1, self.step_bands)
        return (self.step_images, bands, self.window[0], phases, self.size[1], self.heads.lanes)

    def view(self, x):
        """[B, H, W, C] as [B, blocks, rows of a window, phases, W, C]: outer dimensions only, so that nothing moves."""
        return x.reshape(x.shape[0], -1, self.window[0], self.dilation[0], *x.shape[2:])

    def block_index(self, group, step, images):
        """Where the step's block lies in `view`, in blocks."""
        if self.dilation[0] == 1:
            return (images, step, 0, 0, 0, group)
        phases = self.dilation[0] // self.step_bands
        return (images, jax.lax.div(step, phases), 0, jax.lax.rem(step, phases), 0, group)

    def vmem(self, itemsize):
        """Bytes that a step of the backward pass takes: seven blocks twice, scores, tables twice."""
        blocks = 2 * 7 * math.prod(self.block[:-1]) * self.heads.padded * itemsize
        score = 4 * self.tokens * -(-self.tokens // LANES) * LANES
        tables = (4 if any(self.shift) else 1) + 1  # bias and mask by kind of window, and the bias's gradient
        return blocks + (2 * tables * self.heads.in_step + 8 * self.at_once) * score


def refusal(bands, q, k, v, *, return_lse, other):
    """Why the kernel does not take a call, or None where it does.

    Args:
      bands: the layout; of one device's part of the operands.
      q, k, v: arrays or shapes [B, H, W, heads, head_dim].
      return_lse: whether the caller wants the log-sum-exp.
      other: names of options in use that only XLA has.
    """
    reason = beyond(bands, q, k, v, return_lse=return_lse, other=other)
    if reason:
        return reason
    if bands.vmem(q.dtype.itemsize) > vmem():
        return (
            f"a band of {bands.window[0]} x {bands.size[1]} tokens of {bands.heads.lanes} channels does not fit in VMEM"
        )
    return None
