"""The optimiser's state in the host's memory: the same training, the same checkpoints."""

import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import tiny_run
from tiny_run import assert_same, config, state_of
from vision_jax.parallel import ahead
from vision_jax.parallel.sharding import HOST
from vision_jax.train import compile_only, loop, named_state
from vision_jax.train.run import build

pytestmark = pytest.mark.heavy
FIELDS = dict(model__depth=2, model__scan_blocks=True, total=8, eval__every=8, mesh__data=1, mesh__fsdp=-1, ema=0)


def test_a_run_from_the_hosts_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "report", lambda *_: {})
    loop.train(config(**FIELDS), tmp_path / "device")
    loop.train(config(**FIELDS, optim__offload=True), tmp_path / "host")
    alone, offloaded = state_of(tmp_path / "device"), state_of(tmp_path / "host")
    assert alone.keys() == offloaded.keys()
    for name, value in alone.items():
        np.testing.assert_allclose(offloaded[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
    for here, offload in (("host", True), ("moved", False)):  # resumed from step 4, there and on the device
        shutil.copytree(tmp_path / "host" / "checkpoints" / "4", tmp_path / here / "again" / "checkpoints" / "4")
        loop.train(config(**FIELDS, optim__offload=offload), tmp_path / here / "again")
    assert_same(state_of(tmp_path / "host" / "again"), offloaded)
    moved = state_of(tmp_path / "moved" / "again")
    for name, value in alone.items():
        np.testing.assert_allclose(moved[name], value, rtol=1e-4, atol=1e-6, err_msg=name)


def test_where_the_state_lies():
    run = build(config(**FIELDS, optim__offload=True), training=True, evaluation=True)
    with jax.set_mesh(run.mesh):
        state = run.initial_state()
        batch = {
            "image": np.zeros((32, 8, 8, 1), np.uint8),
            "label": np.arange(32) % 10,
            "replaced": np.zeros(32, bool),
        }
        state, _ = run.train_step()(state, batch, {})
        for leaf in jax.tree.leaves(state["opt_state"]):
            assert (leaf.sharding.memory_kind == HOST) == (leaf.ndim > 0)
        for leaf in jax.tree.leaves(state["params"]):
            assert leaf.sharding.memory_kind != HOST
        named = named_state.to_named(state)
        kinds = {name: leaf.sharding.memory_kind == HOST for name, leaf in named.items() if leaf.ndim}
        assert kinds == {name: name.startswith("opt_state.") for name in kinds}
        again = named_state.from_named(named, run.state_shapes())
        assert jax.tree.map(lambda leaf: leaf.sharding, again) == jax.tree.map(lambda leaf: leaf.sharding, state)
        assert_same(tiny_run.by_name(again), tiny_run.by_name(state))


def test_a_chip_holds_so_much_less():
    fields = dict(model__depth=2, model__embed_dim=256, ema=0, mesh__data=1, mesh__fsdp=-1)
    kept, moved = (
        compile_only.measure(compile_only.build_for(config(**fields, optim__offload=offload), "v5e:2x2"))
        for offload in (False, True)
    )
    assert kept.offloaded == 0
    assert moved.offloaded == pytest.approx(kept.optimizer, rel=1e-3)
    assert moved.optimizer < 100  # counters
    # the compiler may bring all of it at once where there is room: it is among the temporaries then
    less = (kept.total - kept.temporaries) - (moved.total - moved.temporaries)
    assert less == pytest.approx(kept.optimizer, rel=0.01)
    assert any("on its host" in line for line in moved.lines())
    assert not any("on its host" in line for line in kept.lines())


def test_it_is_what_is_left_where_the_state_alone_is_too_large(monkeypatch, capsys):
    fields = {**tiny_run.VIT, "mesh.data": 1, "mesh.fsdp": -1, "ema": 0}
    run = compile_only.build_for(config(fields=fields), "v5e:2x2")
    state = ahead.held(run.state_shapes())
    chip = ahead.slice_of(run.mesh)._replace(chip=ahead.slice_of(run.mesh).chip._replace(memory=state - 1))
    monkeypatch.setattr(ahead, "slice_of", lambda mesh: chip)
    measured = []
    monkeypatch.setattr(compile_only, "measure", lambda run: measured.append(run) or SimpleNamespace(fits=True))
    assert compile_only.fitting(run, "v5e:2x2") == ["--config.optim.offload=True"]
    assert len(measured) == 1
