"""What RAVLT, L2ViT and ViR do of their own; for their values see the goldens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vision_jax as vj
from vision_jax.errors import InputError
from vision_jax.models import ravlt
from vision_jax.models.l2vit import LinearGlobalAttention
from vision_jax.models.ravlt import RankAugmentedAttention
from vision_jax.models.vir import Retention, log_decays


def filled(layer, rng, scale=0.5):
    """The layer with random parameters, and them in float64 by their dotted names."""
    static, variables = vj.split(layer)
    variables = jax.tree.map(lambda leaf: (scale * rng.normal(size=leaf.shape)).astype(np.float32), variables)
    return static, variables, jax.tree.map(lambda leaf: leaf.astype(np.float64), variables["params"])


def test_retention_equals_its_recurrence():
    """Equation 3 of arXiv:2310.19731, token by token: S = gamma S + k^T v, out = q S."""
    rng = np.random.default_rng(0)
    static, variables, p = filled(Retention(6, 2, dtype=jnp.float64), rng)
    x, decays = rng.normal(size=(1, 9, 6)), np.exp(log_decays(2))
    np.testing.assert_allclose(decays, [1 - 1 / 32, 1 - 1 / 512], rtol=1e-12)
    q, k, v = np.einsum("nc,cihd->inhd", x[0], p["qkv"]["kernel"]) + p["qkv"]["bias"][:, None]
    out = np.zeros((9, 2, 3))
    for head in range(2):
        state = np.zeros((3, 3))
        for n in range(9):
            state = decays[head] * state + np.outer(k[n, head], v[n, head])
            out[n, head] = q[n, head] / np.sqrt(3) @ state
    wanted = out.reshape(9, 6) @ p["proj"]["kernel"] + p["proj"]["bias"]
    with jax.enable_x64(True):
        np.testing.assert_allclose(vj.apply(static, variables, jnp.asarray(x))[0][0], wanted, rtol=1e-9)


def test_linear_global_attention_equals_its_definition():
    """Section 3.2 of arXiv:2501.16182, with divisors on both sides of the least that is allowed."""
    rng = np.random.default_rng(1)
    static, variables, p = filled(LinearGlobalAttention(8, 2, dtype=jnp.float64), rng, 1.0)
    x = rng.normal(size=(1, 3, 4, 8))
    q, k, v = np.einsum("nc,cihd->inhd", x.reshape(12, 8), p["qkv"]["kernel"]) + p["qkv"]["bias"][:, None]
    q, k, out, divisors = np.maximum(q, 0), np.maximum(k, 0), np.zeros((12, 2, 4)), []
    for n, head in np.ndindex(12, 2):
        weights = [q[n, head] @ k[m, head] for m in range(12)]
        divisors.append(sum(weights))
        for m in range(12):
            out[n, head] += weights[m] * v[m, head] * p["temperature"][head, 0, 0] / max(sum(weights), 100)
    assert min(divisors) < 50 < 150 < max(divisors)
    wanted = out.reshape(12, 8) @ p["proj"]["kernel"] + p["proj"]["bias"]
    with jax.enable_x64(True):
        np.testing.assert_allclose(vj.apply(static, variables, jnp.asarray(x))[0].reshape(12, 8), wanted, rtol=1e-9)


def test_rank_augmented_weights_sum_to_the_tokens(monkeypatch):
    """Equation 8 of arXiv:2411.07635: all keys one, every token counts once, and unturned the mean is left."""
    monkeypatch.setattr(ravlt, "frequencies", lambda head_dim: (0.0,) * (head_dim // 4))
    rng = np.random.default_rng(2)
    v = rng.normal(size=(1, 3, 5, 2, 4))
    q, k = rng.normal(size=(1, 3, 5, 2, 4)), np.broadcast_to(rng.normal(size=(2, 4)), v.shape)
    with jax.enable_x64(True):
        layer = RankAugmentedAttention(8, 2, dtype=jnp.float64)
        out = layer.attend(*map(jnp.asarray, (q, k, v)))
    np.testing.assert_allclose(out, np.broadcast_to(v.mean((1, 2), keepdims=True), v.shape), rtol=1e-5)


def test_ravlt_writes_the_rotary_frequencies():
    """The authors' class holds them as a buffer, so a strict load there wants them; reading, they are ignored."""
    model = vj.create_model("ravlt_tiny", depths=(1, 0, 1, 0), embed_dims=(8, 8, 8, 8), num_heads=(1, 1, 1, 1), seed=3)
    state = vj.state_dict(model, "official")
    angles = [name for name in state if "RoPE" in name]
    assert angles == [f"layers.{i}.RoPE.angle" for i in range(4)]
    np.testing.assert_allclose(state[angles[0]], [1, 1, 1e-4, 1e-4], rtol=1e-6)
    again = vj.load_weights(vj.create_model("ravlt_tiny", abstract=True, **fields_of(model)), state)
    np.testing.assert_array_equal(vj.state_dict(again, "official")["proj.weight"], state["proj.weight"])


def fields_of(model):
    return {name: getattr(model.config, name) for name in ("depths", "embed_dims", "num_heads")}


@pytest.mark.parametrize(
    ("name", "fields", "said"),
    [
        ("ravlt_tiny", dict(mixers=("linear", "soft", "softmax", "softmax")), "did you mean 'softmax'"),
        ("ravlt_tiny", dict(mixers=("linear",)), "differ in length"),
        ("ravlt_tiny", dict(embed_dims=(62, 128, 256, 512)), "rotated four by four"),
        ("l2vit_tiny", dict(num_heads=(3, 6, 12, 25)), "must be multiples of num_heads"),
        ("vir_small_patch16_224", dict(img_size=225), "the nearest is"),
        ("vir_small_patch16_224", dict(num_heads=7), "must be a multiple of num_heads=7"),
    ],
)
def test_wrong_fields_are_told(name, fields, said):
    with pytest.raises(InputError, match=said):
        vj.create_model(name, abstract=True, **fields)


def test_vir_positions_at_another_size():
    small = dict(embed_dim=8, depth=1, num_heads=2, num_classes=3)
    state = vj.state_dict(vj.create_model("vir_small_patch16_224", img_size=64, **small), "official")
    model = vj.load_weights(vj.create_model("vir_small_patch16_224", img_size=(96, 64), abstract=True, **small), state)
    assert model.pos_embed.shape == (1, 24, 8)
    with pytest.raises(InputError, match="the model is for 96 x 64"):
        model(jnp.zeros((1, 64, 64, 3)))
