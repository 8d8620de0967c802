"""Teachers that are runs or weight files, of any shape; and runs by token labelling."""

import jax
import numpy as np
import pytest

import tiny_run
import vision_jax as vj
from tiny_run import config, records
from vision_jax.errors import InputError
from vision_jax.train import loop, run, use
from vision_jax.train.config import read_config
from vision_jax.train.teachers import frozen_variables

pytestmark = [pytest.mark.heavy, pytest.mark.usefixtures("no_pictures")]

# of other sizes than what it teaches, as the name alone would never tell
RESNET = {**tiny_run.RESNET, "model.embed_dims": (8, 24), "model.depths": (1, 2)}
TOKENS = {
    **{field: value for field, value in tiny_run.VIT.items() if not field.startswith("model.")},
    "model.embed_dims": (12, 16),
    "model.depths": (1, 1),
    "model.stem_dim": 8,
    "data.ops": "('resize(32)', 'normalize(mean=(0.5,), std=(0.25,))')",
    "eval.ops": "('decode(channels=1)', 'resize((32, 32))', 'normalize(mean=(0.5,), std=(0.25,))')",
}


@pytest.fixture(scope="module")
def teacher(no_pictures, tmp_path_factory):
    """The workdir of a trained model, on images of 32x32 pixels, normalised by mean 0.3 and deviation 0.38."""
    workdir = tmp_path_factory.mktemp("teacher")
    loop.train(config("digits_resnet.py", RESNET, total=2), workdir)
    return workdir


def built(fields, **more):
    r = run.build(config("digits_volo.py", fields, **more), training=True, evaluation=True)
    with jax.set_mesh(r.mesh):
        return r, frozen_variables(r)


def test_a_run_tells_its_model(teacher):
    r, frozen = built(TOKENS, task__teacher_weights=f"'{teacher}'")
    told = r.task.make_teacher().config
    assert (told.embed_dims, told.depths, told.img_size, told.in_chans) == ((8, 24), (1, 2), (32, 32), 1)
    resolved = r.resolved().task
    assert (resolved.teacher, resolved.teacher_fields["depths"]) == ("resnet18", (1, 2))
    average = {name: value for name, value in tiny_run.state_of(teacher, "ema").items() if "fc.kernel" in name}
    (expected,) = average.values()
    np.testing.assert_array_equal(frozen["teacher"]["variables"]["params"]["fc"]["kernel"], expected)


def test_the_teacher_sees_images_as_its_run_did(teacher):
    r, frozen = built(TOKENS, task__teacher_weights=f"'{teacher}'")
    frozen, pixels = frozen["teacher"], np.random.default_rng(0).random((2, 16, 16, 1), np.float32)
    fields = {key: value for key, value in read_config(teacher / "config.json").model.items() if key != "name"}
    static, _ = vj.split(vj.create_model("resnet18", abstract=True, **fields))
    seen = jax.image.resize((pixels - 0.3) / 0.38, (2, 32, 32, 1), "cubic")
    expected, _ = vj.apply(static, frozen["variables"], seen)
    given = r.task.make_teacher().logits(frozen, (pixels - 0.5) / 0.25)
    np.testing.assert_allclose(given, expected, rtol=1e-4, atol=1e-5)


def test_a_weight_file_s_teacher_sees_images_as_published_weights_do(tmp_path):
    fields = {"img_size": 32, "depths": (1,), "embed_dims": (8,), "stem_dim": 8, "num_classes": 10}
    vj.save_weights(vj.create_model("resnet18", **fields), tmp_path / "t.safetensors")
    ops = "('decode', 'resize((32, 32))', 'normalize(mean=(0.5, 0.4, 0.3), std=(0.5, 0.5, 0.25))')"
    synthetic = {"data.source": "synthetic", "data.options": "{'image_size': 32, 'num_classes': 10, 'channels': 3}"}
    more = {"task.teacher": "resnet18", "task.teacher_fields": str(fields), "data.ops": ops, "eval.ops": ops}
    _, frozen = built({**TOKENS, **synthetic, **more}, task__teacher_weights=f"'{tmp_path / 't.safetensors'}'")
    mean, std = np.array(vj.model_info("resnet18").tags["a1_in1k"].mean), np.array([0.229, 0.224, 0.225])
    np.testing.assert_allclose(frozen["teacher"]["scale"], np.array([0.5, 0.5, 0.25]) / std, rtol=1e-6)
    np.testing.assert_allclose(frozen["teacher"]["shift"], (np.array([0.5, 0.4, 0.3]) - mean) / std, rtol=1e-4)


def test_what_cannot_teach_is_told_before_anything_is_written(teacher, tmp_path):
    taught = {"task__teacher_weights": f"'{teacher}'"}

    def refused(message, fields=tiny_run.VIT, recipe="digits_vit.py", **more):
        with pytest.raises(InputError, match=message):
            loop.train(config(recipe, fields, **more), tmp_path / "w")
        assert not (tmp_path / "w").exists()

    refused("task.teacher='resnet34', but .* is a run of 'resnet18'", task__teacher="resnet34", **taught)
    nowhere = {"task__teacher_weights": "no/where"}
    refused("is no run's workdir.*name the model in task.teacher", **nowhere)
    refused("takes 3 channels, the images have 1", task__teacher="resnet18", **nowhere)
    one = {"task__teacher_fields": "{'in_chans': 1}", **nowhere}
    refused("no/where", task__teacher="resnet18", **one)
    data = {"data.source": "synthetic", "data.options": "{'image_size': 8, 'num_classes': 10, 'channels': 1}"}
    refused("has 10 classes, these data 10, or others", {**tiny_run.VIT, **data}, **taught)
    refused("with the field 'token_labels', vit_tiny_patch16_224 has none: volo_d1_224,", task__token_labelling=True)
    volo = {"fields": TOKENS, "recipe": "digits_volo.py"}
    refused("model.token_labels=True, but .* give False", **volo, task__token_labelling=False)
    refused("CrossViT has no logits of single positions", **volo, task__teacher="crossvit_tiny_240", **one)


def test_distilled_from_a_run(teacher, tmp_path):
    def losses(name, **fields):
        loop.train(config(total=3, **fields), tmp_path / name)
        return [record["train/loss"] for record in records(tmp_path / name, "train/loss")]

    taught = {"task__teacher_weights": f"'{teacher}'", "task__distillation": "soft"}
    alone = losses("alone")
    half, wholly = losses("half", **taught), losses("wholly", **taught, task__distillation_weight=1.0)
    assert half[0] == pytest.approx((alone[0] + wholly[0]) / 2, rel=1e-5)
    assert abs(wholly[0] - alone[0]) > 1e-3


@pytest.mark.slow
def test_volo_learns_digits_by_token_labelling(teacher, tmp_path):
    """With MixToken, accumulation and an average, on eight devices; and it is evaluated without its teacher."""
    mesh = {"mesh__data": 4, "mesh__fsdp": 2, "optim__accumulate": 2, "ema": 0.9}
    taught = {"task__teacher_weights": f"'{teacher}'", "task__label_smoothing": 0.0}
    fast = {"optim__lr": 1e-2, "optim__schedule__warmup": "0 steps", "eval__every": 40}
    metrics = loop.train(config("digits_volo.py", TOKENS, total=40, **mesh, **taught, **fast), tmp_path / "w")
    losses = [record["train/loss"] for record in records(tmp_path / "w", "train/loss")]
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.1  # half of it is the teacher's, who knows little
    alone = [("task.teacher_weights", "gone"), ("mesh.fsdp", "1"), ("mesh.data", "-1")]
    kept = read_config(tmp_path / "w" / "config.json", alone)
    assert use.evaluate_checkpoint(kept, tmp_path / "w") == pytest.approx(metrics, rel=1e-4)
