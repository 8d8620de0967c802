"""What the blocks of a ResNet may hold, where its goldens do not go: against the definitions in numpy."""

import math

import jax
import numpy as np
import pytest

import tiny
from vision_jax import create_model
from vision_jax.errors import InputError
from vision_jax.functional import apply, split
from vision_jax.models.resnet.model import Residual, ResNetConfig
from vision_jax.models.resnet.selective import SelectiveKernel, SKNetConfig
from vision_jax.models.resnet.split_attention import ResNeStConfig, SplitAttention
from vision_jax.registry import layer_group

X = np.random.default_rng(0).standard_normal((2, 6, 8, 4))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def run(make):
    """A module with random values in float64, and what it gives for X in evaluation."""
    with jax.enable_x64(True):
        module = tiny.refilled(make())
        return module, np.asarray(module(jax.numpy.asarray(X)))


def layer(module, x):
    """One layer of it, in float64."""
    with jax.enable_x64(True):
        return np.asarray(module(jax.numpy.asarray(x)))


def relu(x):
    return np.maximum(x, 0)


def test_means_in_place_of_strides():
    c = ResNetConfig(anti_alias="mean", avg_down=True, dtype=np.float64)
    block, given = run(lambda: Residual(c, 4, 6, c.layers(6, 6, 2), dim=6))
    assert block.conv1.stride == (1, 1)
    y = relu(layer(block.bn1, layer(block.conv1, X)))
    y = y.reshape(2, 3, 2, 4, 2, 6).mean((2, 4))
    y = layer(block.bn2, layer(block.conv2, y))
    shortcut = layer(block.downsample[2], layer(block.downsample[1], X.reshape(2, 3, 2, 4, 2, 4).mean((2, 4))))
    np.testing.assert_allclose(given, relu(shortcut + y), rtol=1e-12)


@pytest.mark.parametrize("size", [(65, 79), (64, 80)])
def test_means_of_odd_maps(size):
    static, variables = split(create_model("resnetaa50", abstract=True))
    images = jax.ShapeDtypeStruct((1, *size, 3), np.float32)
    features, _ = jax.eval_shape(lambda v, x: apply(static, v, x, method="forward_features"), variables, images)
    assert features.shape[1:3] == tuple(
        math.ceil(-(-n // 2) // 2 / 8) for n in size
    )  # the stem's rounds down, as timm's


@pytest.mark.parametrize("radix", [1, 2])
@pytest.mark.parametrize("pool_first", [False, True])
def test_split_attention(radix, pool_first):
    """Section 3.1, the splits and groups one by one."""
    c = ResNeStConfig(radix=radix, pool_first=pool_first, dtype=np.float64)
    mixer, given = run(lambda: SplitAttention(c, 4, stride=2, groups=2))

    def pooled(x):
        x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        return np.stack(
            [
                np.stack([x[:, i : i + 3, j : j + 3].sum((1, 2)) / 9 for j in range(0, x.shape[2] - 2, 2)], 1)
                for i in range(0, x.shape[1] - 2, 2)
            ],
            1,
        )

    x = relu(layer(mixer.bn0, layer(mixer.conv, pooled(X) if pool_first else X)))
    splits = [x[..., 4 * r : 4 * r + 4] for r in range(radix)]
    hidden = relu(layer(mixer.bn1, layer(mixer.squeeze, sum(splits).mean((1, 2), keepdims=True))))
    scores = layer(mixer.excite, hidden)[:, 0, 0]
    wanted = 0
    for r, part in enumerate(splits):
        weights = []
        for group in range(2):
            own = scores[:, 2 * radix * group : 2 * radix * (group + 1)]
            of_split = [own[:, 2 * i : 2 * i + 2] for i in range(radix)]
            total = sum(np.exp(s) for s in of_split)
            weights.append(sigmoid(own) if radix == 1 else np.exp(of_split[r]) / total)
        wanted = wanted + part * np.concatenate(weights, axis=-1)[:, None, None]
    np.testing.assert_allclose(given, wanted if pool_first else pooled(wanted), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("halves", [False, True])
def test_selective_kernel(halves):
    """Section 3.1: both scales of all channels, or of their halves."""
    c = SKNetConfig(split=halves, dtype=np.float64)
    mixer, given = run(lambda: SelectiveKernel(c, 4, 6, stride=2, groups=1))
    assert [conv.dilation for conv in mixer.convs] == [(1, 1), (2, 2)]
    seen = (X[..., :2], X[..., 2:]) if halves else (X, X)
    branches = [relu(layer(n, layer(v, x))) for n, v, x in zip(mixer.bns, mixer.convs, seen, strict=True)]
    whole = layer(mixer.norm, layer(mixer.fc_reduce, sum(branches).mean((1, 2), keepdims=True)))
    first, second = np.split(layer(mixer.fc_select, relu(whole)), 2, axis=-1)
    weight = sigmoid(first - second)
    np.testing.assert_allclose(given, weight * branches[0] + (1 - weight) * branches[1], rtol=1e-10, atol=1e-12)


def test_squeeze_and_excitation_starts_as_the_convolutions_do():
    block = getattr(create_model("seresnet18", depths=(1,), embed_dims=(512,), num_classes=0).stages[0], "0")
    for fc, fan in ((block.se.fc1, 32), (block.se.fc2, 512)):
        assert np.std(fc.kernel[...]) == pytest.approx(math.sqrt(2 / fan), rel=0.03)
    assert block.se.fc1.kernel.shape == (512, 32)
    assert abs(block.se.fc2.bias[...]).max() <= 1 / math.sqrt(32)  # torch's own


def test_pruned_networks_keep_the_attention_of_the_whole():
    block = getattr(create_model("ecaresnet50d_pruned", abstract=True).stages[0], "0")
    assert block.conv3.kernel.shape[-1] == 19
    assert block.se.conv.shape == (5,)  # as for 256 channels


def test_the_stems_pooling_is_of_the_stem():
    groups = create_model("resnetrs50", abstract=True).layer_groups()
    assert layer_group(groups, "maxpool.0.kernel") == layer_group(groups, "conv1.0.kernel") == 0


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("resnet50", dict(attn="sa"), "attn='sa': one of"),
        ("resnet50", dict(anti_alias="max"), "anti_alias='max': one of"),
        ("resnet50", dict(stem_pool="avg"), "stem_pool='avg': one of"),
        ("resnetrs50", dict(anti_alias="blur"), "anti_alias='blur' is for stem_pool='max'"),
        ("resnet18", dict(reduce_first=2), "reduce_first=2 are for block='bottleneck'"),
        ("ecaresnet50d_pruned", dict(depths=(1, 1, 1, 1)), r"pruned has widths for \(3, 4, 6, 3\) bottlenecks"),
        ("ecaresnet50d_pruned", dict(block="basic"), "block='basic'"),
        ("skresnet50", dict(reduce_first=2, embed_dims=(6, 8, 8, 8)), "split=True: 3 channels have no halves"),
        ("res2net50d", dict(reduce_first=2), "reduce_first=2: not in these networks"),
        ("resnet50_gn", dict(norm_groups=48), "norm_groups=48 does not divide 64 channels"),
        ("skresnet50", dict(anti_alias="mean"), "anti_alias='mean': not in these networks"),
        ("res2net50d", dict(scale=1), "scale=1: at least 2"),
        ("res2net50d", dict(block="basic", base_width=64), "block='basic': 'bottleneck' alone has scales"),
        ("resnest14d", dict(radix=0), "radix=0: at least 1"),
        ("resnest14d", dict(block="basic"), "block='basic': 'bottleneck' alone has splits"),
        ("resnest14d", dict(anti_alias="blur"), "anti_alias='blur': not in these networks"),
    ],
)
def test_what_cannot_be(name, fields, message):
    with pytest.raises(InputError, match=message):
        create_model(name, abstract=True, **fields)
