"""timm's builders of mobile networks, from blocks as it writes them and plain arguments."""

import functools

import timm.layers
import timm.layers.activations
from timm.models import _efficientnet_blocks, _efficientnet_builder, efficientnet, mobilenetv3
from torch import nn


def network(blocks, *, pooled=False, act="relu", tf=False, norm_width=0, se=None, **kwargs):
    """timm's EfficientNet, or with `pooled` its MobileNetV3 and squeeze-and-excitation; `se`: other fields of that."""
    if pooled:
        fields = dict(
            gate_layer=timm.layers.activations.HardSigmoid,  # torch's own has a sixth in float32 in its gradient
            force_act_layer=nn.ReLU,
            rd_round_fn=_efficientnet_builder.round_channels,
        )
        kwargs["se_layer"] = functools.partial(_efficientnet_blocks.SqueezeExcite, **{**fields, **(se or {})})
    norm = functools.partial(nn.BatchNorm2d, eps=1e-3 if tf else 1e-5)
    return (mobilenetv3.MobileNetV3 if pooled else efficientnet.EfficientNet)(
        _efficientnet_builder.decode_arch_def(blocks),
        act_layer=timm.layers.get_act_layer(act),
        norm_layer=functools.partial(timm.layers.GroupNormAct, group_size=norm_width) if norm_width else norm,
        pad_type="same" if tf else "",
        **kwargs,
    )
