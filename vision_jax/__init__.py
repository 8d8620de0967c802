"""Vision architectures in JAX: one registry, shared primitives, kernels and a trainer.

The public names load on first use, so that `import vision_jax` costs nothing and touches no device.
"""

import importlib
import pathlib

_PUBLIC = {
    "InputError": "errors",
    "Train": "functional",
    "apply": "functional",
    "create_model": "weights.pretrained",
    "init": "functional",
    "jit": "functional",
    "list_models": "registry",
    "load_weights": "weights.load",
    "merge": "functional",
    "model_info": "registry",
    "preprocessing": "weights.pretrained",
    "replace": "functional",
    "save_weights": "weights.save",
    "split": "functional",
    "state_dict": "weights.convert",
}

__all__ = sorted(_PUBLIC)
__version__ = "0.1.0"

# In a checkout that was installed non-editably, `python -m vision_jax.main` run from its root finds this package
# without `vision_jax.kernels`, which lies beside it there: setup.py maps it.
_root = pathlib.Path(__file__).resolve().parent.parent
if (_root / "kernels" / "__init__.py").exists() and not (_root / "vision_jax" / "kernels").exists():
    __path__.append(str(_root))


def __getattr__(name):
    if name not in _PUBLIC:
        raise AttributeError(f"module 'vision_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(f"vision_jax.{_PUBLIC[name]}"), name)


def __dir__():
    return sorted([*globals(), *_PUBLIC])
