import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.neighbors import KNeighborsClassifier

import tiny_run
import vision_jax as vj
from vision_jax.data import load_source
from vision_jax.tools import features


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(5, 8))
    labels, truth = rng.integers(5, size=60), rng.integers(5, size=40)
    known, queries = (centres[c] + rng.normal(size=(len(c), 8)) for c in (labels, truth))
    return known.astype(np.float32), labels, queries.astype(np.float32), truth


def test_nearest_neighbours_are_scikit_learns(data):
    known, labels, queries, _ = data
    judge = KNeighborsClassifier(7, weights=lambda d: np.exp((1 - d) / 0.07), metric="cosine").fit(known, labels)
    scores = np.asarray(features.nearest(known, labels, queries, neighbours=7, num_classes=5))
    np.testing.assert_allclose(scores / scores.sum(1, keepdims=True), judge.predict_proba(queries), atol=1e-4)


@pytest.mark.parametrize("count", [6, 60])
def test_few_examples_are_scikit_learns_ridge(data, count):
    known, labels, queries, _ = data
    known, labels = known[:count], labels[:count]
    mean, std = known.mean(0), known.std(0) + 1e-5
    x, q = (np.c_[(a - mean) / std, np.ones(len(a))] for a in (known, queries))
    judge = Ridge(alpha=3.0, fit_intercept=False).fit(x, 2 * np.eye(5)[labels] - 1)
    scores = features.ridge(known, labels, queries, num_classes=5, strength=3.0)
    np.testing.assert_allclose(scores, judge.predict(q), atol=1e-4)


def test_few_of_each_class():
    labels = np.array([3, 0, 3, 1, 0, 3, 0, 0])
    some = features.few_of(labels, 2)
    assert np.bincount(labels[some]).tolist() == [2, 1, 0, 2]
    assert len(set(some.tolist())) == 5
    assert set(features.few_of(labels, 9).tolist()) == set(range(8))
    assert len({tuple(features.few_of(labels, 1, seed)) for seed in range(20)}) > 3


@pytest.mark.heavy
def test_the_command(tmp_path, capsys):
    recipe = str(tiny_run.CONFIGS / "digits_vit.py")
    fields = dict(img_size=8, in_chans=1, patch_size=2, embed_dim=96, depth=4, num_heads=3, class_token=False)
    model = vj.create_model("vit_tiny_patch16_224", **fields, global_pool="avg", position="sincos2d", num_classes=10)
    vj.save_weights(model, tmp_path / "w.safetensors", names="ours")
    assert features.main(["--config", recipe]) == 2
    assert "--weights is needed" in capsys.readouterr().err
    assert (
        features.main(["--config", recipe, "--weights", str(tmp_path / "w.safetensors"), "--neighbours", "1438"]) == 2
    )
    assert "--neighbours=1438: 1 to 1437" in capsys.readouterr().err
    assert features.main(["--config", recipe, "--weights", str(tmp_path / "w.safetensors"), "--few", "10"]) == 0
    told = capsys.readouterr().out

    vj_model = vj.create_model("vit_tiny_patch16_224", **fields, global_pool="avg", position="sincos2d", num_classes=0)
    pooled = vj.jit(vj.load_weights(vj_model, tmp_path / "w.safetensors", head="skip"))
    parts = []
    for split in ("train", "test"):
        source = load_source("digits", split)
        images = np.stack([source[i]["image"] for i in range(len(source))])
        parts += [
            pooled(jnp.float32(images / 255 - 0.3) / 0.38),
            np.array([source[i]["label"] for i in range(len(source))]),
        ]
    known, labels, queries, truth = parts
    scores = features.nearest(known, labels, queries, neighbours=20, num_classes=10)
    some = features.few_of(labels, 10)
    few = features.ridge(known[some], labels[some], queries, num_classes=10)
    right = [(np.asarray(s).argmax(1) == truth).mean() for s in (scores, few)]
    assert [line.partition(":")[0] for line in told.splitlines()] == ["nearest neighbours", "10 a class"]
    percent = [float(line.partition(": ")[2].rstrip("%")) for line in told.splitlines()]
    assert percent == pytest.approx([100 * share for share in right], abs=1)  # of 360 images few lie in the middle
