"""Token labelling against a transcription of the released code's loss in NumPy (arXiv:2104.10858)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vision_jax as vj
from vision_jax.errors import InputError
from vision_jax.functional import split
from vision_jax.models.base import TokenLogits
from vision_jax.tasks import losses
from vision_jax.tasks.classification import Classification

B, K, CLASSES = 4, 7, tuple("abcdefg")
VOLO = dict(
    img_size=48, in_chans=3, embed_dims=(12, 16), num_heads=(2, 4), depths=(1, 1), stem_dim=8, class_depth=1,
    num_classes=K, token_labels=True,
)  # fmt: skip
RESNET = {"stem_dim": 8, "depths": (1, 1), "embed_dims": (8, 16), "img_size": 24}  # maps of 3x3, as VOLO's tokens
LABEL = np.array([0, 6, 3, 3])


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def literal(output, label_scores, labels, weight, ground_truth=None):
    """The released loss: `label_scores` [B, K, h, w] of an annotator, or None; `ground_truth`: whether to correct."""
    output, aux, kept = (np.asarray(x, np.float64) for x in output)
    aux = aux.reshape(len(aux), -1, K)
    target_cls, target_aux = labels, np.repeat(labels[:, None], aux.shape[1], axis=1)
    if label_scores is not None:
        kth = np.sort(label_scores, axis=1)[:, -5][:, None]
        sparse = np.where(label_scores >= kth, label_scores, 0)
        target_aux = softmax(sparse.reshape(len(sparse), K, -1).transpose(0, 2, 1))
        annotated = softmax(sparse.mean((2, 3)))
        if ground_truth is False:
            target_cls = annotated
        elif ground_truth:
            ratio = 0.9 - 0.4 * (labels.argmax(-1) == annotated.argmax(-1))[:, None]
            target_cls = annotated * ratio + labels * (1 - ratio)
    target_cls = kept * target_cls + (1 - kept) * target_cls[::-1]
    loss_cls = (-target_cls * np.log(softmax(output))).sum(-1).mean()
    loss_aux = (-target_aux.reshape(-1, K) * np.log(softmax(aux.reshape(-1, K)))).sum(-1).mean()
    return loss_cls + weight * loss_aux


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


@pytest.fixture(scope="module")
def given():
    """(static, variables, batch, what the model gives in train mode, its frozen teacher, the teacher's scores)."""
    static, variables = split(vj.create_model("volo_d1_224", **VOLO, mix_token=True))
    variables = jax.tree.map(lambda x: x + 0.1 * jnp.asarray(random(*x.shape), x.dtype), variables)
    variables["batch_stats"] = jax.tree.map(abs, variables["batch_stats"])
    batch = {"image": jnp.asarray(random(B, 48, 48, 3), jnp.float32), "label": jnp.array(LABEL)}
    key = jax.random.key(0)
    output, _ = jax.jit(lambda v: vj.apply(static, v, batch["image"], train=True, key=key))(variables)
    assert 0 < output.kept < 1
    model = vj.create_model("resnet18", num_classes=K, **RESNET)
    frozen = {"teacher": {"variables": split(model)[1], "scale": jnp.full(3, 2.0), "shift": jnp.full(3, 0.1)}}
    seen = jax.image.resize(batch["image"] * 2 + 0.1, (B, 24, 24, 3), "cubic")
    maps = np.asarray(model.forward_features(seen))
    scores = maps @ np.asarray(model.fc.kernel[...]) + np.asarray(model.fc.bias[...])  # the classifier on each position
    return static, variables, batch, key, output, frozen, scores.transpose(0, 3, 1, 2).astype(np.float64)


def loss_of(task, given, **more):
    static, variables, batch, key, _, frozen, _ = given
    return jax.jit(lambda v: task.train_loss(static, v, frozen, {**batch, **more}, key)[0])(variables)


TEACHER = {"teacher": "resnet18", "teacher_weights": "w", "teacher_fields": RESNET}


@pytest.mark.heavy
@pytest.mark.parametrize(("image_targets", "ground_truth"), [("labels", None), ("teacher", False), ("both", True)])
def test_the_loss_with_an_annotator(given, image_targets, ground_truth):
    task = Classification(CLASSES, token_labelling=True, token_weight=0.7, image_targets=image_targets, **TEACHER)
    expected = literal(given[4], given[6], np.eye(K)[LABEL], 0.7, ground_truth)
    np.testing.assert_allclose(loss_of(task, given), expected, rtol=2e-6)


@pytest.mark.heavy
def test_without_an_annotator_each_patch_has_the_images_label(given):
    task = Classification(CLASSES, token_labelling=True, label_smoothing=0.1)
    mixed = {"label_mixed": jnp.array(LABEL[::-1]), "mix_weight": jnp.full(B, 0.6)}
    labels = (0.6 * np.eye(K)[LABEL] + 0.4 * np.eye(K)[LABEL[::-1]]) * 0.9 + 0.1 / K
    np.testing.assert_allclose(loss_of(task, given, **mixed), literal(given[4], None, labels, 0.5), rtol=2e-6)


def test_targets_on_another_grid_and_all_scores():
    scores = random(2, 2, 2, K)
    image, tokens = losses.dense_targets(jnp.asarray(scores, jnp.float32), (4, 4), most=0)
    np.testing.assert_allclose(image, softmax(scores.mean((1, 2))), rtol=1e-5)
    a, b = scores[:, 0, 0], scores[:, 0, 1]
    np.testing.assert_allclose(tokens[:, 0, 1], softmax(0.75 * a + 0.25 * b), rtol=1e-5)
    np.testing.assert_allclose(tokens[:, 0, 0], softmax(a), rtol=1e-5)
    _, few = losses.dense_targets(jnp.asarray(scores, jnp.float32), (2, 2), most=2)
    assert (np.sort(few, axis=-1)[..., :-2].std(-1) < 1e-6).all()  # what is not kept is alike


def test_no_gradient_reaches_the_annotator():
    output = TokenLogits(jnp.zeros((2, K)), jnp.zeros((2, 2, 2, K)), jnp.float32(0.7))

    def loss(scores):
        image, tokens = losses.dense_targets(scores, (2, 2))
        return losses.token_labelling(output, image, tokens).sum()

    assert not jax.grad(loss)(jnp.asarray(random(2, 2, 2, K), jnp.float32)).any()


def test_smoothed_targets():
    targets = softmax(random(3, K))
    np.testing.assert_allclose(losses.smooth_targets(jnp.asarray(targets), 0.2), 0.8 * targets + 0.2 / K, rtol=1e-6)


def test_errors():
    with pytest.raises(InputError, match=r"token_labelling is for task.loss='softmax': given 'sigmoid'"):
        Classification(CLASSES, token_labelling=True, loss="sigmoid")
    with pytest.raises(InputError, match=r"unknown task.image_targets 'label': did you mean 'labels'"):
        Classification(CLASSES, token_labelling=True, image_targets="label")
    with pytest.raises(InputError, match=r"image_targets='both' needs task.token_labelling=True and a teacher"):
        Classification(CLASSES, token_labelling=True, image_targets="both")
    with pytest.raises(InputError, match=r"task.token_weight=-1 is negative"):
        Classification(CLASSES, token_labelling=True, token_weight=-1)
