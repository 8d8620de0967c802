"""The arrays behind the pictures, each against its definition."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from sklearn.decomposition import PCA

import tiny
import vision_jax as vj
from vision_jax.errors import InputError
from vision_jax.layers.conv import Conv
from vision_jax.layers.neighborhood import NeighborhoodAttention
from vision_jax.layers.window import WindowAttention
from vision_jax.models.base import FeatureInfo
from vision_jax.tools import visualize
from vision_jax.tools.visualize import attention, grids, relative_bias

SWIN = dict(img_size=32, patch_size=4, embed_dim=8, depths=(2, 1), num_heads=(2, 4), window_size=3, num_classes=5)
NAT = dict(img_size=32, embed_dim=8, depths=(1, 2), num_heads=(2, 4), kernel_size=3, dilations=(1, 2), num_classes=5)


def swin(name="swin_tiny_patch4_window7_224", **fields):
    return tiny.refilled(vj.create_model(name, **{**SWIN, **fields}), np.float32)


def nat(**fields):
    return tiny.refilled(vj.create_model("nat_mini", **{**NAT, **fields}), np.float32)


MODELS = {"vit": tiny.vit, "swin": swin, "swin_v2": lambda: swin("swinv2_tiny_window8_256"), "nat": nat}


def images(model, count=2):
    return tiny.normal(count, *np.broadcast_to(model.config.img_size, 2), model.config.in_chans)


def window_layer(window=(2, 3), shift=(0, 0)):
    layer = WindowAttention(6, 2, window, shift)
    return layer, lambda size: attention.window_keys(size, window, shift)


def neighbour_layer(kernel=(3, 3), dilation=(1, 1)):
    layer = NeighborhoodAttention(6, 2, kernel, dilation)
    return layer, lambda size: attention.neighborhood_keys(size, kernel, dilation)


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("made", "size"),
    [
        (window_layer(), (4, 6)),
        (window_layer(shift=(1, 2)), (4, 6)),
        (window_layer((3, 3), (1, 1)), (5, 7)),  # padded after the shift
        (neighbour_layer(), (5, 6)),
        (neighbour_layer((3, 5), (2, 1)), (7, 6)),
        (neighbour_layer((3, 3), (2, 3)), (5, 7)),  # padded to 6 x 9
    ],
)
def test_values_of_the_keys_weighted_are_what_the_layer_gives(made, size):
    layer, keys = tiny.refilled(made[0], np.float32), made[1](size)
    x = tiny.normal(2, *size, 6)
    static, variables = vj.split(layer)
    out, state = vj.apply(static, variables, x, capture="probabilities")
    weights = np.asarray(state["captured"]["probabilities"]).reshape(2, len(keys), 2, -1)
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)
    values = np.asarray(layer.qkv.project(x, 2)).reshape(2, -1, 2, 3)
    beyond = np.broadcast_to(np.asarray(layer.qkv.bias[2]), (2, 1, 2, 3))  # what zeros project to
    values = np.concatenate([values, beyond], axis=1)[:, keys]  # key -1 is the last
    weighted = np.einsum("bqhk,bqkhd->bqhd", weights, values).reshape(2, *size, 6)
    np.testing.assert_allclose(layer.proj(jnp.asarray(weighted)), out, rtol=2e-4, atol=2e-4)


@pytest.mark.heavy
@pytest.mark.parametrize("family", MODELS)
def test_weights_sum_to_one_over_the_keys(family):
    model = MODELS[family]()
    layers = visualize.attention_maps(model, images(model))
    assert len(layers) == 3
    for layer in layers:
        tokens = layer.prefix + np.prod(layer.grid)
        assert layer.weights.shape[0] == 2
        assert layer.weights.shape[2:] == layer.keys.shape
        assert len(layer.keys) == tokens
        np.testing.assert_allclose(layer.weights.sum(-1), 1, rtol=1e-5)
        full = (layer.keys >= 0).all(axis=1)
        np.testing.assert_allclose(layer.mean_matrix(1)[full].sum(-1), 1, rtol=1e-5)


def test_layers_are_those_of_the_pattern_in_order():
    model = tiny.vit(depth=11)
    names = [layer.name for layer in visualize.attention_maps(model, images(model))]
    assert names == [f"blocks.{i}.attn" for i in range(11)]
    (one,) = visualize.attention_maps(model, images(model), "blocks.10*")
    assert one.name == "blocks.10.attn"
    with pytest.raises(InputError, match=r"unknown attention layer 'blocks.11.attn': did you mean 'blocks.1"):
        visualize.attention_maps(model, images(model), "blocks.11.attn")


def test_a_query_sees_its_keys_where_they_lie():
    model = swin()
    layer = visualize.attention_maps(model, images(model))[1]  # 8 x 8, windows of 3 shifted by 1
    seen = layer.seen_from((2, 4), image=1)
    assert seen.shape == (2, 8, 8)
    inside = np.zeros((8, 8), bool)
    inside[1:4, 4:7] = True
    np.testing.assert_array_equal(np.isnan(seen[0]), ~inside)
    np.testing.assert_allclose(seen[:, inside], layer.weights[1, :, 2 * 8 + 4])
    vit = tiny.vit()
    token = visualize.attention_maps(vit, images(vit))[0]
    np.testing.assert_array_equal(token.seen_from("class"), token.weights[0, :, 0, 1:].reshape(2, 2, 2))
    np.testing.assert_array_equal(token.seen_from((1, 0)), token.weights[0, :, 3, 1:].reshape(2, 2, 2))


@pytest.mark.parametrize("query", ["class", (2, 0), (0, -1), (0,)])
def test_a_query_that_is_not_there(query):
    layer = attention.AttentionMap("blocks.0.attn", np.ones((1, 1, 4, 4)), np.zeros((4, 4), int), (2, 2), 0)
    with pytest.raises(InputError, match=r"query="):
        layer.seen_from(query)


def test_rollout_of_a_vit_is_the_papers_product():
    model = tiny.refilled(tiny.vit(), np.float32)
    x = images(model)
    static, variables = vj.split(model)
    captured = vj.apply(static, variables, x, capture="*.probabilities")[1]["captured"]
    for image, query in itertools.product(range(2), ("class", (1, 0))):
        joint = np.eye(5)
        for i in range(3):
            weights = np.asarray(captured[f"blocks.{i}.attn.probabilities"])[image]
            joint = (weights.mean(0) + np.eye(5)) / 2 @ joint
        row = 0 if query == "class" else 3
        found = visualize.rollout(model, x, query)[image]
        np.testing.assert_allclose(found, joint[row, 1:].reshape(2, 2), rtol=1e-5)
        if query == "class":
            np.testing.assert_allclose(visualize.rollout(model, x)[image], found)


@pytest.mark.heavy
@pytest.mark.parametrize("made", [swin, nat])
def test_rollout_through_stages(made):
    """A stage's end as a matrix: each token is a quarter of each of the four of its place."""
    model = made(**({"img_size": 24} if made is swin else {}))
    x = images(model, 1)
    layers = visualize.attention_maps(model, x)
    fine, coarse = layers[0].grid, layers[-1].grid
    merging = np.zeros((np.prod(coarse), np.prod(fine)))
    for i, j in itertools.product(*map(range, fine)):
        merging[i // 2 * coarse[1] + j // 2, i * fine[1] + j] = 1 / 4
    joint = np.eye(np.prod(fine))
    for layer in layers:
        if len(joint) != np.prod(layer.grid):
            joint = merging @ joint
        matrix = np.eye(len(joint))
        for query, keys in enumerate(layer.keys):
            for slot, key in enumerate(keys):
                if key >= 0:
                    matrix[query, key] += layer.weights[0, :, query, slot].mean()
        joint = matrix / 2 @ joint
    found = visualize.rollout(model, x)
    np.testing.assert_allclose(found[0], joint.mean(0).reshape(fine), rtol=1e-5)
    corner = visualize.rollout(model, x, (0, 1))
    np.testing.assert_allclose(corner[0], joint[1].reshape(fine), rtol=1e-5, atol=1e-9)


def test_bias_is_told_by_offset_from_query_to_key():
    model = swin()
    first = visualize.relative_biases(model)[0]
    assert first.name == "stages.0.blocks.0.attn"
    table = np.asarray(model.stages[0].blocks.__getattribute__("0").attn.relative_position_bias_table[...])
    table = table.reshape(5, 5, 2)  # by query minus key
    for down, right in itertools.product(range(-2, 3), repeat=2):
        np.testing.assert_array_equal(first.bias[:, down + 2, right + 2], table[2 - down, 2 - right])


def test_bias_of_every_kind_is_what_the_scores_get():
    made = swin("swinv2_tiny_window8_256")
    bias = made.stages[0].blocks.__getattribute__("0").attn.cpb_mlp()
    found = visualize.relative_biases(made, "stages.0.blocks.0.*")[0].bias
    for (i, query), (j, key) in itertools.product(enumerate(itertools.product(range(3), repeat=2)), repeat=2):
        np.testing.assert_array_equal(found[:, key[0] - query[0] + 2, key[1] - query[1] + 2], bias[:, i, j])
    one = visualize.relative_biases(nat())
    assert [bias.name for bias in one] == ["stages.0.blocks.0.attn", "stages.1.blocks.0.attn", "stages.1.blocks.1.attn"]
    assert [bias.step for bias in one] == [(1, 1), (1, 1), (2, 2)]


def test_the_bias_of_a_neighborhood_is_told_by_offset_too():
    """A bias for one offset alone makes each pixel look there."""
    layer = NeighborhoodAttention(6, 2, (3, 3))
    layer.qkv.kernel[...] = jnp.zeros(layer.qkv.kernel.shape)
    layer.rpb[...] = jnp.zeros((2, 5, 5)).at[:, 3, 2].set(50.0)  # the key below
    static, variables = vj.split(layer)
    state = vj.apply(static, variables, tiny.normal(1, 5, 5, 6), capture="probabilities")[1]
    weights = np.asarray(state["captured"]["probabilities"]).reshape(25, 2, 9)
    keys = attention.neighborhood_keys((5, 5), (3, 3), (1, 1))
    assert keys[12][weights[12, 0].argmax()] == 17
    np.testing.assert_array_equal(relative_bias._bias(layer)[0, 3, 2], 50)


def test_colours_are_scikit_learns_components():
    features = np.asarray(tiny.normal(2, 5, 6, 8)) * np.arange(8, 0, -1)
    colours, share = visualize.feature_colours(features, clip=0)
    judge = PCA(3).fit(features.reshape(-1, 8))
    scores = judge.transform(features.reshape(-1, 8))
    np.testing.assert_allclose(share, judge.explained_variance_ratio_, rtol=1e-6)
    for got, wanted in zip(colours.reshape(-1, 3).T, scores.T, strict=True):
        assert abs(np.corrcoef(got, wanted)[0, 1]) == pytest.approx(1)
        assert (got.min(), got.max()) == (0, 1)
    clipped, _ = visualize.feature_colours(features, clip=10)
    assert (clipped == 0).mean() == pytest.approx(0.1, abs=0.02)
    with pytest.raises(InputError, match=r"\[B, H, W, C\] with C at least 3"):
        visualize.feature_colours(features[..., :2])


class Convolutions(nnx.Module):
    """3x3 convolutions and nothing else, with a map after each."""

    def __init__(self, count, channels, dilation=1):
        sizes = [3] + [channels] * count
        self.convs = nnx.List(
            Conv(a, b, 3, stride=1, padding=dilation, dilation=dilation, bias=False)
            for a, b in itertools.pairwise(sizes)
        )
        self.feature_info = tuple(FeatureInfo(f"convs.{i}", channels, 1) for i in range(count))

    def forward_features(self, x, pyramid, out_indices):
        maps = []
        for conv in self.convs:
            x = conv(x)
            maps.append(x)
        return [maps[i] for i in out_indices]


@pytest.mark.parametrize(("count", "dilation", "reach"), [(1, 1, [0, 1]), (2, 1, [0, 1, 2]), (1, 3, [0, 3])])
def test_the_field_of_convolutions_is_exactly_their_window(count, dilation, reach):
    field = visualize.receptive_field(Convolutions(count, 4, dilation), tiny.normal(2, 11, 13, 3))
    near = np.isin(abs(np.arange(11) - 5), reach)[:, None] & np.isin(abs(np.arange(13) - 6), reach)
    np.testing.assert_array_equal(field > 0, near)
    assert field.max() == 1


def test_the_field_of_one_channel_is_its_kernels_size():
    model = Convolutions(1, 1)
    field = visualize.receptive_field(model, tiny.normal(1, 7, 7, 3), draws=2)
    size = np.sqrt(np.square(np.asarray(model.convs[0].kernel[...])).sum(axis=(2, 3)))
    np.testing.assert_allclose(field[2:5, 2:5], size / size.max(), rtol=1e-5)
    assert visualize.effective_side(np.pad(np.full((4, 4), 0.05), 3)) == 4
    assert visualize.effective_side(np.full((4, 4), 0.045)) == 0


def cam(head, maps):
    """Equations 1 and 2: maps [B, h, w, C] of which `head` makes the score of each image."""
    weights = jax.grad(lambda maps: head(maps).sum())(maps).mean(axis=(1, 2))
    return np.maximum(np.einsum("bc,bhwc->bhw", weights, maps), 0)


def test_grad_cam_of_a_last_stage():
    model = tiny.refilled(tiny.resnet(), np.float32)
    x = images(model)
    maps, labels, probabilities = visualize.grad_cam(model, x)
    logits = np.asarray(model(x))
    np.testing.assert_array_equal(labels, logits.argmax(-1))
    np.testing.assert_allclose(probabilities, jax.nn.softmax(logits).max(-1), rtol=1e-5)
    last = model.forward_features(x)
    wanted = cam(lambda last: model.forward_head(last)[jnp.arange(2), labels], last)
    assert wanted.max() > 0
    np.testing.assert_allclose(maps, wanted, rtol=1e-4, atol=1e-5 * wanted.max())
    other = visualize.grad_cam(model, x, [3, 0])[0]
    wanted = cam(lambda last: model.forward_head(last)[jnp.arange(2), jnp.array([3, 0])], last)
    np.testing.assert_allclose(other, wanted, rtol=1e-4, atol=1e-5 * max(wanted.max(), 1))


def test_grad_cam_of_a_vit_is_at_the_last_attention():
    model = tiny.refilled(tiny.vit(), np.float32)
    x = images(model)
    static, variables = vj.split(model)
    before = vj.apply(static, variables, x, capture="blocks.1.output")[1]["captured"]["blocks.1.output"]
    block = model.blocks.__getattribute__("2")
    normed = block.norm1(before)

    def score(patches):
        tokens = jnp.concatenate([normed[:, :1], patches.reshape(2, 4, -1)], axis=1)
        y = before + block.attn(tokens)
        y = y + block.mlp(block.norm2(y))
        return model.forward_head(model.norm(y))[jnp.arange(2), jnp.array([1, 4])]

    wanted = cam(score, normed[:, 1:].reshape(2, 2, 2, -1))
    maps, _, _ = visualize.grad_cam(model, x, [1, 4])
    np.testing.assert_allclose(maps, wanted, rtol=1e-4, atol=1e-5 * wanted.max())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(labels=[0, 5]), r"labels=\[0, 5\]: one class in 0..4 for each of the 2"),
        (dict(labels=[0]), "for each of the 2 images"),
        (dict(layer="blocks.7.norm1"), "did you mean 'blocks.2.norm1'|did you mean 'blocks.0.norm1'|did you mean"),
        (dict(layer="head"), r"no map of the image"),
    ],
)
def test_grad_cam_of_what_is_not_there(options, message):
    model = tiny.vit()
    with pytest.raises(InputError, match=message):
        visualize.grad_cam(model, images(model), **options)


def test_scanned_blocks_are_refused():
    model = tiny.vit(scan_blocks=True)
    for picture in (visualize.attention_maps, visualize.rollout, visualize.grad_cam):
        with pytest.raises(InputError, match="scan_blocks=True: pictures need unrolled blocks"):
            picture(model, images(model))
    with pytest.raises(InputError, match="scan_blocks=True"):
        visualize.relative_biases(model)


def test_maps_are_resized():
    values = np.arange(6.0).reshape(2, 3)
    np.testing.assert_array_equal(grids.nearest(values, (4, 6)), values.repeat(2, 0).repeat(2, 1))
    wanted = jax.image.resize(jnp.asarray(values), (4, 9), "bilinear")
    np.testing.assert_allclose(grids.bilinear(values, (4, 9)), wanted, rtol=1e-6)
    assert grids.as_map(np.zeros((2, 7, 5)), (2, 3)).shape == (2, 2, 3, 5)
