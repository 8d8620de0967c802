"""Every recipe builds, and its training step can be traced; those that name a topology fit its chips."""

import ast
import functools
import math
import re

import jax
import pytest

import tiny_run
from vision_jax.names import map_named
from vision_jax.parallel import ahead
from vision_jax.train import compile_only
from vision_jax.train.config import load_config

FILES = sorted(tiny_run.CONFIGS.glob("[!_]*.py"))


def variants(file):
    """[(argument, topology)] of the table in a recipe's docstring; any small one where it has none."""
    text = ast.get_docstring(ast.parse(file.read_text()))
    return re.findall(r"^\| (\S+) \| (v\d\w*:[\dx]+) \|", text, re.MULTILINE) or [("", "v5e:2x2")]


CASES = [(file.name, *row) for file in FILES for row in variants(file)]


@functools.cache
def built(file, arg, topology):
    """The run on its topology; no data are opened."""
    return compile_only.build_for(load_config(f"{tiny_run.CONFIGS / file}:{arg}".rstrip(":")), topology)


@pytest.mark.heavy
@pytest.mark.parametrize("case", CASES, ids=":".join)
def test_every_recipe_builds(case):
    run = built(*case)
    assert run.total_steps > run.steps(run.config.optim.schedule.warmup, "warmup")
    assert len(run.task.class_names) == run.model.config.num_classes


@pytest.mark.heavy
@pytest.mark.parametrize("file", [file.name for file in FILES])
def test_a_step_of_every_recipe_can_be_traced(file):
    run = built(*next(case for case in CASES if case[0] == file))
    state = run.state_shapes()
    with jax.set_mesh(run.mesh):
        given = state, compile_only.batch_shapes(run), run.task.frozen_shapes()
        new, metrics = jax.eval_shape(run.train_step(), *given)
    before, after = (jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree) for tree in (state, new))
    assert after == before
    assert metrics["loss"].shape == ()


# Of the recipes those that compile in a minute of one core: blocks that are scanned, without kernels.
COMPILED = {("vit_i1k.py", "S"): 0.3, ("vit_i21k.py", "g"): 0.6, ("vit_i21k.py", "4B"): 0.6}


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in CASES if case[:2] in COMPILED], ids=":".join)
def test_a_pod_recipe_fits_its_topology(case, monkeypatch):
    monkeypatch.setattr(ahead, "LARGEST", None)  # tell of every collective
    run = built(*case)
    report = compile_only.measure(run)
    assert report.fits
    assert report.unsharded <= 0.05 * report.capacity
    assert report.utilisation >= COMPILED[case[:2]]
    sizes = set()
    map_named(lambda names, leaf: sizes.add(leaf.size // len(names)), run.static.shapes["params"])
    gathered = [shape for c in report.largest if c["kind"] == "all-gather" for shape in c["shapes"]]
    assert gathered
    assert [shape for shape in gathered if math.prod(shape) not in sizes] == []  # parameters, and no activations
