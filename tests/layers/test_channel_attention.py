import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vision_jax.layers.channel_attention import ChannelAttention


@pytest.mark.parametrize(("order", "scale_by_tokens"), [((0, 1, 2), True), ((1, 2, 0), False)])
def test_equals_the_paper(order, scale_by_tokens):
    """Section 3.3 of arXiv:2204.03645, a channel and a position at a time."""
    rng, (H, W, C, groups) = np.random.default_rng(0), (2, 3, 6, 2)
    width, x = C // groups, rng.normal(size=(1, H, W, C)).astype(np.float32)
    layer = ChannelAttention(C, groups, order=order, scale_by_tokens=scale_by_tokens, dtype=jnp.float64)
    for leaf in (layer.qkv.kernel, layer.qkv.bias, layer.proj.kernel, layer.proj.bias):
        leaf[...] = rng.normal(size=leaf.shape).astype(np.float32)
    kernel, bias, proj, last = (
        np.asarray(leaf[...], np.float64)
        for leaf in (layer.qkv.kernel, layer.qkv.bias, layer.proj.kernel, layer.proj.bias)
    )
    tokens, mixed = x.reshape(-1, C), np.zeros((H * W, groups, width))
    parts = np.einsum("nc,cpgw->pngw", tokens, kernel) + bias[:, None]
    q, k, v = (parts[i] for i in order)
    for group, channel in np.ndindex(groups, width):
        scores = np.array([(q[:, group, channel] * k[:, group, other]).sum() for other in range(width)])
        weights = np.exp(scores / np.sqrt(H * W if scale_by_tokens else width))
        mixed[:, group, channel] = (weights / weights.sum() * v[:, group]).sum(axis=1)
    wanted = (mixed.reshape(-1, C) @ proj + last).reshape(x.shape)
    with jax.enable_x64(True):
        np.testing.assert_allclose(layer(jnp.asarray(x, jnp.float64)), wanted, rtol=1e-9, atol=1e-9)
