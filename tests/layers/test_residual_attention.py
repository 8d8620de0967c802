"""The self-attention of residual networks, and ECA, against literal loops over queries, keys and heads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vision_jax.layers.bilinear_attention import BilinearTransform
from vision_jax.layers.efficient_channel_attention import EfficientChannelAttention
from vision_jax.layers.global_attention import GlobalAttention
from vision_jax.layers.halo_attention import HaloAttention
from vision_jax.layers.lambda_layer import LambdaLayer

X = np.random.default_rng(0).normal(size=(2, 4, 8, 6))


def run(make):
    """A layer with random values, what it gives for X, and {name: value}, all in float64."""
    rng = np.random.default_rng(1)
    with jax.enable_x64(True):
        layer = make()
        for _, variable in nnx.to_flat_state(nnx.state(layer)):
            value = variable.get_value()
            variable.set_value(jnp.asarray(rng.uniform(0.2, 1.2, value.shape)))
        given = layer(jnp.asarray(X))
        flat = nnx.to_flat_state(nnx.state(layer))
    assert given.dtype == np.float64
    return given, {".".join(map(str, path)): np.asarray(v.get_value()) for path, v in flat}


def softmax(x):
    x = np.exp(x - x.max())
    return x / x.sum()


def attended(q, keys, values, biases):
    """One query of one head."""
    scores = [q @ k / np.sqrt(len(q)) + q @ bias for k, bias in zip(keys, biases, strict=True)]
    return softmax(np.array(scores)) @ np.array(values)


@pytest.mark.parametrize("stride", [1, 2])
def test_halo_attention(stride):
    """Section 2.2 of arXiv:2103.12731: every query of a window of 4 meets 6 x 6 keys, zeros beyond the map."""
    given, w = run(
        lambda: HaloAttention(6, 2, 5, window_size=4, halo=1, stride=stride, dtype=jnp.float64),
    )
    q = np.einsum("byxc,cd->byxd", X[:, ::stride, ::stride], w["q.kernel"].reshape(6, 10))
    kv = np.pad(X @ w["kv.kernel"], ((0, 0), (1, 1), (1, 1), (0, 0)))
    wanted, side = np.zeros((*q.shape[:3], 6)), 4 // stride
    for b, y, x, head in np.ndindex(*q.shape[:3], 2):
        top, left, keys, values, biases = y // side * 4, x // side * 4, [], [], []
        for i, j in np.ndindex(6, 6):
            pair = kv[b, top + i, left + j].reshape(2, -1)[head]
            keys.append(pair[:5])
            values.append(pair[5:])
            biases.append(w["pos_embed.height_rel"][i - y % side + 5] + w["pos_embed.width_rel"][j - x % side + 5])
        wanted[b, y, x, 3 * head : 3 * head + 3] = attended(q[b, y, x].reshape(2, 5)[head], keys, values, biases)
    np.testing.assert_allclose(given, wanted, rtol=1e-10)


def test_global_attention():
    """Figure 4 of arXiv:2101.11605: content-content and content-position scores over the whole map."""
    given, w = run(lambda: GlobalAttention(6, 2, 5, size=(4, 8), dtype=jnp.float64))
    q, k, v = np.split(X @ w["qkv.kernel"], (10, 20), axis=-1)
    for b, y, x, head in np.ndindex(2, 4, 8, 2):
        places = list(np.ndindex(4, 8))
        keys = [k[b, i, j].reshape(2, 5)[head] for i, j in places]
        values = [v[b, i, j].reshape(2, 3)[head] for i, j in places]
        biases = [w["pos_embed.height_rel"][i - y + 3] + w["pos_embed.width_rel"][j - x + 7] for i, j in places]
        wanted = attended(q[b, y, x].reshape(2, 5)[head], keys, values, biases)
        np.testing.assert_allclose(given[b, y, x, 3 * head : 3 * head + 3], wanted, rtol=1e-10)


@pytest.mark.parametrize("radius", [3, None])
def test_lambda_layer(radius):
    """Section 3.1 of arXiv:2102.08602: the content lambda and each query's position lambda, term by term."""
    given, w = run(lambda: LambdaLayer(6, 2, 5, radius=radius, size=(4, 8), dtype=jnp.float64))
    q, k, v = np.split(X @ w["qkv.kernel"], (10, 15), axis=-1)

    def normed(x, name):
        scale = w[f"{name}.scale"] / np.sqrt(w[f"{name}.var"] + 1e-5)
        return (x - w[f"{name}.mean"]) * scale + w[f"{name}.bias"]

    q, v, places = normed(q, "norm_q"), normed(v, "norm_v"), list(np.ndindex(4, 8))
    for b, y, x in np.ndindex(2, 4, 8):
        shares = np.stack([softmax(k[b, ..., c].reshape(-1)) for c in range(5)], axis=-1)
        function = sum(np.outer(share, v[b, i, j]) for share, (i, j) in zip(shares, places, strict=True))
        if radius:
            near = [(i, j) for i, j in places if abs(i - y) <= 1 and abs(j - x) <= 1]
            function += sum(np.outer(w["conv_lambda.kernel"][i - y + 1, j - x + 1, 0], v[b, i, j]) for i, j in near)
            function += w["conv_lambda.bias"][:, None]
        else:
            function += sum(np.outer(w["pos_emb"][i - y + 3, j - x + 7], v[b, i, j]) for i, j in places)
        wanted = q[b, y, x].reshape(2, 5) @ function
        np.testing.assert_allclose(given[b, y, x], wanted.reshape(-1), rtol=1e-10)


@pytest.mark.parametrize(("dim", "size"), [(6, 3), (64, 3), (256, 5), (512, 5), (1024, 5), (2048, 7)])
def test_the_kernel_of_efficient_channel_attention_grows(dim, size):
    assert EfficientChannelAttention(dim).conv.shape == (size,)


def test_efficient_channel_attention():
    given, w = run(lambda: EfficientChannelAttention(6, dtype=jnp.float64))
    means = np.pad(X.mean((1, 2)), ((0, 0), (1, 1)))
    for b, c in np.ndindex(2, 6):
        gate = 1 / (1 + np.exp(-(w["conv"] @ means[b, c : c + 3])))
        np.testing.assert_allclose(given[b, ..., c], X[b, ..., c] * gate, rtol=1e-12)


def test_bilinear_transform():
    """Every output as the sum over the blocks in its place, of two groups of channels, by both matrices."""
    given, w = run(lambda: BilinearTransform(6, 2, 2, dtype=jnp.float64))

    def layer(x, name):
        y = x @ w[f"{name}.conv.kernel"] - w[f"{name}.bn.mean"]
        return np.maximum(y / np.sqrt(w[f"{name}.bn.var"] + 1e-5) * w[f"{name}.bn.scale"] + w[f"{name}.bn.bias"], 0)

    seen, mixed = layer(X, "conv1"), np.zeros_like(X)
    for b, group in np.ndindex(2, 2):
        rows = np.stack([seen[b, 2 * i : 2 * i + 2].max((0, 1)) for i in range(2)])
        columns = np.stack([seen[b, :, 4 * i : 4 * i + 4].max((0, 1)) for i in range(2)])
        p = np.einsum("ic,ico->o", rows, w["conv_p.kernel"][:, 0]) + w["conv_p.bias"]
        q = np.einsum("ic,ico->o", columns, w["conv_q.kernel"][0]) + w["conv_q.bias"]
        p, q = (1 / (1 + np.exp(-m.reshape(2, 2, 2)[group])) for m in (p, q))
        p, q = p / p.sum(1, keepdims=True), q / q.sum(0, keepdims=True)
        for y, x, i, j in np.ndindex(4, 8, 2, 2):
            source = X[b, 2 * i + y % 2, 4 * j + x % 4, 3 * group : 3 * group + 3]
            mixed[b, y, x, 3 * group : 3 * group + 3] += p[y // 2, i] * source * q[j, x // 4]
    np.testing.assert_allclose(given, layer(mixed, "conv2"), rtol=1e-10)
