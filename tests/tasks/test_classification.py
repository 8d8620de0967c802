import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from flax import nnx

import tiny
from vision_jax import registry
from vision_jax.errors import InputError
from vision_jax.functional import split
from vision_jax.layers.drop import dropout
from vision_jax.parameters import Normal, param
from vision_jax.tasks import make_task
from vision_jax.tasks.classification import Classification

B, K = 6, 8
CLASSES = tuple("abcdefgh")


class Given(nnx.Module):
    """A model whose logits are its images plus a table, so that the tests choose them."""

    def __init__(self, drop=0.0):
        self.table = param((K,), Normal(1.0))
        self.drop = drop

    def __call__(self, images, train=None):
        return dropout(images.reshape(len(images), K) + self.table[...], self.drop, train)


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    return {
        "image": jnp.asarray(3 * rng.standard_normal((B, 1, 1, K)), jnp.float32),
        "label": jnp.array([0, 7, 3, 3, 1, 5]),
    }


@pytest.fixture
def model():
    return split(Given())


def _logits(variables, batch):
    return np.asarray(batch["image"], np.float64).reshape(B, K) + np.asarray(variables["params"]["table"], np.float64)


def _log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def _bce(logits, targets):
    p = 1 / (1 + np.exp(-logits))
    return -(targets * np.log(p) + (1 - targets) * np.log(1 - p)).mean(-1)


def _one_hot(labels, smoothing=0.0):
    return np.eye(K)[np.asarray(labels)] * (1 - smoothing) + smoothing / K


def _train_loss(task, model, batch, frozen=None, key=0):
    return task.train_loss(*model, frozen or {}, batch, jax.random.key(key))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
@pytest.mark.parametrize("mixed", [False, True])
def test_train_loss(model, batch, loss, smoothing, mixed):
    logits, targets = _logits(model[1], batch), _one_hot(batch["label"], smoothing)
    if mixed:
        batch |= {"label_mixed": batch["label"][::-1], "mix_weight": jnp.linspace(0, 1, B)}
        weight = np.linspace(0, 1, B)[:, None]
        targets = weight * targets + (1 - weight) * _one_hot(batch["label"][::-1], smoothing)
    expected = -(targets * _log_softmax(logits)).sum(-1) if loss == "softmax" else _bce(logits, targets)
    value, (state, metrics) = _train_loss(Classification(CLASSES, loss=loss, label_smoothing=smoothing), model, batch)
    np.testing.assert_allclose(value, expected.mean(), rtol=1e-6)
    np.testing.assert_allclose(metrics["loss"], value)
    np.testing.assert_allclose(metrics["accuracy"], (logits.argmax(-1) == np.asarray(batch["label"])).mean(), rtol=1e-6)
    assert state == {"batch_stats": {}}


def test_the_key_reaches_the_model(batch):
    model, task = split(Given(drop=0.5)), Classification(CLASSES)
    losses = [float(_train_loss(task, model, batch, key=key)[0]) for key in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]


def test_evaluation_counts_real_examples_only(model, batch):
    task, logits = Classification(CLASSES, label_smoothing=0.3), _logits(model[1], batch)
    label, mask = np.asarray(batch["label"]), np.array([1, 1, 0, 1, 1, 0], bool)
    images = batch["image"].at[2].set(jnp.nan)  # what pads must not matter
    sums = task.evaluate(*model, {"image": images, "label": batch["label"], "mask": jnp.array(mask)})
    order = np.argsort(-logits, axis=-1)
    confusion = np.zeros((K, K))
    np.add.at(confusion, (label[mask], order[mask, 0]), 1)
    np.testing.assert_array_equal(sums["confusion"], confusion)
    loss = -_log_softmax(logits)[np.arange(B), label]  # without smoothing
    expected = {
        "count": 4,
        "loss": loss[mask].sum(),
        "top1": (order[:, 0] == label)[mask].sum(),
        "top5": (order[:, :5] == label[:, None]).any(-1)[mask].sum(),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(sums[name], value, rtol=1e-6)
    assert expected["top1"] < expected["top5"] < 4
    metrics = task.metrics(jax.tree.map(lambda a: 2 * a, sums))
    assert metrics == {
        "loss": pytest.approx(expected["loss"] / 4),
        "accuracy": expected["top1"] / 4,
        "accuracy_top5": expected["top5"] / 4,
    }


def test_the_evaluated_loss_is_the_trained_ones_kind(model, batch):
    sums = Classification(CLASSES, loss="sigmoid").evaluate(*model, {**batch, "mask": jnp.ones(B, bool)})
    np.testing.assert_allclose(sums["loss"], _bce(_logits(model[1], batch), _one_hot(batch["label"])).sum(), rtol=1e-6)


def test_equal_logits_are_no_success(model, batch):
    images = batch["image"].at[:].set(0) - model[1]["params"]["table"]
    labels = jnp.arange(B)  # argmax says 0; the five first are 0 to 4
    sums = Classification(CLASSES).evaluate(*model, {"image": images, "label": labels, "mask": jnp.ones(B, bool)})
    assert (sums["top1"], sums["top5"]) == (1, 5)


def test_top5_is_told_where_it_says_something(model):
    sums = {"count": 2.0, "loss": 1.0, "top1": 1.0, "top5": 2.0}
    for number, told in ((5, ("loss", "accuracy")), (6, ("loss", "accuracy", "accuracy_top5"))):
        task = Classification(CLASSES[:number])
        assert tuple(task.metrics(sums)) == task.metric_names == told


def test_no_confusion_matrix_of_many_classes(batch):
    many = Classification(tuple(map(str, range(1001))))
    static, variables = split(tiny.vit(abstract=True, num_classes=1001))
    images = jax.ShapeDtypeStruct((B, 8, 8, 3), jnp.float32)
    batch |= {"image": images, "mask": jnp.ones(B, bool)}
    assert "confusion" not in jax.eval_shape(lambda v, b: many.evaluate(static, v, b), variables, batch)


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_predict(model, batch, loss):
    logits = _logits(model[1], batch)
    expected = np.exp(_log_softmax(logits)) if loss == "softmax" else 1 / (1 + np.exp(-logits))
    got = Classification(CLASSES, loss=loss).predict(*model, batch["image"].astype(jnp.float32))
    np.testing.assert_allclose(got, expected, rtol=2e-5)


# --- distillation


class Teacher(nnx.Module):
    def __init__(self, config):
        self.config, self.table = config, param((config.num_classes,), Normal(2.0))

    def __call__(self, images, train=None):
        assert train is None
        return images.reshape(len(images), -1)[:, ::-1] + self.table[...]


@pytest.fixture
def teacher(monkeypatch):
    config = registry.model_info("resnet18").config
    info = registry.ModelInfo("teacher", Teacher, config, K, 0.0, "", "", "", {"": registry.Pretrained()})
    monkeypatch.setitem(registry._all(), "teacher", info)
    fields = {"img_size": 1, "in_chans": K}
    return {"teacher": "teacher", "teacher_fields": fields, "teacher_weights": "teacher.safetensors"}


def _frozen(table=None, scale=1.0, shift=0.0):
    variables = {"params": {"table": jnp.zeros(K) if table is None else table}, "batch_stats": {}}
    return {"teacher": {"variables": variables, "scale": jnp.full(K, scale), "shift": jnp.full(K, shift)}}


@pytest.mark.parametrize(("kind", "temperature"), [("hard", 1.0), ("soft", 3.0)])
def test_distillation(model, batch, teacher, kind, temperature):
    task = Classification(CLASSES, distillation=kind, distillation_weight=0.3, temperature=temperature, **teacher)
    frozen = _frozen(table := tiny.normal(K, seed=4), scale=0.5, shift=0.25)
    assert jax.tree.map(jnp.shape, frozen) == jax.tree.map(lambda s: s.shape, task.frozen_shapes())
    logits = _logits(model[1], batch)
    seen = 0.5 * np.asarray(batch["image"], np.float64).reshape(B, K) + 0.25
    taught = seen[:, ::-1] + np.asarray(table)
    labels_loss = -_log_softmax(logits)[np.arange(B), np.asarray(batch["label"])].mean()
    if kind == "hard":
        term = -_log_softmax(logits)[np.arange(B), taught.argmax(-1)].mean()
    else:
        t, s = _log_softmax(taught / 3), _log_softmax(logits / 3)
        term = 9 * (np.exp(t) * (t - s)).sum(-1).mean()
    value, _ = _train_loss(task, model, batch, frozen)
    np.testing.assert_allclose(value, 0.7 * labels_loss + 0.3 * term, rtol=1e-6)
    grads = jax.grad(lambda frozen: _train_loss(task, model, batch, frozen)[0])(frozen)
    np.testing.assert_array_equal(grads["teacher"]["variables"]["params"]["table"], 0.0)


class TwoHeads(Given):
    def __call__(self, images, train=None):
        logits = super().__call__(images, train)
        return (logits, logits[:, ::-1]) if train else (logits + logits[:, ::-1]) / 2


def test_a_distilled_head_of_its_own(batch, teacher):
    task = Classification(CLASSES, distillation_weight=1.0, **teacher)
    model = split(TwoHeads())
    value, _ = _train_loss(task, model, batch, _frozen())
    taught = np.asarray(batch["image"]).reshape(B, K)[:, ::-1].argmax(-1)
    expected = -_log_softmax(_logits(model[1], batch)[:, ::-1])[np.arange(B), taught].mean()
    np.testing.assert_allclose(value, expected, rtol=1e-6)


def test_two_heads_without_a_teacher_train_their_mean(batch):
    model = split(TwoHeads())
    logits = _logits(model[1], batch)
    logits = (logits + logits[:, ::-1]) / 2
    value, (_, metrics) = _train_loss(Classification(CLASSES), model, batch)
    label = np.asarray(batch["label"])
    np.testing.assert_allclose(value, -_log_softmax(logits)[np.arange(B), label].mean(), rtol=1e-6)
    np.testing.assert_allclose(metrics["accuracy"], (logits.argmax(-1) == label).mean(), rtol=1e-6)


def test_without_a_teacher_nothing_is_frozen():
    assert Classification(CLASSES).frozen_shapes() == {}
    assert Classification(CLASSES).model_fields() == {"num_classes": K, "token_labels": False}


def test_task_errors(teacher):
    with pytest.raises(InputError, match=r"unknown task.loss 'sofmax': did you mean 'softmax'"):
        Classification(CLASSES, loss="sofmax")
    with pytest.raises(InputError, match=r"task.teacher='resnet50' needs task.teacher_weights"):
        Classification(CLASSES, teacher="resnet50")
    with pytest.raises(InputError, match=r"task.teacher_weights='x' is no run's workdir.*name the model in task.teach"):
        Classification(CLASSES, teacher_weights="x")
    with pytest.raises(InputError, match=r"the teacher of task.teacher_weights='x' has 3 classes, the data have 8"):
        Classification(CLASSES, teacher="resnet18", teacher_weights="x", teacher_fields={"num_classes": 3})
    with pytest.raises(InputError, match=r"unknown config field of resnet18 'depth': did you mean 'depths'"):
        Classification(CLASSES, teacher="resnet18", teacher_weights="x", teacher_fields={"depth": 3})
    with pytest.raises(InputError, match=r"unknown task.distillation 'hart': did you mean 'hard'"):
        Classification(CLASSES, distillation="hart", **teacher)
    with pytest.raises(InputError, match=r"unknown model 'resnet5': did you mean 'resnet50'"):
        Classification(CLASSES, teacher="resnet5", teacher_weights="x")
    for field, value in (
        ("label_smoothing", 1.5),
        ("label_smoothing", -0.1),
        ("distillation_weight", 2.0),
        ("temperature", 0.0),
    ):
        with pytest.raises(InputError, match=rf"task.{field}={value}"):
            Classification(CLASSES, **{field: value})


def _config(**fields):
    return ml_collections.ConfigDict({"name": "classification", **fields})


def test_make_task():
    task = make_task(_config(label_smoothing=0.1), ["a", "b"])
    assert task == Classification(("a", "b"), label_smoothing=0.1)
    assert make_task(_config(class_names=("a", "b"))).class_names == ("a", "b")
    assert make_task(_config(class_names=("a", "b")), ["a", "b"]).class_names == ("a", "b")


def test_make_task_errors():
    with pytest.raises(InputError, match=r"tells no class_names"):
        make_task(_config())
    with pytest.raises(InputError, match=r"the data has 2 classes, the run's config.task.class_names 2, or others"):
        make_task(_config(class_names=("a", "b")), ["a", "c"])
    with pytest.raises(InputError, match=r"unknown task.name 'clasification': did you mean 'classification'"):
        make_task(ml_collections.ConfigDict({"name": "clasification"}), ["a"])
    with pytest.raises(InputError, match="unknown option of task classification: 'smoothing': did you mean 'label_sm"):
        make_task(_config(smoothing=0.1), ["a"])
