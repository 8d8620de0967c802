"""A config's step compiled for a slice: the figures are the config's, and the command says what does not fit."""

import json

import jax
import pytest
from jax.experimental import topologies

import tiny_run
from vision_jax.errors import InputError
from vision_jax.main import main
from vision_jax.parallel import ahead, chips, topology
from vision_jax.registry import create_model
from vision_jax.tools.cost import count_cost
from vision_jax.train import compile_only
from vision_jax.train.config import default_config, load_config

FIELDS = {**tiny_run.VIT, "data.ops": "('normalize(mean=(0.3,), std=(0.38,))',)", "mesh.data": 1, "mesh.fsdp": -1}


def config(recipe="digits_vit.py", fields=FIELDS, **more):
    return tiny_run.config(recipe, fields, **more)


def arguments(topology, fields=FIELDS, **more):
    argv = ["--config", str(tiny_run.CONFIGS / "digits_vit.py"), f"--compile_only={topology}"]
    return [*argv, *tiny_run.overrides(fields, **more)]


# --- The step.


@pytest.mark.heavy
def test_the_figures_are_those_of_the_config():
    run = compile_only.build_for(config(model__depth=2, model__embed_dim=64, model__scan_blocks=True), "v5e:2x2")
    assert dict(run.mesh.shape) == {"data": 1, "fsdp": 4, "tensor": 1}
    report = compile_only.measure(run)
    whole = 4 * sum(leaf.size for leaf in jax.tree.leaves(run.static.shapes["params"]))
    assert whole / 4 <= report.parameters < 1.05 * whole / 4  # norms and biases lie whole on every chip
    assert report.gradients == report.parameters
    assert report.average == report.parameters
    assert 2 * report.parameters <= report.optimizer <= 2 * report.parameters + 64  # and counters
    state = report.parameters + report.optimizer + report.average
    assert report.fits
    assert report.total > state + report.temporaries
    assert report.model_flops == 6 * 32 * count_cost(run.model).macs
    assert report.flops * 4 == pytest.approx(report.model_flops, rel=0.05)
    assert report.unknown_loops == 0
    assert report.moved["all-gather"][0] >= 2 * 2  # of two blocks' weights, in both directions
    assert 0 < report.utilisation < 1
    copied = (4 * report.parameters - whole) / 3  # what four chips hold above one copy, three of them needlessly
    assert copied > 0
    assert 4 * copied <= report.unsharded <= 4 * copied + 64  # of two moments and the average, too
    assert report.largest[0]["bytes"] == max(c["bytes"] for c in report.largest)


@pytest.mark.slow
@pytest.mark.parametrize("axis", ["data", "fsdp"])
def test_gradients_are_summed_in_the_dtype_that_is_asked(axis):
    received = {}
    for asked in ("", "float32"):
        fields = {
            "mesh.data": 1,
            "mesh.fsdp": 1,
            "dtype": "bfloat16",
            "model.embed_dim": 256,
            "optim.gradient_dtype": asked,
        }
        run = compile_only.build_for(config(fields={**FIELDS, **fields, f"mesh.{axis}": -1}), "v5e:2x2")
        moved = compile_only.measure(run).moved
        received[asked] = sum(moved.get(kind, (0, 0))[1] for kind in ("all-reduce", "reduce-scatter"))
    assert received["float32"] == pytest.approx(2 * received[""], rel=0.1)


@pytest.mark.heavy
def test_between_slices_go_gradients_alone():
    ops = "('normalize(mean=(0.3,), std=(0.38,))', 'mix(mixup=0.2)')"
    fields = dict(mesh__data=2, data__batch_size=128, data__ops=ops)
    run = compile_only.build_for(config(model__depth=2, model__embed_dim=256, **fields), "2*v5e:2x2")
    assert dict(run.mesh.shape) == {"data": 2, "fsdp": 4, "tensor": 1}
    report = compile_only.measure(run)
    between = {kind: size for kind, (_, size) in report.moved.items() if kind.endswith("between slices")}
    assert list(between) == ["all-reduce between slices"]
    # each chip's shard of the gradients, once: half of the sum to the other slice, half of it back
    assert between["all-reduce between slices"] == pytest.approx(report.parameters, rel=0.02)
    v5e = chips.CHIPS["TPU v5 lite"]
    assert report.roofline.network == pytest.approx(between["all-reduce between slices"] / v5e.network)
    assert any(line.startswith("network") for line in report.lines())
    with pytest.raises(InputError, match=r"--compile_only=2\*v4:2x2x1: how fast .* is not published; take v4:2x2x1"):
        compile_only.build_for(config(**fields), "2*v4:2x2x1")


@pytest.mark.slow
def test_a_swin_runs_the_window_kernel():
    c = default_config()
    c.model = {"name": "swin_tiny_patch4_window7_224", "depths": (1,), "embed_dim": 96, "num_heads": (3,)}
    c.data.source, c.data.options = "synthetic", {"image_size": 56, "num_classes": 10}
    c.data.ops = c.eval.ops = ("normalize",)
    c.data.batch_size = c.eval.batch_size = 8
    c.total = "10 steps"
    run = compile_only.build_for(c, "v5e:2x2")
    text = compile_only.lower(run).compile().as_text()
    assert text.count('custom_call_target="tpu_custom_call"') == 2  # forward and backward


def test_a_teachers_operations_count_once():
    given = {"task__teacher": "resnet18", "task__teacher_weights": "weights.safetensors"}
    alone, taught = (
        compile_only.build_for(config(**more), "v5e:2x2")
        for more in ({}, {**given, "task__teacher_fields": {"in_chans": 1, "img_size": 8}})
    )
    teacher = create_model("resnet18", abstract=True, in_chans=1, img_size=8, num_classes=10)
    assert compile_only.model_flops(taught) == compile_only.model_flops(alone) + 2 * 32 * count_cost(teacher).macs


# --- Without data.


def test_data_on_disk_are_not_opened(tmp_path):
    fields = [("data.batch_size", "64"), ("eval.batch_size", "64")]
    run = compile_only.build_for(load_config(f"{tiny_run.CONFIGS}/tfds.py:imagenet2012", fields), "v5e:2x2")
    assert run.train_shape == (224, 224, 3)
    assert len(run.task.class_names) == 1000
    assert compile_only.batch_shapes(run)["image"].sharding.shard_shape((64, 224, 224, 3)) == (16, 224, 224, 3)
    recipe = f"{tiny_run.CONFIGS}/folder.py:{tmp_path / 'none'}"
    run = compile_only.build_for(load_config(recipe, [("model.num_classes", "7")]), "v5e:2x2")
    assert run.model.config.num_classes == 7
    ops = [("data.ops", "('decode', 'resize(256)', 'normalize')"), *fields]
    with pytest.raises(InputError, match=r"data.ops give images of several sizes, as \(256, .*crop or resize"):
        compile_only.build_for(load_config(recipe, ops), "v5e:2x2")
    with pytest.raises(InputError, match="option of data source folder 'rot'"):
        compile_only.build_for(load_config(recipe, [("data.options.rot", "x")]), "v5e:2x2")


# --- The command.


@pytest.mark.heavy
def test_the_command(tmp_path, capsys):
    assert main([*arguments("v5e:2x2"), "--workdir", str(tmp_path / "w")]) == 0
    said = capsys.readouterr().out
    assert "vit_tiny_patch16_224 on v5e:2x2: mesh data=1, fsdp=4, tensor=1; batch 32 images of 8x8x1" in said
    assert "of 16.0: fits" in said
    told = json.loads((tmp_path / "w" / "compile_only.json").read_text())
    assert told["fits"]
    assert told["batch_size"] == 32
    assert told["step_seconds"] == max(told["roofline"].values())


def test_a_state_that_cannot_fit(tmp_path, capsys, monkeypatch):
    small = chips.CHIPS["TPU v5 lite"]._replace(memory=1000)
    monkeypatch.setitem(chips.CHIPS, "TPU v5 lite", small)
    monkeypatch.setattr(compile_only, "measure", lambda run: _report(run, 2000))
    assert main([*arguments("v5e:2x2"), "--workdir", str(tmp_path / "w")]) == 1
    said = capsys.readouterr().out
    assert "does NOT fit" in said
    assert "no finer sharding, remat or accumulation makes it fit" in said
    assert json.loads((tmp_path / "w" / "compile_only.json").read_text())["remedy"] is None


@pytest.mark.parametrize(
    ("enough", "remedy"),
    [
        (lambda run: run.mesh.shape["fsdp"] == 4, []),
        (lambda run: run.model.config.remat == "full", ["model.remat=full"]),
        (lambda run: run.config.optim.accumulate == 4, ["model.remat=full", "optim.accumulate=4"]),
    ],
)
def test_the_change_that_makes_it_fit(enough, remedy, capsys, monkeypatch):
    monkeypatch.setattr(compile_only, "measure", lambda run: _report(run, 1 if enough(run) else 2**40))
    assert main(arguments("v5e:2x2", mesh__data=-1, mesh__fsdp=1)) == 1
    changes = [f"--config.{field}" for field in ("mesh.data=1", "mesh.fsdp=4", *remedy)]
    assert f"it fits with {' '.join(changes)}\n" in capsys.readouterr().out


def test_more_fsdp_than_divides_is_less(capsys, monkeypatch):
    monkeypatch.setattr(compile_only, "measure", lambda run: _report(run, 1 if run.mesh.shape["fsdp"] == 4 else 2**40))
    fields = {**FIELDS, "model.embed_dim": 20, "model.num_heads": 5, "eval.batch_size": 32}  # 20, 5 x 4 and 80 by 16
    assert main(arguments("v5e:4x4", fields)) == 1
    assert "it fits with --config.mesh.data=4 --config.mesh.fsdp=4\n" in capsys.readouterr().out


def _report(run, total):
    known = dict(parameters=1, gradients=1, optimizer=2, average=0, unsharded=0, model_flops=1, flops=1, hbm_bytes=1)
    capacity = ahead.slice_of(run.mesh).chip.memory
    return ahead.Report(
        "TPU v5 lite", 4, 1, capacity, temporaries=0, total=total, roofline=ahead.Roofline(1, 1, 1), **known
    )


@pytest.mark.parametrize(
    ("topology", "fields", "says"),
    [
        ("v9:2x2", {}, ["--compile_only", "'v9:2x2'", "v5e:4x4"]),
        ("nonsense", {}, ["--compile_only", "'nonsense'", "v5e:4x4"]),
        ("v5e:2x2", {"mesh.fsdp": 3}, ["mesh", "4 devices"]),
        ("v5e:2x2", {"shard_tokens": True}, ["config.shard_tokens=True", "--config.mesh.tensor=2 or more"]),
        ("v5e:2x2", {"optim.gradient_dtype": "bf16"}, ["config.optim.gradient_dtype 'bf16'", "'bfloat16'"]),
        ("v5e:2x2", {"data.batch_size": 30}, ["data.batch_size=30", "28 and 32"]),
        ("v5e:2x2", {"eval.batch_size": 30}, ["eval.batch_size=30", "28 and 32"]),
    ],
)
def test_what_cannot_be(topology, fields, says, tmp_path, capsys):
    argv = [*arguments(topology, {**FIELDS, **fields}), "--workdir", str(tmp_path / "w")]
    assert main(argv) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    for part in says:
        assert part in said
    assert not list(tmp_path.iterdir())


def test_without_libtpu(monkeypatch):
    def missing(**_):
        raise RuntimeError("JAX TPU support not installed; cannot generate TPU topology.")

    monkeypatch.setattr(topologies, "get_topology_desc", missing)
    topology.devices.cache_clear()
    with pytest.raises(InputError, match=r"--compile_only=.*pip install libtpu.*JAX TPU support not installed"):
        compile_only.build_for(config(), "v5e:4x8")
    topology.devices.cache_clear()
