import importlib
import os

import pytest


@pytest.fixture(scope="session")
def reference():
    """Imports a reference library by name, for tests marked `parity`.

    VISION_JAX_PARITY_PREIMPORT names a module to import first, for a machine on which torchvision does not load.
    """
    if first := os.environ.get("VISION_JAX_PARITY_PREIMPORT"):
        importlib.import_module(first)
    return importlib.import_module
