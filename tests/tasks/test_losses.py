import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vision_jax.errors import InputError
from vision_jax.tasks import losses

B, K = 5, 7


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        yield 5 * rng.standard_normal((B, K)), rng.dirichlet(np.ones(K), B), 5 * rng.standard_normal((B, K))


def _softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _close(got, expected, shape=(B,)):
    assert got.shape == shape
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, expected, rtol=1e-13, atol=1e-15)


def test_softmax_cross_entropy(arrays):
    logits, targets, _ = arrays
    _close(
        losses.softmax_cross_entropy(jnp.array(logits), jnp.array(targets)),
        -(targets * np.log(_softmax(logits))).sum(-1),
    )


@pytest.mark.parametrize("threshold", [None, 0.1])
def test_sigmoid_cross_entropy(arrays, threshold):
    logits, targets, _ = arrays
    p = 1 / (1 + np.exp(-logits))
    y = targets if threshold is None else (targets > threshold).astype(float)
    loss = -(y * np.log(p) + (1 - y) * np.log(1 - p))
    args = jnp.array(logits), jnp.array(targets)
    _close(losses.sigmoid_cross_entropy(*args, target_threshold=threshold), loss.mean(-1))
    _close(losses.sigmoid_cross_entropy(*args, target_threshold=threshold, sum_classes=True), loss.sum(-1))


def _timm_one_hot(labels, smoothing):
    out = np.full((len(labels), K), smoothing / K)
    out[np.arange(len(labels)), labels] = 1 - smoothing + smoothing / K
    return out


def test_smooth(arrays):
    labels = np.array([0, 6, 3, 3, 1])
    for smoothing in (0.0, 0.1):
        _close(losses.smooth(jnp.array(labels), K, smoothing), _timm_one_hot(labels, smoothing), (B, K))


def test_mixed_targets(arrays):
    label, mixed = np.array([0, 6, 3, 3, 1]), np.array([1, 3, 3, 6, 0])
    weight = np.array([1.0, 0.0, 0.3, 0.8, 0.5])
    first, second = _timm_one_hot(label, 0.1), _timm_one_hot(mixed, 0.1)
    expected = first * weight[:, None] + second * (1 - weight[:, None])
    _close(losses.mixed_targets(jnp.array(label), jnp.array(mixed), jnp.array(weight), K, 0.1), expected, (B, K))
    scalar = losses.mixed_targets(jnp.array(label), jnp.array(mixed), 0.3, K, 0.1)
    _close(scalar, first * 0.3 + second * 0.7, (B, K))


def test_distillation(arrays):
    student, _, teacher = arrays
    q, p = _softmax(student / 3.0), _softmax(teacher / 3.0)
    _close(losses.distillation(jnp.array(student), jnp.array(teacher), "soft", 3.0), 9 * (p * np.log(p / q)).sum(-1))
    hard = -np.log(_softmax(student))[np.arange(B), teacher.argmax(-1)]
    _close(losses.distillation(jnp.array(student), jnp.array(teacher), "hard"), hard)


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_no_gradient_reaches_the_teacher(arrays, kind):
    student, _, teacher = map(jnp.array, arrays)
    gradients = jax.grad(lambda s, t: losses.distillation(s, t, kind).sum(), (0, 1))(student, teacher)
    assert jnp.abs(gradients[0]).max() > 0.1
    assert jnp.abs(gradients[1]).max() == 0


def test_unknown_distillation():
    with pytest.raises(InputError, match="'soft'"):
        losses.distillation(jnp.zeros((1, 2)), jnp.zeros((1, 2)), "softt")


def test_low_precision_is_widened():
    logits = jnp.array([[100.0, -100.0, 0.0]], jnp.bfloat16)
    targets = losses.mixed_targets(jnp.array([1]), jnp.array([0]), jnp.array([0.5], jnp.bfloat16), 3, 0.1)
    assert targets.dtype == jnp.float32
    for fn in (losses.softmax_cross_entropy, losses.sigmoid_cross_entropy, losses.distillation):
        out = fn(logits, targets.astype(jnp.bfloat16))
        assert out.dtype == jnp.float32
        assert np.isfinite(out).all()
