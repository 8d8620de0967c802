"""What every test stands on: eight simulated CPU devices, cheap compiles, the `fast` marker."""

import gc
import importlib
import os
import pathlib

import hypothesis
import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent

# JAX reads these when it is imported, which no conftest does. Subprocesses inherit them. What the caller has set wins,
# so `JAX_PLATFORMS=cuda pytest tests/kernels` reaches a GPU. Logs are left alone: the partitioner reports
# rematerialisations there, and at JAX's own level nothing else is said.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = " ".join(
    [
        "--xla_force_host_platform_device_count=8",
        # LLVM's optimisations change no more than the last digits, and the tests compile more than they run: the
        # gradient of a six-block window-attention model compiles in 0.66 s instead of 1.08 s and runs in 110 ms
        # instead of 80 ms.
        "--xla_backend_optimization_level=0",
        os.environ.get("XLA_FLAGS", ""),  # last, because the last of two equal flags counts
    ]
).strip()

# Compiled programs are kept between runs and shared by the workers; the same gradient then loads in 0.15 s. The key
# holds the versions and the flags. A half-written entry costs a warning and a compile. The place is pytest's own
# cache directory, so that `pytest --cache-clear` empties it.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".pytest_cache" / "d" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

# Tracing makes many small objects and few cycles: by default a third of the suite's time would go to looking for them.
gc.set_threshold(10_000, 20, 100)

# A first example compiles, so no deadline; the same examples every time, so that a failure is the change's.
hypothesis.settings.register_profile("vision_jax", deadline=None, derandomize=True)
hypothesis.settings.load_profile("vision_jax")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Marks `fast` whatever is not marked otherwise, before `-m` chooses."""
    for item in items:
        if not any(item.get_closest_marker(name) for name in ("heavy", "slow", "parity")):
            item.add_marker("fast")


@pytest.fixture(scope="session")
def root():
    """The root of the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def reference():
    """Imports a reference library by name, for tests marked `parity`.

    VISION_JAX_PARITY_PREIMPORT names a module to import first, for a machine on which torchvision does not load.
    """
    if first := os.environ.get("VISION_JAX_PARITY_PREIMPORT"):
        importlib.import_module(first)
    return importlib.import_module
