"""What VOLO gives a training by token labelling."""

import jax
import numpy as np
import pytest

import vision_jax as vj
from vision_jax.models.base import TokenLogits
from vision_jax.models.volo import mixing_box

SMALL = dict(img_size=(32, 48), embed_dims=(12, 16), num_heads=(2, 4), depths=(1, 1), stem_dim=8, num_classes=7)
IMAGES = np.random.default_rng(0).normal(size=(4, 32, 48, 3)).astype(np.float32)


def run(train=True, seed=0, **fields):
    static, variables = vj.split(vj.create_model("volo_d1_224", **SMALL, **fields))
    return jax.jit(lambda v: vj.apply(static, v, IMAGES, train=train, key=jax.random.key(seed))[0])(variables)


def test_tokens_and_image_make_the_plain_logits():
    given, plain = run(token_labels=True), run()
    assert isinstance(given, TokenLogits)
    assert given.tokens.shape == (4, 2, 3, 7)
    assert given.kept == 1
    joined = given.logits + 0.5 * given.tokens.max(axis=(1, 2))
    np.testing.assert_allclose(joined, plain, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(run(train=False, token_labels=True), run(train=False))


def test_dense_logits_are_the_patches_own():
    model = vj.create_model("volo_d1_224", **SMALL)
    predict = vj.jit(model)
    dense, image = predict(IMAGES, method="dense_logits"), predict(IMAGES, method="forward_features")[:, 0]
    assert dense.shape == (4, 2, 3, 7)
    np.testing.assert_allclose(model.head(image) + 0.5 * dense.max((1, 2)), predict(IMAGES), rtol=0, atol=1e-5)


def test_boxes_are_those_of_cutmix():
    """A share of the area drawn uniformly, at a centre drawn uniformly, cut off at the border."""
    boxes = np.asarray(jax.vmap(lambda key: mixing_box(key, (14, 20)))(jax.random.split(jax.random.key(0), 2000)))
    rows, columns = boxes.any(axis=2), boxes.any(axis=1)
    np.testing.assert_array_equal(boxes, rows[:, :, None] & columns[:, None])
    for lines in (rows, columns):  # in one piece
        assert (np.abs(np.diff(np.pad(lines.astype(int), ((0, 0), (1, 1))), axis=1)).sum(axis=1) <= 2).all()
    rng = np.random.default_rng(0)
    share = []
    for _ in range(2000):
        lengths = (np.sqrt(rng.random()) * np.array([14, 20])).astype(int)
        centre = rng.integers(0, [14, 20])
        low, high = np.maximum(centre - lengths // 2, 0), np.minimum(centre + (lengths + 1) // 2, [14, 20])
        share.append(np.prod(high - low) / 280)
    assert abs(boxes.mean() - np.mean(share)) < 5 * np.std(share) * np.sqrt(2 / 2000)
    assert abs(boxes.mean(axis=(1, 2)).std() - np.std(share)) < 0.02


def test_a_wholly_mixed_batch_is_the_reversed_one(monkeypatch):
    monkeypatch.setattr("vision_jax.models.volo.mixing_box", lambda key, grid: np.ones(grid, bool))
    given, plain = run(token_labels=True, mix_token=True), run(token_labels=True)
    np.testing.assert_allclose(given.logits[::-1], plain.logits, rtol=0, atol=1e-5)
    np.testing.assert_allclose(given.tokens, plain.tokens, rtol=0, atol=1e-5)
    assert given.kept == 0


def test_mix_token_needs_token_labels():
    with pytest.raises(vj.InputError, match="token_labels=True"):
        vj.create_model("volo_d1_224", abstract=True, mix_token=True)
