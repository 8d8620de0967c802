"""ResNet: Deep Residual Learning for Image Recognition (He et al., 2016, arXiv:1512.03385).

Layers learn a residual beside an identity shortcut. With it come ResNet-C, -D, -S and -T, whose stem is three 3x3
convolutions and whose shortcuts (D, T) pool before they project (Bag of Tricks: He et al., 2018, arXiv:1812.01187);
Wide ResNet, with wider bottlenecks (Zagoruyko & Komodakis, 2016, arXiv:1605.07146); and ResNeXt, with grouped ones (Xie
et al., 2017, arXiv:1611.05431). Official repositories: KaimingHe/deep-residual-networks, facebookresearch/ResNeXt;
compared here with timm's. As in the released torch and timm weights, a bottleneck strides in its 3x3 convolution
("v1.5"), where the paper strides in the first 1x1. The networks with Batch-Channel Normalization and standardised
filters (Qiao et al., 2019, arXiv:1911.09738) are compared with joe-siyuan-qiao/Batch-Channel-Normalization.

What grew of it, all compared with timm's:

- SE-ResNet and SENet-154 (Hu et al., 2018, arXiv:1709.01507), ECA-ResNet (Wang et al., 2020, arXiv:1910.03151):
  attention over channels before the shortcut is added. Two of the latter are pruned.
- Blurs (Zhang, 2019, arXiv:1904.11486; `resnetblur`) or means (`resnetaa`) in place of strides.
- ResNet-RS (Bello et al., 2021, arXiv:2103.07579): ResNet-D with squeeze-and-excitation, whose stem pools by a strided
  convolution; deeper, at larger images.
- SKNet (Li et al., 2019, arXiv:1903.06586; `selective`), Res2Net (Gao et al., 2019, arXiv:1904.01169; `scales`) and
  ResNeSt (Zhang et al., 2020, arXiv:2004.08955; `split_attention`), each with something else for the 3x3 convolution.
  Drop-path drops the branch of a ResNeSt's block, too, where timm's drops the input of projected shortcuts.
"""

from vision_jax.models.resnet import scales, selective, split_attention, variants  # noqa: F401, register them
from vision_jax.models.resnet.model import ResNet, ResNetConfig

__all__ = ["ResNet", "ResNetConfig"]
