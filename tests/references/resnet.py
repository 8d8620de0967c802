"""timm's ResNets with the layers of joe-siyuan-qiao/Batch-Channel-Normalization in place of its own."""

import timm
import torch
from torch import nn


class StandardizedConv(nn.Conv2d):
    def forward(self, x):
        w = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        w = w / (w.flatten(1).var(1) + 1e-5).sqrt().reshape(-1, 1, 1, 1)
        return self._conv_forward(x, w, None)


class BatchChannelNorm(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(1, 32, 1)), nn.Parameter(torch.zeros(1, 32, 1))
        self.pbn = nn.BatchNorm2d(dim)

    def forward(self, x):
        normal = nn.functional.group_norm(self.pbn(x), 32).reshape(len(x), 32, -1)
        return (normal * self.weight + self.bias).reshape(x.shape)


def create_model(name):
    """A variant of which timm has the network."""
    model = timm.create_model(name.removesuffix("_bcn_ws"))
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.Conv2d):
            how = dict(stride=module.stride, padding=module.padding, groups=module.groups, bias=False)
            new = StandardizedConv(module.in_channels, module.out_channels, module.kernel_size, **how)
        elif isinstance(module, nn.BatchNorm2d):
            new = BatchChannelNorm(module.num_features)
        else:
            continue
        parent, _, child = path.rpartition(".")
        setattr(model.get_submodule(parent), child, new)
    return model
