"""An installation holds the whole library and nothing else, `kernels/` as `vision_jax.kernels`, however it was made.

Nothing is downloaded: each virtual environment sees the packages of the running one through a path in a `.pth` file.
Such a path does not process the `.pth` files that lie there, so an editable installation of the running environment
does not leak in.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig

import pytest

WHERE = """
import importlib.metadata, json, vision_jax, vision_jax.kernels
print(json.dumps({
    "vision_jax": vision_jax.__file__,
    "kernels": vision_jax.kernels.__file__,
    "commands": {e.name: e.value for e in importlib.metadata.distribution("vision_jax").entry_points},
    "files": [str(f) for f in importlib.metadata.files("vision_jax")],
}))
"""


def run(*command, cwd):
    """The output of a command that sees no package outside the virtual environment, nor the network's."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"PIP_NO_INDEX": "1"}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def where(python, cwd):
    return json.loads(run(python, "-c", WHERE, cwd=cwd))


def install(root, directory, *options):
    """Copies the checkout and installs the copy. Returns (the copy's root, the environment's Python)."""
    checkout, venv = directory / "checkout", directory / "venv"
    checkout.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, checkout)
    for name in ("vision_jax", "kernels", "tests", "configs"):
        if (root / name).exists():
            shutil.copytree(root / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))

    run(sys.executable, "-m", "venv", "--without-pip", str(venv), cwd=directory)
    python = str(venv / "bin" / "python")
    purelib = pathlib.Path(
        run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=directory).strip()
    )
    (purelib / "running_environment.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = (sys.executable, "-m", "pip", "--python", python)
    run(*pip, "install", "--no-deps", "--no-build-isolation", *options, str(checkout), cwd=directory)
    return checkout, python


@pytest.fixture(scope="module")
def plain(root, tmp_path_factory):
    """`pip install .`"""
    return install(root, tmp_path_factory.mktemp("plain"))


def test_editable_installation_uses_the_checkout(root, tmp_path):
    checkout, python = install(root, tmp_path, "--editable")
    for cwd in (checkout, tmp_path):
        found = where(python, cwd)
        assert found["vision_jax"] == str(checkout / "vision_jax" / "__init__.py")
        assert found["kernels"] == str(checkout / "kernels" / "__init__.py")
    check_command(python, found)


def test_plain_installation_stands_alone(plain, tmp_path):
    checkout, python = plain
    found = where(python, tmp_path)
    installed = pathlib.Path(found["vision_jax"]).parent
    assert installed.is_relative_to(checkout.parent / "venv")
    assert found["kernels"] == str(installed / "kernels" / "__init__.py")
    check_command(python, found)


def test_plain_installation_from_the_root_of_a_checkout(plain):
    """There Python finds the checkout's `vision_jax` first, whose kernels lie beside it and not in it."""
    checkout, python = plain
    found = where(python, checkout)
    assert found["vision_jax"] == str(checkout / "vision_jax" / "__init__.py")
    assert found["kernels"] == str(checkout / "kernels" / "__init__.py")
    told = subprocess.run([python, "-m", "vision_jax.main", "--help"], cwd=checkout, capture_output=True, text=True)
    assert (told.returncode, told.stderr) == (0, "")
    assert "--workdir" in told.stdout


def test_plain_installation_holds_every_file_and_no_test(plain, root, tmp_path):
    _, python = plain
    installed = {f for f in where(python, tmp_path)["files"] if "__pycache__" not in f and ".dist-info/" not in f}
    library = {f"vision_jax/{f.relative_to(root / 'vision_jax')}" for f in files(root / "vision_jax")}
    kernels = {f"vision_jax/kernels/{f.relative_to(root / 'kernels')}" for f in files(root / "kernels")}
    assert kernels
    assert installed - {"../../../bin/vision-jax"} == library | kernels


def check_command(python, found):
    assert found["commands"] == {"vision-jax": "vision_jax.main:main"}
    assert pathlib.Path(python).with_name("vision-jax").exists()


def files(directory):
    return [f for f in directory.rglob("*") if f.is_file() and "__pycache__" not in f.parts]
