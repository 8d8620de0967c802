"""`import vision_jax` costs nothing; the tests' own environment is what conftest.py says."""

import subprocess
import sys

import jax
import pytest

import vision_jax
from vision_jax import errors

NEWLY_IMPORTED = """
import sys
before = set(sys.modules)
import vision_jax
dir(vision_jax), vision_jax.__version__
print(*sorted(set(sys.modules) - before))
"""


def test_import_loads_the_standard_library_and_nothing_else(root):
    run = subprocess.run([sys.executable, "-c", NEWLY_IMPORTED], cwd=root, capture_output=True, text=True, check=True)
    packages = {module.partition(".")[0] for module in run.stdout.split()}
    assert packages - sys.stdlib_module_names == {"vision_jax"}


def test_operators_load_pallas_where_a_kernel_runs(root):
    code = "import sys, vision_jax.kernels; sys.exit('jax.experimental.pallas' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True)


def test_public_names_load_on_first_use():
    assert vision_jax.InputError is errors.InputError
    assert set(vision_jax.__all__) <= set(dir(vision_jax))
    with pytest.raises(AttributeError, match="no attribute 'no_such_name'"):
        vision_jax.no_such_name  # noqa: B018 - the access is what is tested


def test_tests_see_eight_devices():
    assert jax.device_count() == 8
