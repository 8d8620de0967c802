"""First values from another run or from a weight file."""

import jax
import numpy as np
import pytest

import tiny_run
from tiny_run import assert_same, config, state_of
from vision_jax.errors import InputError
from vision_jax.functional import merge
from vision_jax.train import loop, run, use
from vision_jax.weights.save import save_weights

pytestmark = [pytest.mark.heavy, pytest.mark.usefixtures("no_pictures")]

OTHER_CLASSES = {
    **tiny_run.VIT,
    "data.source": "synthetic",
    "data.options": "{'image_size': 8, 'num_classes': 3, 'channels': 1}",
}


@pytest.fixture(scope="module")
def pretrained(no_pictures, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("pretrained")
    loop.train(config(total=4), workdir)
    return workdir


def first_state(fields=tiny_run.VIT, **more):
    """The state before the first step, by name."""
    r = run.build(config(fields=fields, **more), training=True, evaluation=True)
    with jax.set_mesh(r.mesh):
        return tiny_run.by_name(loop._initial_state(r))


def average_of(workdir):
    return {name.removeprefix("ema."): value for name, value in state_of(workdir, "ema").items()}


def test_from_another_run(pretrained):
    """Model and average begin as the run's average; what is not the model begins as it always does."""
    state = first_state(init_from=f"'{pretrained}'")
    average = average_of(pretrained)
    assert_same({name: state[name] for name in average}, average)
    assert_same({name: state[f"ema.{name}"] for name in average}, average)
    cold = first_state()
    assert state.keys() == cold.keys()
    assert int(state["step"]) == 0
    assert not np.array_equal(state["params.head.kernel"], cold["params.head.kernel"])


def test_from_another_run_with_other_classes(pretrained):
    state, average = first_state(OTHER_CLASSES, init_from=f"'{pretrained}'"), average_of(pretrained)
    kept = {name: value for name, value in average.items() if not name.startswith("params.head.")}
    assert_same({name: state[name] for name in kept}, kept)
    assert state["params.head.kernel"].shape == (16, 3)
    assert state["params.head.kernel"].any()


def test_from_a_weight_file(pretrained, tmp_path):
    r = run.build(config(), evaluation=True)
    with jax.set_mesh(r.mesh):
        variables, _ = use._restored(r, pretrained)
    save_weights(merge(r.static, jax.device_get(variables)), tmp_path / "model.safetensors")
    state = first_state(init_from=f"'{tmp_path / 'model.safetensors'}'")
    average = average_of(pretrained)
    assert_same({name: state[name] for name in average}, average)


def test_sharded_as_the_run_is(pretrained):
    c = config(init_from=f"'{pretrained}'", mesh__data=2, mesh__fsdp=4)
    r = run.build(c, training=True, evaluation=True)
    with jax.set_mesh(r.mesh):
        state, shapes = loop._initial_state(r), r.state_shapes()
    assert jax.tree.map(lambda x, s: x.sharding.is_equivalent_to(s.sharding, x.ndim), state, shapes) == jax.tree.map(
        lambda _: True, shapes
    )
    assert "fsdp" in str(state["params"]["head"]["kernel"].sharding.spec)


def test_what_does_not_fit_is_told_before_anything_is_written(pretrained, tmp_path):
    with pytest.raises(InputError, match="mis-shaped"):
        loop.train(config(init_from=f"'{pretrained}'", model__embed_dim=24), tmp_path / "w")
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    with pytest.raises(InputError, match="no checkpoint in"):
        loop.train(config(init_from=f"'{tmp_path / 'empty'}'"), tmp_path / "w")
    assert not (tmp_path / "w").exists()


def test_a_run_that_goes_on_does_not_look_for_its_first_values(pretrained, tmp_path):
    loop.train(config(init_from=f"'{pretrained}'", total=4), tmp_path / "w")
    loop.train(config(init_from="gone", total=5), tmp_path / "w")
    assert int(state_of(tmp_path / "w", "step")["step"]) == 5
