"""Which calls the TPU kernels take."""

from vision_jax.kernels.limits import unequal
from vision_jax.kernels.linear_attention import chunks
from vision_jax.kernels.packed_heads import Heads

LANES = 1024  # channels of a step, at most
HEADS = 16  # of a step of the causal form, at most: each is a piece of the program
DECAYED = 512  # channels of a step, at most, where each decays by itself: a chunk is held decayed in seven ways
SUBLANES = 8  # rows of a register


def refusal(q, k, v, shape, *, causal, log_decay, normalizer, epsilon, has_state, chunk_size):
    """Why the kernels do not take a call, or None where one does.

    Args:
      q, k, v: arrays or shapes [B, *spatial, heads, head_dim].
      shape: q's on one device.
      causal, log_decay, normalizer, epsilon, chunk_size: as the public function takes them.
      has_state: whether a state enters or is returned.
    """
    reason = unequal(q, k, v, *(normalizer if isinstance(normalizer, (tuple, list)) else ()))
    if reason:
        return reason
    heads = Heads(*shape[-2:])
    if heads.lanes > LANES:
        return f"{heads.count} heads of {heads.head_dim} do not divide into blocks of at most {LANES} channels"
    if not isinstance(epsilon, (int, float)):
        return f"epsilon must be a Python number, not {type(epsilon).__name__}"
    if causal:
        return _causal(heads, log_decay, normalizer, chunk_size)
    return "a state without causal: through XLA only" if has_state else None


def only_by_name(causal, rotates):
    """Why a call that the kernel takes gets it by its name only, or None.

    The non-causal form is two products with a small state. XLA fuses them with the features and projections around
    them, as nothing can be fused with a kernel: some of the compiled blocks of models (docs/benchmarks.md) move fewer
    bytes across HBM so. Where queries and keys are rotated, XLA writes rotated copies, and moves twice as many bytes.

    Args:
      causal: as the public function takes it.
      rotates: whether the kernel rotates.
    """
    return None if causal or rotates else "all see all and nothing is rotated in the kernel, so that XLA may move less"


def _causal(heads, log_decay, normalizer, chunk_size):
    if normalizer is not None and normalizer is not True:
        return "causal with a normalizer (qn, kn): through XLA only"
    if log_decay is not None and log_decay.ndim == 4 and heads.lanes > DECAYED:
        return f"decays of single channels of {heads.lanes} in a block, more than {DECAYED}"
    if chunk_size not in (None, largest := chunks.largest(heads)):
        return f"chunk_size={chunk_size}: the kernel's is {largest}"
    if heads.head_dim % SUBLANES:
        return f"causal with head_dim={heads.head_dim}, no multiple of {SUBLANES}: through XLA only"
    if heads.in_step > HEADS:
        return f"causal with {heads.in_step} heads in a block of {heads.lanes} channels, more than {HEADS}"
    return None
