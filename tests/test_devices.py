"""Devices that are not here, and memory that does not suffice: what is told."""

import logging
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

import tiny
from vision_jax import devices
from vision_jax.errors import InputError
from vision_jax.functional import jit
from vision_jax.models.base import Model
from vision_jax.train import loop, lowered
from vision_jax.train.run import build

EXHAUSTED = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 17179869184 bytes.")


def test_a_platform_that_is_not_here(root, tmp_path):
    command = [sys.executable, "-m", "vision_jax.main", "--config", "configs/digits_vit.py", "--workdir", str(tmp_path)]
    env = {**os.environ, "JAX_PLATFORMS": "cuda", "PYTHONPATH": str(root)}
    done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True)
    assert done.returncode == 2
    assert "error: JAX_PLATFORMS=cuda: no such device was found. `pip install 'vision-jax[cuda]'`" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_accelerator_that_jax_does_not_use(monkeypatch, caplog, tmp_path):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setattr(devices, "DRIVERS", ((str(tmp_path / "none"), "TPU", "tpu"), (str(tmp_path), "GPU", "cuda")))
    with caplog.at_level(logging.WARNING):
        assert devices.check_devices() == jax.devices()
    assert "seems to have a GPU" in caplog.text
    assert "pip install 'vision-jax[cuda]'" in caplog.text


def test_the_batch_that_fits_is_found_by_compiling(monkeypatch):
    compiled = {}

    def compile_at(n):
        if n > 16:
            raise EXHAUSTED
        compiled[n] = jax.jit(lambda x: jnp.sin(x) @ x.T).lower(jnp.zeros((n, 8))).compile()
        return compiled[n]

    assert devices.batch_that_fits(compile_at, 64) == 16
    eight = compile_at(8).memory_analysis()
    bytes_of_8 = eight.argument_size_in_bytes + eight.output_size_in_bytes + eight.temp_size_in_bytes
    monkeypatch.setattr(devices, "memory_limit", lambda: bytes_of_8)
    assert devices.batch_that_fits(compile_at, 64) == 8
    monkeypatch.setattr(devices, "memory_limit", lambda: 1)
    assert devices.batch_that_fits(compile_at, 64) is None


def test_prediction_tells_the_batch_that_fits(monkeypatch):
    class Greedy(Model):
        """Asks for more than there is, for more than two images."""

        def __init__(self):
            self.config = tiny.vit().config

        def forward_features(self, images, train=None):
            if len(images) > 2:
                raise EXHAUSTED
            return images

        def forward_head(self, x, train=None):
            return x.mean((1, 2))

    with pytest.raises(InputError, match="of 16 images does not fit in the device's memory; a batch of 2 would"):
        jit(Greedy())(jnp.zeros((16, 8, 8, 3)))


def test_images_that_are_not_floats():
    with pytest.raises(InputError, match=r"uint8: normalised floats are wanted, as vj\.preprocessing\(model\)"):
        tiny.vit()(jnp.zeros((1, 8, 8, 3), jnp.uint8))


@pytest.mark.heavy
def test_training_tells_what_keeps_the_batch(monkeypatch, tmp_path):
    from tiny_run import config

    c = config()
    run = build(c, training=True, evaluation=True)
    at_once = lowered.examples_at_once(run)
    small = lowered.compiled_at(run, at_once // 2).memory_analysis()
    whole = lowered.lower(run).compile().memory_analysis()
    assert small.temp_size_in_bytes < whole.temp_size_in_bytes

    def exhausted(*_):
        raise EXHAUSTED

    monkeypatch.setattr(type(run), "train_step", lambda self: exhausted)
    monkeypatch.setattr(loop, "compiled_at", lambda run, n: jax.jit(jnp.sin).lower(1.0).compile())
    with pytest.raises(InputError, match=rf"a step with {at_once} images at once .*device_batch={at_once // 2} does"):
        loop.train(c, tmp_path)
