"""Makes goldens from the installed references: `python tests/make_goldens.py [CASE ...]`, all cases by default.

Needs the [parity] extra; cases of "official.FAMILY" also a module of that name on PYTHONPATH, around a checkout of the
authors' code, with `create_model(name, **kwargs)` and a `__version__`; NAT's the authors' files, whose folder
VISION_JAX_NAT names. VISION_JAX_PARITY_PREIMPORT names a module to import first, where torchvision does not load.
"""

import functools
import importlib
import math
import os
import sys

import numpy as np

if first := os.environ.get("VISION_JAX_PARITY_PREIMPORT"):
    importlib.import_module(first)

import torch

import golden
from golden_cases import CASES

DISTINCT, AGREES = 1e-2, 1e-5  # two images differ by more; float32 and float64 of the reference by less


def build(case, **kwargs):
    """The reference's module."""
    kwargs = {**case.kwargs, **kwargs}
    if case.maker:
        module, name = case.maker.split(":")
        return getattr(importlib.import_module(module), name)(**kwargs)
    return create(case.theirs, **kwargs)


def create(theirs, **kwargs):
    """A reference as `Case.theirs` names it, made small by arguments or by fields of its config."""
    module, name = theirs.split(":")
    return importlib.import_module(module).create_model(name, **kwargs)


def logits_of(model, images):
    """What the reference's head gives; transformers wraps it."""
    out = model(images)
    out = getattr(out, "logits", out)
    return torch.cat(out, dim=1) if isinstance(out, tuple) else out  # two heads, one loss


def fill(model, case):
    """Gives every leaf its value; before the first evaluation, at which some references cache what they derive."""
    filled = set()  # what modules share keeps its first name's
    with torch.no_grad():
        for name, leaf in model.state_dict().items():
            if leaf.is_floating_point() and not golden.STATISTICS.search(name) and leaf.data_ptr() not in filled:
                filled.add(leaf.data_ptr())
                leaf.copy_(torch.from_numpy(golden.fill(name, tuple(leaf.shape), case.gain)))
    return model


def batch_norms(model):
    """The modules that keep running statistics."""
    return [module for module in model.modules() if getattr(module, "running_mean", None) is not None]


def set_statistics(model, images):
    """Running statistics of one train-mode pass, kept as float32."""
    momenta = [module.momentum for module in batch_norms(model)]
    for module in batch_norms(model):
        module.momentum = 1.0
    with torch.no_grad():
        logits_of(model.train(), images)
        for module, momentum in zip(batch_norms(model), momenta, strict=True):
            module.momentum = momentum
            for statistic in (module.running_mean, module.running_var):
                statistic.copy_(statistic.float())
            module.num_batches_tracked.zero_()


def cast(model, dtype):
    """The model in another dtype. What a reference derives in float32, buffers and positions, is then in float64."""
    model, narrow = model.to(dtype), torch.float32

    def widen(*_):
        torch.float32 = torch.float64

    def restore(*_):
        torch.float32 = narrow

    if dtype == torch.float64:
        widen()
        try:
            for module in model.modules():
                _doubled(getattr(module, "_init_buffers", lambda: None))
        finally:
            restore()
        for module in model.modules():
            if type(module).__name__ == "PositionalEncodingFourier":
                module.register_forward_pre_hook(widen)
                module.register_forward_hook(restore)
            if type(module).__name__ == "RotaryEmbeddingMixed":
                module.get_embed = functools.partial(_doubled, module.get_embed)
            if hasattr(module, "_compute_lambda"):
                module._compute_lambda = functools.partial(_doubled, module._compute_lambda)
    return model


def _doubled(call, *args, **kwargs):
    """A call that finds `.float()` to be `.double()`."""
    torch.Tensor.float, narrow = torch.Tensor.double, torch.Tensor.float
    try:
        return call(*args, **kwargs)
    finally:
        torch.Tensor.float = narrow


def forward(model, case, images):
    """(logits, maps as [N, H, W, C]) in evaluation mode."""
    kept = []
    with torch.no_grad():
        if not case.maps:
            if hasattr(model.eval(), "forward_intermediates"):
                maps = model.forward_intermediates(images, intermediates_only=True)
            else:
                maps = model(images, output_hidden_states=True).hidden_states
            return logits_of(model, images), [m.permute(0, 2, 3, 1) for m in maps]
        modules = dict(model.named_modules())
        hooks = [modules[name].register_forward_hook(lambda _, __, out: kept.append(as_map(out))) for name in case.maps]
        logits = logits_of(model.eval(), images)
        for hook in hooks:
            hook.remove()
        return logits, kept


def as_map(out):
    """A hooked module's output, the first where there are several; tokens as a square map, without leading ones."""
    out = out[0] if isinstance(out, tuple) else out
    if out.ndim == 4:
        return out
    side = math.isqrt(out.shape[1])
    return out[:, out.shape[1] - side * side :].reshape(len(out), side, side, -1)


def check_sight(case, tensors, narrow):
    """Refuses a golden that could not tell two images apart, or that rounding decides."""
    for name, wide in tensors.items():
        distance = golden.error(wide[:1], wide[1:2])
        if distance < DISTINCT:
            raise SystemExit(f"{case.ours}: {name} differs by only {distance:.1e} between two images; change the gain")
        if (rounding := golden.rounding(narrow[name], wide)) > AGREES:
            raise SystemExit(f"{case.ours}: {name} differs by {rounding:.1e} in float32; change the gain")


def make(key, case):
    """One golden: values, training, names and shapes, and what the modules say of themselves."""
    model = fill(build(case), case)
    images = torch.from_numpy(golden.images(case.size)).permute(0, 3, 1, 2)
    set_statistics(model.double(), images.double())
    narrow, wide = (forward(cast(model, dtype), case, images.to(dtype)) for dtype in (torch.float32, torch.float64))
    tensors, narrow = ({"logits": out[0], **{f"map{i}": m for i, m in enumerate(out[1])}} for out in (wide, narrow))
    tensors, narrow = ({k: v.numpy() for k, v in side.items()} for side in (tensors, narrow))
    check_sight(case, tensors, narrow)
    state = model.state_dict()
    arrays = {name: golden.sample(value) for name, value in tensors.items()}
    arrays |= {f"before/{name}": leaf.numpy().astype(np.float32) for name, leaf in state.items() if "running_" in name}
    for module in model.modules():  # whatever is random is off, and training is on
        if "drop" in type(module).__name__.lower():
            module.p = module.drop_prob = 0.0
    if hasattr(model, "set_distilled_training"):
        model.set_distilled_training()
    logits = logits_of(model.train(), images.double())
    (logits * torch.from_numpy(golden.loss_weights(tuple(logits.shape)))).sum().backward()
    arrays["train_logits"] = golden.sample(logits.detach().numpy())
    gradients = {
        name: golden.measure(name, leaf.grad.numpy()) for name, leaf in model.named_parameters() if leaf.requires_grad
    }
    arrays["gradients"] = np.array(list(gradients.values()))
    after = model.state_dict()
    arrays |= {f"after/{name}": after[name].numpy() for name in after if "running_" in name}
    record = {
        "reference": case.theirs,
        "versions": {name: importlib.import_module(name).__version__ for name in (case.theirs.split(":")[0], "torch")},
        "kwargs": case.kwargs,
        "gain": case.gain,
        "map_shapes": [list(value.shape) for name, value in tensors.items() if name != "logits"],
        "gradients": list(gradients),
        "shapes": {name: list(leaf.shape) for name, leaf in state.items() if leaf.is_floating_point()},
        "drop_path": case.drop_path or drop_path_rates(build(case, drop_path_rate=0.3)),
        "modules": modules_said(model),
        "init": init_statistics(case),
    }
    golden.save(key, arrays, record)
    print(f"{key}: {(golden.DIRECTORY / f'{key}.npz').stat().st_size / 1024:.0f} kB, {len(gradients)} parameters")


def drop_path_rates(model):
    """The rate of every stochastic depth of the reference, in the order of its modules."""
    return [float(m.drop_prob or 0) for m in model.modules() if type(m).__name__.endswith("DropPath")]


def modules_said(model):
    """Name -> what a convolution or a norm was built with."""
    said = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Conv2d) or type(module).__name__ == "CondConv2d":
            pairs = {key: list(getattr(module, key)) for key in ("kernel_size", "stride", "dilation")}
            padding = module.padding if isinstance(module.padding, str) else list(module.padding)
            said[name] = {**pairs, "padding": padding, "groups": module.groups}
        elif hasattr(module, "eps") and any(True for _ in module.parameters(recurse=False)):
            said[name] = {"epsilon": module.eps}
            if hasattr(module, "momentum"):
                said[name]["momentum"] = module.momentum
    return said


def init_statistics(case):
    """Name -> (mean, standard deviation) of every leaf of the full-size reference as it initialises itself."""
    torch.manual_seed(0)
    drawn = {name: usual(leaf) for name, leaf in create(case.theirs, **case.init).named_parameters()}
    return {name: [leaf.mean().item(), leaf.std(correction=0).item()] for name, leaf in drawn.items()}


def usual(leaf):
    """The values within twenty deviations: where a uniform draw is exactly 0, a truncated normal gives its bound."""
    leaf = leaf.detach().double()
    return leaf[(leaf - leaf.mean()).abs() <= 20 * leaf.std(correction=0)]


if __name__ == "__main__":
    for key in sys.argv[1:] or CASES:
        make(key, CASES[key])
