"""MixNet: MixConv: Mixed Depthwise Convolutional Kernels (Tan & Le, 2019, arXiv:1907.09595).

A depthwise convolution's channels are dealt out to kernels of several sizes, 3x3 to 11x11: large ones for what is
coarse, small ones for what is fine, in one layer. Found by MnasNet's search. Official repository: tensorflow/tpu
(models/official/mnasnet/mixnet); compared here with timm's, whose `tf_` variants have its padding and epsilons; `xl`
and `xxl` are its own.
"""

from vision_jax.layers.channels import round_channels
from vision_jax.models.inverted_residuals import Blocks, InvertedResidualConfig, InvertedResiduals, scaled
from vision_jax.registry import register


def _row(repeats, kernels, stride, expansion, dim, se=0.0, *, splits=(1, 1)):
    """A row of bottlenecks; with SiLU where they have squeeze-and-excitation. Kernel sizes are from 3 on, by twos."""
    kernel_size = tuple(range(3, 3 + 2 * kernels, 2)) if kernels > 1 else 3
    act = "silu" if se else None
    return Blocks("mbconv", repeats, kernel_size, stride, expansion, dim, se, act=act, splits=splits)


_S = (
    (Blocks("separable", 1, 3, 1, 1, 16),),
    (_row(1, 1, 2, 6, 24, splits=(2, 2)), _row(1, 1, 1, 3, 24, splits=(2, 2))),
    (_row(1, 3, 2, 6, 40, 0.5), _row(3, 2, 1, 6, 40, 0.5, splits=(2, 2))),
    (_row(1, 3, 2, 6, 80, 0.25, splits=(1, 2)), _row(2, 2, 1, 6, 80, 0.25, splits=(1, 2))),
    (_row(1, 3, 1, 6, 120, 0.5, splits=(2, 2)), _row(2, 4, 1, 3, 120, 0.5, splits=(2, 2))),
    (_row(1, 5, 2, 6, 200, 0.5), _row(2, 4, 1, 6, 200, 0.5, splits=(1, 2))),
)
_M = (
    (Blocks("separable", 1, 3, 1, 1, 24),),
    (_row(1, 3, 2, 6, 32, splits=(2, 2)), _row(1, 1, 1, 3, 32, splits=(2, 2))),
    (_row(1, 4, 2, 6, 40, 0.5), _row(3, 2, 1, 6, 40, 0.5, splits=(2, 2))),
    (_row(1, 3, 2, 6, 80, 0.25), _row(3, 4, 1, 6, 80, 0.25, splits=(2, 2))),
    (_row(1, 1, 1, 6, 120, 0.5), _row(3, 4, 1, 3, 120, 0.5, splits=(2, 2))),
    (_row(1, 4, 2, 6, 200, 0.5), _row(3, 4, 1, 6, 200, 0.5, splits=(1, 2))),
)


class MixNet(InvertedResiduals):
    """Images [B, H, W, C] -> logits [B, num_classes]; of any size."""


def _mixnet(name, stages, params, gmacs, tag="", *, width=1.0, depth=1.0, **fields):
    config = InvertedResidualConfig(
        stages=scaled(stages, width, depth, rounding=round), head_dim=1536,
        stem_dim=round_channels((16 if stages is _S else 24) * width), **fields,
    )  # fmt: skip
    register(name, MixNet, config, params=params, gmacs=gmacs, paper="1907.09595", licence="apache-2.0", tags=(tag,))


_mixnet("mixnet_s", _S, 4_134_606, 0.24, "ft_in1k")
_mixnet("mixnet_m", _M, 5_014_382, 0.34, "ft_in1k")
_mixnet("mixnet_l", _M, 7_329_252, 0.56, "ft_in1k", width=1.3)
_mixnet("mixnet_xl", _M, 11_896_768, 0.90, "ra_in1k", width=1.6, depth=1.2)
_mixnet("mixnet_xxl", _M, 23_961_752, 1.99, width=2.4, depth=1.3)
_TF = dict(same_padding=True, epsilon=1e-3)
_mixnet("tf_mixnet_s", _S, 4_134_606, 0.24, "in1k", **_TF)
_mixnet("tf_mixnet_m", _M, 5_014_382, 0.34, "in1k", **_TF)
_mixnet("tf_mixnet_l", _M, 7_329_252, 0.56, "in1k", width=1.3, **_TF)
