"""The floors of the house: each module imports only its own floor and those below; files stay a sitting's reading.

`floor_violations` reads every import of a source, also those inside functions and under `if TYPE_CHECKING`. What a
module imports by name through `importlib`, as the registry does, is how a lower floor reaches a higher one on purpose.
"""

import ast
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent

FLOORS = {
    "errors": 0,
    "names": 0,
    "mesh": 0,
    "devices": 0,
    "config_fields": 0,
    "kernels": 1,
    "functional": 1,
    "parameters": 1,
    "registry": 1,
    "layers": 2,
    "models": 3,
    "weights": 4,
    "data": 4,
    "parallel": 4,
    "tasks": 5,
    "train": 6,
    "main": 7,
    "tools": 7,
}
FRONT = 7  # `import vision_jax` itself offers every floor, so only the top may take it
NEVER = {"torch", "timm", "tensorflow", "transformers"}
KERNELS_MAY = {"jax", "jaxlib", "numpy"} | sys.stdlib_module_names
MAX_LINES = {"vision_jax/models": 400, "vision_jax/layers": 250, "configs": 120}
MAX_LINES_ELSEWHERE = 500

SHARED = (["base"], ["conv_attention"], ["inverted_residuals"])  # parts of models, no families
# models that change a part of another family's
REVISES = {"vitamin": "vit", "beit": "vit", "eva": "vit", "vit_relpos": "vit", "swin_v2_cr": "swin_v2"}


def module_of(path):
    """`kernels/a/b.py` -> ["vision_jax", "kernels", "a", "b"]; a package's `__init__.py` is the package."""
    parts = list(pathlib.PurePosixPath(path).with_suffix("").parts)
    if parts[0] == "kernels":
        parts.insert(0, "vision_jax")
    return parts[:-1] if parts[-1] == "__init__" else parts


def imports_of(path, tree):
    """Yields (line, absolute dotted name as parts) of every import. `from a import b` is a.b, whatever b is."""
    package = module_of(path) if path.endswith("__init__.py") else module_of(path)[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name.split(".")
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = base + (node.module.split(".") if node.module else [])
            for alias in node.names:
                yield node.lineno, [*base, alias.name]


def floor_violations(path, source):
    """The imports of a module that the floors forbid.

    Args:
      path: the file, relative to the checkout's root, under `vision_jax/` or `kernels/`.
      source: its text.

    Returns:
      A list of messages, each with the line.
    """
    module = module_of(path)
    if module == ["vision_jax"]:
        return []  # the front names every floor, and loads them on first use
    room = module[1]
    if room not in FLOORS:
        return [f"{path}: `{room}` is on no floor: add it to FLOORS in tests/test_architecture.py and CONTRIBUTING.md"]

    found = []
    for line, target in imports_of(path, ast.parse(source)):
        name, top = ".".join(target), target[0]
        if top in NEVER:
            found.append(f"{path}:{line}: imports {name}; the library runs without {top}")
        elif top == "kernels":
            found.append(f"{path}:{line}: imports {name}; installed, that is vision_jax.kernels")
        elif top == "vision_jax":
            above = target[1] if len(target) > 1 else None
            floor = FLOORS.get(above, FRONT)
            if floor > FLOORS[room]:
                found.append(f"{path}:{line}: {room} (floor {FLOORS[room]}) imports {name} (floor {floor})")
            elif room == "kernels" and above != "kernels" and floor > 0:
                found.append(f"{path}:{line}: kernels import {name}; of vision_jax they may take floor 0 only")
            elif room == "models" and above == "models" and not _same_family(module, target):
                found.append(f"{path}:{line}: a family imports {name}; what two share is in layers/ or models/base.py")
        elif room == "kernels" and top not in KERNELS_MAY:
            found.append(f"{path}:{line}: kernels import {name}; they may take jax and numpy only")
    return found


def _same_family(module, target):
    family, other = module[2:3], target[2:3]
    # swin_v2 changes what swin is
    revises = bool(family and other) and (family[0].startswith(f"{other[0]}_v") or REVISES.get(family[0]) == other[0])
    return other in SHARED or (bool(family) and other == family) or revises


def checkpoint_calls(path, source):
    """Where a model rematerialises by itself instead of leaving it to `layers/stack.py`."""
    tree = ast.parse(source)
    lines = [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and node.attr in ("checkpoint", "remat")
        and ast.unparse(node.value).split(".")[0] in ("jax", "ad_checkpoint", "nnx", "flax")
    ]
    lines += [
        line
        for line, target in imports_of(path, tree)
        if target[0] in ("jax", "flax") and target[-1] in ("checkpoint", "remat")
    ]
    return [f"{path}:{line}: jax.checkpoint in a model; layers/stack.py runs blocks, with remat=" for line in lines]


def too_long(path, source):
    """The file's length where it is over its limit."""
    limit = next((n for place, n in MAX_LINES.items() if path.startswith(f"{place}/")), MAX_LINES_ELSEWHERE)
    lines = len(source.splitlines())
    return [f"{path}: {lines} lines, more than {limit}"] if lines > limit else []


def sources(*places):
    """Yields (path relative to the root, text) of every Python file of these directories."""
    for place in places:
        for file in sorted((ROOT / place).rglob("*.py")):
            yield file.relative_to(ROOT).as_posix(), file.read_text(encoding="utf-8")


def test_imports_go_downwards():
    library = list(sources("vision_jax", "kernels"))
    assert {"vision_jax/errors.py", "kernels/__init__.py"} <= {path for path, _ in library}
    assert [message for path, source in library for message in floor_violations(path, source)] == []


def test_models_leave_rematerialisation_to_the_stack():
    assert [m for path, source in sources("vision_jax/models") for m in checkpoint_calls(path, source)] == []


def test_files_are_read_at_a_sitting():
    everything = [*sources("vision_jax", "kernels", "configs", "tests"), ("setup.py", (ROOT / "setup.py").read_text())]
    assert [message for path, source in everything for message in too_long(path, source)] == []


def test_contributing_lists_the_floors():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = [
        row.split("|")[1:3] for row in text.splitlines() if row.startswith("|") and row.split("|")[1].strip().isdigit()
    ]
    listed = {room.strip().strip("`"): int(floor) for floor, rooms in rows for room in rooms.split(",")}
    assert listed == FLOORS


@pytest.mark.parametrize(
    ("path", "source", "message"),
    [
        ("vision_jax/layers/norm.py", "from vision_jax.models import vit", "layers (floor 2) imports"),
        ("vision_jax/layers/norm.py", "import vision_jax.train.loop", "layers (floor 2) imports"),
        ("vision_jax/layers/norm.py", "from ..weights import read", "layers (floor 2) imports vision_jax.weights.read"),
        ("vision_jax/layers/__init__.py", "from ..data import ops", "layers (floor 2) imports vision_jax.data.ops"),
        ("vision_jax/data/ops.py", "def f():\n    from vision_jax import tasks", "ops.py:2: data (floor 4)"),
        ("vision_jax/data/ops.py", "if TYPE_CHECKING:\n    from vision_jax.train import loop", "ops.py:2: data"),
        ("vision_jax/names.py", "import vision_jax.layers", "names (floor 0) imports"),
        ("vision_jax/train/loop.py", "import vision_jax as vj", "train (floor 6) imports vision_jax (floor 7)"),
        ("vision_jax/train/loop.py", "from vision_jax import create_model", "train (floor 6) imports"),
        ("vision_jax/layers/norm.py", "import vision_jax.novelty", "imports vision_jax.novelty (floor 7)"),
        ("vision_jax/models/swin.py", "from vision_jax.models.vit import Block", "a family imports"),
        ("vision_jax/models/swin.py", "from . import vit", "a family imports vision_jax.models.vit"),
        ("vision_jax/models/__init__.py", "from vision_jax.models import vit", "a family imports"),
        ("kernels/linear_attention/xla.py", "from vision_jax import functional", "they may take floor 0 only"),
        ("kernels/linear_attention/xla.py", "from ...layers import norm", "kernels (floor 1) imports"),
        ("kernels/linear_attention/xla.py", "import flax.nnx", "they may take jax and numpy only"),
        ("vision_jax/layers/window.py", "from kernels import window_attention", "that is vision_jax.kernels"),
        ("vision_jax/weights/read.py", "def f():\n    import torch.nn", "read.py:2: imports torch.nn"),
        ("vision_jax/tools/export.py", "from timm import create_model", "the library runs without timm"),
        ("vision_jax/data/tfds.py", "import tensorflow as tf", "the library runs without tensorflow"),
        ("kernels/linear_attention/xla.py", "import transformers", "the library runs without transformers"),
        ("vision_jax/novelty.py", "", "add it to FLOORS in tests/test_architecture.py"),
        ("vision_jax/novelty/__init__.py", "", "`novelty` is on no floor"),
    ],
)
def test_forbidden_import_is_found(path, source, message):
    found = floor_violations(path, source)
    assert len(found) == 1
    assert message in found[0]


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("vision_jax/__init__.py", "from vision_jax import train, tools"),
        ("vision_jax/names.py", "import jax\nfrom vision_jax import errors"),
        ("vision_jax/layers/norm.py", "from flax import nnx\nfrom vision_jax.layers import param\nfrom . import drop"),
        ("vision_jax/layers/window.py", "from vision_jax.kernels.window_attention import window_attention"),
        ("vision_jax/models/swin.py", "from vision_jax.models.base import Model\nfrom . import base"),
        ("vision_jax/models/former/stem.py", "from vision_jax.models.former import block\nfrom . import mixer"),
        ("vision_jax/registry.py", "import importlib\nimportlib.import_module('vision_jax.models.vit')"),
        ("vision_jax/data/tfds.py", "def f():\n    import tensorflow_datasets"),
        ("vision_jax/tools/info.py", "import vision_jax as vj"),
        ("kernels/linear_attention/__init__.py", "import functools\nimport jax.numpy as jnp\nfrom . import xla"),
        ("kernels/linear_attention/tpu.py", "from jax.experimental import pallas\nfrom vision_jax import errors, mesh"),
        ("kernels/linear_attention/xla.py", "import numpy as np\nfrom vision_jax.kernels import dispatch"),
    ],
)
def test_allowed_import_is_not(path, source):
    assert floor_violations(path, source) == []


@pytest.mark.parametrize(
    "source",
    [
        "y = jax.checkpoint(block)(x)",
        "@jax.remat\ndef f(x): ...",
        "nnx.remat(Block)",
        "from jax import checkpoint",
        "from flax.nnx import remat",
        "import jax.ad_checkpoint\njax.ad_checkpoint.checkpoint(f)",
        "from jax.ad_checkpoint import checkpoint as ckpt",
    ],
)
def test_checkpoint_in_a_model_is_found(source):
    assert len(checkpoint_calls("vision_jax/models/vit.py", source)) == 1


def test_remat_as_an_option_is_allowed():
    source = "from jax.ad_checkpoint import checkpoint_name\nStack(blocks, remat=config.remat)\nself.remat = remat"
    assert checkpoint_calls("vision_jax/models/vit.py", source) == []


@pytest.mark.parametrize(
    ("path", "limit"),
    [
        ("vision_jax/models/swin.py", 400),
        ("vision_jax/layers/norm.py", 250),
        ("configs/digits.py", 120),
        ("vision_jax/train/loop.py", 500),
        ("kernels/linear_attention/tpu.py", 500),
        ("tests/test_models.py", 500),
    ],
)
def test_too_long_a_file_is_found(path, limit):
    assert too_long(path, "x = 1\n" * limit) == []
    assert len(too_long(path, "x = 1\n" * (limit + 1))) == 1
