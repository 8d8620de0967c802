"""How the GPU kernel reads a window from a map: runs of neighbouring tokens, each copied by itself."""

import dataclasses
import functools
import math

import jax
import numpy as np
from vision_jax.kernels import hopper, tile_table
from vision_jax.kernels.hopper import ALIGNED, COLUMNS, MULTIPROCESSORS, ROWS, SMEM
from vision_jax.kernels.window_attention.fast_path import Call, beyond

BLOCKS = 4 * MULTIPROCESSORS  # blocks of the grid: a few for each multiprocessor, to fill each other's waiting
CANDIDATES = tuple(n * MULTIPROCESSORS for n in (1, 2, 3, 4, 6, 8, 16))  # blocks that tuning tries
OWN = 8_192  # bytes of shared memory that the compiler takes for itself, at most


@dataclasses.dataclass(frozen=True)
class Runs(Call):
    """The layout of a call. A window is `window[0]` runs of `window[1]` tokens.

    In shared memory a token of a window has a slot, a row of `head_dim` channels. Copies begin at multiples of 128
    bytes there, so that between runs there may be slots without a token; up to the next multiple of 64 there are more.
    A shift cuts each run in two pieces, because in the last column of windows they lie at the two ends of the map.
    `blocks`: of the grid, at most one more a head.
    """

    heads: int
    head_dim: int
    blocks: int = dataclasses.field(init=False)

    def __post_init__(self):
        call = self.window, self.head_dim
        object.__setattr__(self, "blocks", tile_table.choose("window_attention.gpu", call, BLOCKS, lambda: CANDIDATES))

    @property
    def windows(self):
        """Windows of an image."""
        return self.size[0] * self.size[1] // self.tokens

    @functools.cached_property
    def pieces(self):
        """[(first token, tokens, first slot)] of a run's pieces."""
        w, s = self.window[1], self.shift[1] % self.window[1]
        return [(0, w, 0)] if s == 0 else [(0, w - s, 0), (w - s, s, self._aligned(w - s))]

    def _aligned(self, slots):
        step = ALIGNED // math.gcd(ALIGNED, 2 * self.head_dim)
        return -(-slots // step) * step

    @property
    def run_slots(self):
        """Slots of a run."""
        _, tokens, slot = self.pieces[-1]
        return self._aligned(slot + tokens)

    @property
    def rows(self):
        """Slots of a window: whole tiles of a product."""
        return -(-self.window[0] * self.run_slots // ROWS) * ROWS

    @functools.cached_property
    def slots(self):
        """int [N]: the slot of each token."""
        run = np.concatenate([slot + np.arange(tokens) for _, tokens, slot in self.pieces])
        return (self.run_slots * np.arange(self.window[0])[:, None] + run).reshape(-1)

    @property
    def copies(self):
        """Copies that bring one tensor's part of a window."""
        return self.window[0] * len(self.pieces)

    @property
    def splits(self):
        """Blocks that share a head's windows: one takes every `splits`-th of them."""
        return min(self.batch * self.windows, -(-self.blocks // self.heads))

    def view(self, x):
        """[B, H, W, heads, d] as [rows of maps, tokens, channels]; dilated columns lie side by side in the channels."""
        B, H, W = x.shape[:3]
        return x.reshape(B * H, W // self.dilation[1], -1)

    def places(self, window, head):
        """Where the pieces of a window lie.

        Args:
          window: its number in the batch, in the order of `partition`; traced.
          head: traced.

        Yields:
          (slots as a slice, index into `view`) of each piece.
        """
        from jax.experimental import pallas as pl  # here, because it takes its time to import

        (H, W), (h, w), (dh, dw) = self.size, self.window, self.dilation
        left = window
        place = []
        for n in (dw, W // (w * dw), dh, H // (h * dh)):
            left, digit = jax.lax.div(left, n), jax.lax.rem(left, n)
            place.append(digit)
        phase_x, column, phase_y, band = place
        lanes = pl.ds(phase_x * (self.heads * self.head_dim) + head * self.head_dim, self.head_dim)
        for run in range(h):
            y = jax.lax.rem(band * (h * dh) + run * dh + phase_y + self.shift[0], H)
            for token, tokens, slot in self.pieces:
                x = jax.lax.rem(column * w + token + self.shift[1], W // dw)
                yield (
                    pl.ds(run * self.run_slots + slot, tokens),
                    (left * H + y, pl.ds(x, tokens), lanes),
                )

    def shared_memory(self, backward):
        """Bytes of shared memory that a block of the kernel takes, with a bias and with sides."""
        tensors, results = (4, 3) if backward else (3, 1)
        maps = (2 * tensors + results) * self.rows * self.head_dim * 2
        pairs = 4 * ROWS * self.rows + (2 * 2 * self.rows**2 if backward else 0)
        return maps + pairs + 4 * 4 * self.rows + OWN


def refusal(runs, q, k, v, bias, *, return_lse, other):
    """Why the kernel does not take a call, or None where it does.

    Args:
      runs: the layout; of one device's part of the operands.
      q, k, v: arrays or shapes [B, H, W, heads, head_dim].
      bias: array, shape or None.
      return_lse: whether the caller wants the log-sum-exp.
      other: names of options in use that only XLA has.
    """
    reason = beyond(runs, q, k, v, return_lse=return_lse, other=other) or hopper.refusal(q)
    if reason:
        return reason
    if bias is not None and len(bias.shape) == 4:
        return "a bias for each window: through XLA only"
    if max(runs.window) > COLUMNS or runs.rows > COLUMNS:
        return f"windows of {runs.window} take {runs.rows} rows of shared memory, and {COLUMNS} are the most"
    needed = runs.shared_memory(backward=runs.rows == ROWS)
    if needed > SMEM:
        return f"windows of {runs.window} by {runs.head_dim} channels need {needed} bytes of shared memory of {SMEM}"
    return None
