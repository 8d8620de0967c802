"""Swin Transformer V2: Scaling Up Capacity and Resolution (Liu et al., 2022, arXiv:2111.09883).

Swin with three changes that let it grow: each branch is normalised at its end, inside the residual; attention scores
are cosines times a learned factor a head; and the bias of a relative position is what a small network makes of its
logarithm, so that weights move to other windows without resampling.

Official repository: microsoft/Swin-Transformer; compared here with timm's `swinv2_*` (its `swinv2_cr_*` are in
`swin_v2_cr.py`). As in the released code keys have no bias, the position bias goes through 16 sigmoid, and the extra
norms of the paper's largest models are left out.
"""

import dataclasses
import functools
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from vision_jax.functional import offer
from vision_jax.kernels import window_attention
from vision_jax.layers.attention import QKV
from vision_jax.layers.block import Block
from vision_jax.layers.drop import dropout
from vision_jax.layers.linear import Linear
from vision_jax.layers.mlp import Mlp
from vision_jax.layers.norm import LayerNorm, unit
from vision_jax.layers.patch import PatchMerging
from vision_jax.layers.position import log_spaced_offsets
from vision_jax.layers.relative_bias import relative_bias
from vision_jax.layers.window import crop_windows, pad_to_windows, window_probabilities
from vision_jax.models.swin import OFFICIAL, SIZES, TIMM, SwinConfig, SwinTransformer, huggingface
from vision_jax.parameters import Constant, param, zeros
from vision_jax.registry import check, register


@dataclasses.dataclass(frozen=True)
class SwinV2Config(SwinConfig):
    """A Swin Transformer V2.

    `pretrained_window_sizes`: for each stage the side of the window whose offsets its position bias was trained on;
    0 for the window itself.
    """

    img_size: int | tuple = 256
    window_size: int | tuple = 8
    pretrained_window_sizes: tuple = (0, 0, 0, 0)

    def __post_init__(self):
        super().__post_init__()
        check(
            len(self.pretrained_window_sizes) >= len(self.depths),
            f"pretrained_window_sizes={self.pretrained_window_sizes}: one for each of the {len(self.depths)} stages",
        )


class CosineWindowAttention(nnx.Module):
    """Self-attention inside windows, softmax(cos(q, k) / tau + bias) v (equation 2): [B, H, W, C] -> [B, H, W, C].

    Args:
      dim: channels.
      num_heads: number of heads; divides dim.
      window_size: (height, width) of a window, in tokens.
      shift: (rows, columns) by which the windows are shifted.
      pretrained_window_size: side of the window that the position bias was trained on; 0 for this one.
      proj_drop: dropout of the result.
      dtype: dtype of the computation; norms and softmax are at least float32.
    """

    def __init__(self, dim, num_heads, window_size, shift, *, pretrained_window_size, proj_drop, dtype):
        self.window_size, self.shift, self.proj_drop = tuple(window_size), tuple(shift), proj_drop
        self.qkv = QKV(dim, num_heads, dim // num_heads, bias=False, dtype=dtype)
        self.q_bias, self.v_bias = param((dim,), zeros), param((dim,), zeros)
        self.logit_scale = param((num_heads, 1, 1), Constant(math.log(10)))
        self.cpb_mlp = ContinuousBias(
            num_heads, window_size, pretrained_window_size, jnp.promote_types(dtype, jnp.float32)
        )
        self.proj = Linear(dim, dim, dtype=dtype)

    def __call__(self, x, train=None):
        q, k, v = self.project(pad_to_windows(x, self.window_size, self.shift))
        log_scale = self.logit_scale[...].reshape(-1).astype(jnp.promote_types(x.dtype, jnp.float32))
        scale = jnp.exp(jnp.minimum(log_scale, math.log(100)))  # tau is at least 0.01
        attend = functools.partial(
            window_attention, unit(q), unit(k), window_size=self.window_size, shift=self.shift,
            bias=self.position_bias(train), scale=scale,
        )  # fmt: skip
        offer(self, "probabilities", lambda: window_probabilities(attend, q, x.shape[1:3]))
        out = attend(v)
        out = crop_windows(out, x.shape[1:3], self.shift)
        return dropout(self.proj(out.reshape(x.shape)), self.proj_drop, train)

    def project(self, x):
        """Queries, keys and values, [B, H, W, heads, head_dim] each; keys have no bias."""
        q, k, v = self.qkv(x)
        q, v = (y + b[...].astype(y.dtype).reshape(y.shape[3:]) for y, b in ((q, self.q_bias), (v, self.v_bias)))
        return q, k, v

    def position_bias(self, train=None):
        """What the scores gain, [heads, N, N]."""
        return self.cpb_mlp()


class ContinuousBias(nnx.Module):
    """16 sigmoid(MLP(log-spaced offset)) for each query and key of a window, () -> [heads, N, N] (section 3.3)."""

    def __init__(self, num_heads, window_size, pretrained_window_size, dtype):
        self.window_size = tuple(window_size)
        self.reference = (pretrained_window_size,) * 2 if pretrained_window_size else self.window_size
        self.fc1 = Linear(2, 512, dtype=dtype)
        self.fc2 = Linear(512, num_heads, bias=False, dtype=dtype)

    def __call__(self):
        offsets = log_spaced_offsets(*self.window_size, self.reference).reshape(-1, 2)
        table = self.fc2(jax.nn.relu(self.fc1(offsets)))
        return 16 * jax.nn.sigmoid(relative_bias(table, self.window_size))


_CPB = ((r"\.cpb_mlp\.fc1\.", ".cpb_mlp.0."), (r"\.cpb_mlp\.fc2\.", ".cpb_mlp.2."))
_HF = (
    *huggingface("swinv2"),
    *_CPB,
    (r"\.cpb_mlp\.", ".continuous_position_bias_mlp."),
    (r"\.q_bias$", ".query.bias"),
    (r"\.v_bias$", ".value.bias"),
)


class SwinTransformerV2(SwinTransformer):
    """Images [B, H, W, C] -> logits [B, num_classes]."""

    inert = ()
    torch_names: ClassVar = {"timm": (*TIMM, *_CPB), "official": (*OFFICIAL, *_CPB), "hf": _HF}
    torch_ignore = (*SwinTransformer.torch_ignore, r"\.relative_coords_table$")

    def _block(self, stage, dim, window, shift):
        c = self.config
        attn = CosineWindowAttention(
            dim, c.num_heads[stage], window, shift, pretrained_window_size=c.pretrained_window_sizes[stage],
            proj_drop=c.proj_drop_rate, dtype=c.dtype,
        )  # fmt: skip
        mlp = Mlp(dim, int(dim * c.mlp_ratio), drop=c.proj_drop_rate, dtype=c.dtype)
        return Block(dim, attn=attn, mlp=mlp, norm=self._silent_norm, norm_last=True, dtype=c.dtype)

    def _merging(self, din, dout):
        return PatchMerging(din, dout, norm=self._norm, norm_last=True, dtype=self.config.dtype)

    def _silent_norm(self, dim):
        """A norm that starts at zero: every block starts as the identity."""
        return LayerNorm(dim, epsilon=1e-5, scale_init=zeros, dtype=self.config.dtype)


def _swin_v2(size, windows, img_size, params, gmacs, tag, **fields):
    embed_dim, depths, num_heads = SIZES[size]
    register(
        f"swinv2_{size}_{windows}", SwinTransformerV2,
        SwinV2Config(img_size=img_size, embed_dim=embed_dim, depths=depths, num_heads=num_heads, **fields),
        params=params, gmacs=gmacs, paper="2111.09883", licence="mit", crop_pct=1.0 if img_size == 384 else 0.9,
        tags=(tag,),
    )  # fmt: skip


_IN1K, _IN22K, _FINETUNED = "ms_in1k", "ms_in22k", "ms_in22k_ft_in1k"
_TO = {"pretrained_window_sizes": (12, 12, 12, 6)}  # trained on windows of 12 and maps of 6 x 6 last

_swin_v2("tiny", "window8_256", 256, 28_347_154, 5.9, _IN1K, window_size=8)
_swin_v2("tiny", "window16_256", 256, 28_347_154, 6.6, _IN1K, window_size=16)
_swin_v2("small", "window8_256", 256, 49_728_418, 11.5, _IN1K, window_size=8)
_swin_v2("small", "window16_256", 256, 49_728_418, 12.6, _IN1K, window_size=16)
_swin_v2("base", "window8_256", 256, 87_918_816, 20.3, _IN1K, window_size=8)
_swin_v2("base", "window16_256", 256, 87_918_816, 21.8, _IN1K, window_size=16)
_swin_v2("base", "window12_192", 192, 109_280_841, 11.9, _IN22K, window_size=12, num_classes=21841)
_swin_v2("base", "window12to16_192to256", 256, 87_918_816, 21.8, _FINETUNED, window_size=16, **_TO)
_swin_v2("base", "window12to24_192to384", 384, 87_918_816, 54.7, _FINETUNED, window_size=24, **_TO)
_swin_v2("large", "window12_192", 192, 228_772_549, 26.2, _IN22K, window_size=12, num_classes=21841)
_swin_v2("large", "window12to16_192to256", 256, 196_739_932, 47.5, _FINETUNED, window_size=16, **_TO)
_swin_v2("large", "window12to24_192to384", 384, 196_739_932, 115.4, _FINETUNED, window_size=24, **_TO)
