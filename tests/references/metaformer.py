"""timm's MetaFormer with other sizes than its variants allow, and the two that it lacks.

IdentityFormer's and RandFormer's token mixers are written from arXiv:2210.13452, section 3.1: sail-sg/metaformer has
them, but as a file, not as a package.
"""

from unittest import mock

import timm
import torch
from timm.models import metaformer

__version__ = timm.__version__


class Identity(torch.nn.Module):
    def __init__(self, dim, **unused):
        super().__init__()

    def forward(self, x):
        return x


def random(tokens):
    """A token mixer for maps of this many pixels."""

    class Random(torch.nn.Module):
        def __init__(self, dim, **unused):
            super().__init__()
            matrix = torch.rand(tokens, tokens).softmax(-1)
            self.random_matrix = torch.nn.Parameter(matrix, requires_grad=False)

        def forward(self, x):
            return (self.random_matrix @ x.flatten(2).mT).mT.reshape(x.shape)

    return Random


def create_model(name, tokens=(196, 49), **kwargs):
    """A variant; `tokens` of RandFormer's last two stages."""
    kind, _, size = name.partition("_")
    ours = kind in ("identityformer", "randformer")
    with mock.patch.object(metaformer, "_create_metaformer", lambda variant, pretrained, **fields: fields):
        fields = getattr(metaformer, f"poolformerv2_{size}" if ours else name)()
    if ours:
        fields["token_mixers"] = [Identity] * 4
    if kind == "randformer":
        fields["token_mixers"][2:] = map(random, tokens)
    return metaformer.MetaFormer(**{**fields, **kwargs})
