"""timm's MLPs of patches, whose registered functions take neither another depth nor another width."""

import functools

from timm.layers import GatedMlp, GluMlp
from timm.models import mlp_mixer
from torch import nn

gmixer = functools.partial(mlp_mixer.MlpMixer, mlp_layer=GluMlp, act_layer=nn.SiLU)
resmlp = functools.partial(mlp_mixer.MlpMixer, block_layer=mlp_mixer.ResBlock, norm_layer=mlp_mixer.Affine)
gmlp = functools.partial(mlp_mixer.MlpMixer, block_layer=mlp_mixer.SpatialGatingBlock, mlp_layer=GatedMlp)
