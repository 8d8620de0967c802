"""How the GPU kernels cut tokens and heads into tiles, and which calls they take."""

import dataclasses

from vision_jax.kernels import hopper
from vision_jax.kernels.hopper import MULTIPROCESSORS, ROWS
from vision_jax.kernels.limits import unequal
from vision_jax.kernels.packed_heads import Heads

BLOCKS = 4 * MULTIPROCESSORS  # blocks of the grid: a few for each multiprocessor, to fill each other's waiting


@dataclasses.dataclass(frozen=True)
class HeadPacks:
    """The layout of a call: tiles of 64 tokens by the 64 channels of one head or of several side by side."""

    batch: int
    tokens: int
    heads: Heads

    @property
    def packs(self):
        """Packs of heads."""
        return self.heads.channels // ROWS

    @property
    def per_pack(self):
        """Heads of a pack."""
        return ROWS // self.heads.head_dim

    @property
    def tiles(self):
        """Tiles of tokens, the last one filled up with zeros."""
        return -(-self.tokens // ROWS)

    @property
    def parts(self):
        """Blocks that share the tokens of an image and pack: one takes every `parts`-th tile."""
        return min(self.tiles, -(-BLOCKS // (self.batch * self.packs)))


def refusal(q, k, v, shape, *, causal, log_decay, normalizer, epsilon, has_state, chunk_size):
    """Why the GPU kernels do not take a call, or None where they do; arguments as `fast_path.refusal` has them."""
    reason = unequal(q, k, v, *(normalizer if isinstance(normalizer, (tuple, list)) else ())) or hopper.refusal(q)
    if reason:
        return reason
    if causal and normalizer is not None:
        return "causal with a normalizer: through XLA only"
    if causal and log_decay is not None and log_decay.ndim == 4:
        return "decays of single channels: through XLA only"
    if chunk_size not in (None, ROWS):
        return f"chunk_size={chunk_size}: the kernel's is {ROWS}"
    if has_state and not causal:
        return "a state without causal: through XLA only"
    if not isinstance(epsilon, (int, float)):
        return f"epsilon must be a Python number, not {type(epsilon).__name__}"
    heads = Heads(*shape[-2:])
    if ROWS % heads.head_dim:
        return f"head_dim={heads.head_dim}: 16, 32 or 64"
    if heads.channels % ROWS:
        return f"{heads.count} heads of {heads.head_dim} channels do not fill packs of {ROWS}"
    return None
