"""transformers' PVT, where it departs from whai362/PVT (classification/pvt.py) set as there."""

import torch
import transformers

__version__ = transformers.__version__
DEPTHS = {"tiny": (2, 2, 2, 2), "small": (3, 4, 6, 3), "medium": (3, 4, 18, 3), "large": (3, 8, 27, 3)}


def create_model(name, **kwargs):
    """A variant; `kwargs` of transformers' config."""
    config = transformers.PvtConfig(**{"depths": DEPTHS[name.removeprefix("pvt_")], "num_labels": 1000, **kwargs})
    model = transformers.PvtForImageClassification(config)
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Conv2d):
            module.reset_parameters()
        if name.endswith(".self.layer_norm") or ("patch_embeddings" in name and name.endswith(".layer_norm")):
            module.eps = 1e-5
    return model
