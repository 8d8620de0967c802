"""transformers' CvT with the activation of microsoft/CvT (lib/models/cls_cvt.py)."""

import torch
import transformers

__version__ = transformers.__version__
WIDE = dict(depth=[2, 2, 20], embed_dim=[192, 768, 1024], num_heads=[3, 12, 16])
VARIANTS = {"cvt_13": dict(depth=[1, 2, 10]), "cvt_21": dict(depth=[1, 4, 16]), "cvt_w24": WIDE}


class QuickGELU(torch.nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


def create_model(name, **kwargs):
    """A variant; `kwargs` of transformers' config."""
    config = transformers.CvtConfig(**{"num_labels": 1000, **VARIANTS[name], **kwargs})
    model = transformers.CvtForImageClassification(config)
    for module in list(model.modules()):
        if hasattr(module, "activation"):
            module.activation = QuickGELU()
    return model
