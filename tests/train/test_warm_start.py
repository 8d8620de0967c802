"""First values from another run or from a weight file, and teachers."""

import jax
import numpy as np
import pytest

import tiny_run
from tiny_run import assert_same, config, records, state_of
from vision_jax.errors import InputError
from vision_jax.functional import merge
from vision_jax.models.resnet import ResNet, ResNetConfig
from vision_jax.registry import _REGISTRY, list_models, register
from vision_jax.train import loop, run, use
from vision_jax.weights.save import save_weights

pytestmark = pytest.mark.heavy

OTHER_CLASSES = {
    **tiny_run.VIT,
    "data.source": "synthetic",
    "data.options": "{'image_size': 8, 'num_classes': 3, 'channels': 1}",
}


@pytest.fixture(scope="module", autouse=True)
def no_pictures():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "report", lambda *_: {})
        yield


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
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


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """The workdir of a trained model that has a name of its own."""
    list_models()  # registers those there are
    register(
        "teacher",
        ResNet,
        ResNetConfig(in_chans=1, stem_dim=16, depths=(1,), embed_dims=(8,)),
        params=0,
        gmacs=0,
        paper="",
        licence="",
    )
    workdir = tmp_path_factory.mktemp("teacher")
    loop.train(config("digits_resnet.py:8", {**tiny_run.RESNET, **TEACHER}, total=2), workdir)
    yield workdir
    del _REGISTRY["teacher"]


TEACHER = {"model.name": "teacher", "model.depths": (1,), "model.embed_dims": (8,)}


def test_distilled_from_a_run(teacher, tmp_path):
    def losses(name, **fields):
        loop.train(config(total=3, **fields), tmp_path / name)
        return [record["train/loss"] for record in records(tmp_path / name, "train/loss")]

    taught = {"task__teacher": "teacher", "task__teacher_weights": f"'{teacher}'", "task__distillation": "soft"}
    alone, ignored = losses("alone"), losses("ignored", **taught, task__distillation_weight=0.0)
    assert ignored == pytest.approx(alone, rel=1e-5)
    half, wholly = losses("half", **taught), losses("wholly", **taught, task__distillation_weight=1.0)
    assert half[0] == pytest.approx((alone[0] + wholly[0]) / 2, rel=1e-5)
    assert abs(wholly[0] - alone[0]) > 1e-3
    with pytest.raises(InputError, match="no/where"):
        loop.train(config(**{**taught, "task__teacher_weights": "no/where"}), tmp_path / "none")
    assert not (tmp_path / "none").exists()
