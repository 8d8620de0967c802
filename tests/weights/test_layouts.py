"""Each layer's layout by value, against literal numpy."""

import numpy as np
import pytest
from flax import nnx

from vision_jax.layers.attention import KV, Attention, FreeKeysQKV, Values, WideQKV
from vision_jax.layers.conv import Conv
from vision_jax.layers.glu import GLU
from vision_jax.layers.linear import Linear, PointwiseConv
from vision_jax.layers.norm import BatchNorm, LayerNorm
from vision_jax.layers.scale import LayerScale
from vision_jax.weights.convert import state_dict
from vision_jax.weights.load import load_weights


class Layers(nnx.Module):
    """One of each."""

    linen_names = {  # noqa: RUF012
        "linen": ((r"qkv\.", ("query.", "key.", "value.")), (r"kv\.", ("k.", "v.")))
    }

    def __init__(self):
        self.linear = Linear(2, 3)
        self.pointwise = PointwiseConv(2, 3)
        self.conv = Conv(4, 6, (1, 2), groups=2)
        self.depthwise = Conv(5, 5, 3, groups=5, bias=False)
        self.norm = LayerNorm(2, epsilon=1e-6)
        self.bn = BatchNorm(2)
        self.ls = LayerScale(2, 0.1)
        self.attn = Attention(6, 2)
        self.kv = KV(6, 2, 3)
        self.wide = WideQKV(2, 3, 1, 2)
        self.glu = GLU(2, 3)
        self.listed = nnx.List([Linear(1, 1, bias=False)])


@pytest.fixture
def layers():
    layers, rng = Layers(), np.random.default_rng(0)
    for _, module in nnx.iter_modules(layers):
        for leaf in vars(module).values():
            if isinstance(leaf, nnx.Variable):
                leaf.set_value(rng.normal(size=leaf.shape).astype(np.float32))
    return layers


def test_torch_names_and_shapes(layers):
    shapes = {name: array.shape for name, array in state_dict(layers).items()}
    assert shapes == {
        "linear.weight": (3, 2), "linear.bias": (3,), "pointwise.weight": (3, 2, 1, 1), "pointwise.bias": (3,),
        "conv.weight": (6, 2, 1, 2), "conv.bias": (6,), "depthwise.weight": (5, 1, 3, 3),
        "norm.weight": (2,), "norm.bias": (2,), "ls.gamma": (2,), "listed.0.weight": (1, 1),
        "bn.weight": (2,), "bn.bias": (2,), "bn.running_mean": (2,), "bn.running_var": (2,),
        "bn.num_batches_tracked": (),
        "kv.weight": (12, 6), "kv.bias": (12,), "wide.weight": (12, 2), "wide.bias": (12,),
        "glu.weight": (6, 2), "glu.bias": (6,),
        "attn.qkv.weight": (18, 6), "attn.qkv.bias": (18,), "attn.proj.weight": (6, 6), "attn.proj.bias": (6,),
    }  # fmt: skip


def test_torch_values(layers):
    torch = state_dict(layers)
    assert torch["linear.weight"][2, 1] == layers.linear.kernel[1, 2]
    assert torch["pointwise.weight"][2, 1, 0, 0] == layers.pointwise.kernel[1, 2]
    assert torch["conv.weight"][5, 1, 0, 1] == layers.conv.kernel[0, 1, 1, 5]
    assert torch["depthwise.weight"][4, 0, 2, 1] == layers.depthwise.kernel[2, 1, 0, 4]
    for name, leaf in (("weight", "scale"), ("bias", "bias"), ("running_mean", "mean"), ("running_var", "var")):
        np.testing.assert_array_equal(torch[f"bn.{name}"], getattr(layers.bn, leaf)[...])
    assert torch["bn.num_batches_tracked"].dtype == np.int64


def test_qkv_is_part_then_head_then_channel(layers):
    torch = state_dict(layers)
    for part in range(3):
        for head in range(2):
            for i in range(3):
                row = part * 6 + head * 3 + i  # torch's reshape(3, heads, head_dim) of the outputs
                np.testing.assert_array_equal(torch["attn.qkv.weight"][row], layers.attn.qkv.kernel[:, part, head, i])
                assert torch["attn.qkv.bias"][row] == layers.attn.qkv.bias[part, head, i]


def test_keys_come_before_values_and_gates_before_what_they_gate(layers):
    torch = state_dict(layers)
    np.testing.assert_array_equal(torch["kv.weight"][1 * 6 + 1 * 3 + 2], layers.kv.kernel[:, 1, 1, 2])
    assert torch["kv.bias"][1 * 6 + 0 * 3 + 1] == layers.kv.bias[1, 0, 1]
    np.testing.assert_array_equal(torch["glu.weight"][1 * 3 + 2], layers.glu.kernel[:, 1, 2])
    assert torch["glu.bias"][0 * 3 + 1] == layers.glu.bias[0, 1]


def test_projections_of_fewer_parts():
    for layer, rows in ((FreeKeysQKV(6, 2, 3), 18), (Values(6, 2, 3), 6)):
        layer.bias.set_value(np.random.default_rng(0).normal(size=layer.bias.shape).astype(np.float32))
        torch = state_dict(layer)
        assert torch["weight"].shape == (rows, 6)
        last = layer.kernel.shape[1] - 1
        np.testing.assert_array_equal(torch["weight"][last * 6 + 1 * 3 + 2], layer.kernel[:, last, 1, 2])
        np.testing.assert_array_equal(torch["bias"], layer.bias[...].reshape(-1))
        again = load_weights(type(layer)(6, 2, 3), torch)
        np.testing.assert_array_equal(again.kernel[...], layer.kernel[...])
        np.testing.assert_array_equal(again.bias[...], layer.bias[...])


def test_linen_keeps_heads_apart(layers):
    linen = state_dict(layers, "linen")
    np.testing.assert_array_equal(linen["attn.key.kernel"], layers.attn.qkv.kernel[:, 1])
    np.testing.assert_array_equal(linen["attn.value.bias"], layers.attn.qkv.bias[2])
    out = linen["attn.proj.kernel"]
    assert out.shape == (2, 3, 6)
    assert out[1, 2, 4] == layers.attn.proj.kernel[1 * 3 + 2, 4]
    np.testing.assert_array_equal(linen["conv.kernel"], layers.conv.kernel[...])
    np.testing.assert_array_equal(linen["norm.scale"], layers.norm.scale[...])


@pytest.mark.parametrize("names", ["timm", "linen", "ours"])
def test_every_layout_is_inverted(layers, names):
    given = state_dict(layers, names)
    again = state_dict(load_weights(Layers(), given), names)
    assert again.keys() == given.keys()
    for name in given:
        np.testing.assert_array_equal(again[name], given[name])


def test_state_dict_holds_copies(layers):
    state_dict(layers, "ours")["norm.scale"][:] = 7
    assert (layers.norm.scale[...] != 7).all()
