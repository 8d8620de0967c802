"""Swin and Swin V2 beyond their goldens: sizes, misuse, cosine attention by its definition."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import tiny
import vision_jax as vj
import windows
from vision_jax.errors import InputError
from vision_jax.mesh import make_mesh
from vision_jax.models.swin_v2 import CosineWindowAttention
from vision_jax.parallel.sharding import RULES
from vision_jax.tasks.classification import Classification
from vision_jax.train import step
from vision_jax.train.named_state import from_named, to_named

TINY = ("swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256")


@pytest.mark.parametrize("name", TINY)
def test_any_size_and_dtype(name):
    fields = dict(depths=(2, 2, 2, 2), img_size=(96, 160), num_classes=0, dtype=jnp.bfloat16)
    static, variables = vj.split(vj.create_model(name, abstract=True, **fields))

    def run(variables, images):
        maps, _ = vj.apply(static, variables, images, method="forward_features", pyramid=True, out_indices=(0, -1))
        return maps, vj.apply(static, variables, images)[0]

    maps, features = jax.eval_shape(run, variables, jax.ShapeDtypeStruct((1, 96, 160, 3), jnp.float32))
    assert [m.shape for m in maps] == [(1, 24, 40, 96), (1, 3, 5, 768)]
    assert features.shape == (1, 768)
    assert features.dtype == jnp.bfloat16


def test_misuse_is_told():
    static, variables = vj.split(vj.create_model(TINY[0], abstract=True, depths=(1, 1), num_heads=(3, 6)))
    with pytest.raises(InputError, match=r"img_size=\(96, 96\)"):
        jax.eval_shape(lambda *args: vj.apply(static, *args), variables, np.zeros((1, 96, 96, 3), np.float32))
    for fields, said in (
        (dict(depths=(1, 1)), "differ in length"),
        (dict(num_heads=(5, 6, 12, 24)), "5 does not divide 96, stage 0's channels"),
        (dict(img_size=226), "the nearest is 224$"),
        (dict(window_sizes=(7, 14)), "window_sizes=.7, 14. differ in length"),
        (dict(pretrained_window_sizes=(12,)), "one for each of the 4 stages"),
    ):
        with pytest.raises(InputError, match=said):
            vj.create_model(TINY[1], abstract=True, **fields)


def test_every_parameter_has_a_layer_group():
    model = vj.create_model(TINY[0], abstract=True)
    groups = {
        name: next(group for pattern, group in model.layer_groups() if re.search(pattern, name))
        for name in vj.state_dict(vj.create_model(TINY[0], depths=(1, 2, 1, 1)), "ours")
    }
    assert groups["patch_embed.proj.kernel"] == 0
    assert groups["stages.1.downsample.reduction.kernel"] == groups["stages.1.blocks.0.norm1.scale"] == 3
    assert groups["stages.2.blocks.0.attn.qkv.kernel"] == 5
    assert groups["head.kernel"] == groups["norm.scale"] == 13


def test_cosine_attention_equals_the_paper():
    """Equations 2 to 4; the second head's learned factor is beyond its bound of 100."""
    rng, size, window, shift = np.random.default_rng(0), (5, 7), (3, 4), (1, 2)
    attn = CosineWindowAttention(
        6, 2, window, shift, pretrained_window_size=6, proj_drop=0.0, dtype=jnp.float64
    )  # fmt: skip
    nnx.update(attn, jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), nnx.state(attn)))
    attn.logit_scale[...] = jnp.array([1.0, 9.0]).reshape(2, 1, 1)
    leaves = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), nnx.to_pure_dict(nnx.state(attn)))
    mlp = leaves["cpb_mlp"]

    def project(token):
        q, k, v = np.einsum("c,cihd->ihd", token, leaves["qkv"]["kernel"])
        return q + leaves["q_bias"].reshape(2, 3), k, v + leaves["v_bias"].reshape(2, 3)

    def score(q, k, rows, columns):
        if not k.any():  # a padded token: keys have no bias
            cosine = np.zeros(2)
        else:
            cosine = (q * k).sum(-1) / np.linalg.norm(q, axis=-1) / np.linalg.norm(k, axis=-1)
        offset = np.array([rows, columns]) * 8 / 5
        offset = np.sign(offset) * np.log2(1 + np.abs(offset)) / 3
        hidden = np.maximum(offset @ mlp["fc1"]["kernel"] + mlp["fc1"]["bias"], 0)
        return cosine * np.array([np.e, 100]) + 16 / (1 + np.exp(-hidden @ mlp["fc2"]["kernel"]))

    x = rng.normal(size=(2, *size, 6))
    wanted = np.stack([windows.attend(one, project, score, window, shift) for one in x])
    wanted = wanted @ leaves["proj"]["kernel"] + leaves["proj"]["bias"]
    with jax.enable_x64(True):
        np.testing.assert_allclose(attn(jnp.asarray(x)), wanted, rtol=0, atol=1e-11)


SMALL = dict(img_size=32, window_size=4, embed_dim=8, depths=(3, 2), num_heads=(2, 2), num_classes=5)


@pytest.mark.heavy
def test_scanned_blocks_train_alike_and_restore_each_other():
    """Two steps of each, with drop path; then the second from the other's checkpoint."""
    mesh, optimizer, task = make_mesh(data=1, devices=jax.devices()[:1]), optax.sgd(0.1, 0.9), Classification("abcde")
    batches = [{"image": tiny.normal(4, 32, 32, 3, seed=seed), "label": (np.arange(4) + seed) % 5} for seed in range(2)]
    fields, trained = {**SMALL, "depths": (3,), "num_heads": (2,), "drop_path_rate": 0.4}, {}
    for scan in (False, True):
        static, _ = vj.split(vj.create_model(TINY[0], abstract=True, scan_blocks=scan, **fields))
        run = jax.jit(step.make_train_step(static, task, optimizer, lambda key, batch: batch, mesh, RULES, seed=0))
        states = [step.initial_state(vj.init(static, jax.random.key(0)), optimizer, average=False)]
        for batch in batches:
            states.append(run(states[-1], batch, {})[0])
        trained[scan] = run, states
    for before, after in zip(*(states for _, states in trained.values()), strict=True):
        before, after = to_named(before), to_named(after)
        assert before.keys() == after.keys()
        tiny.assert_close(after, before, rtol=1e-4)
    assert any(key.startswith("opt_state.0.trace.stages.0.blocks.2.attn.qkv") for key in before)
    for scan, (run, states) in trained.items():
        crossed = from_named(to_named(trained[not scan][1][1]), states[1])
        tiny.assert_close(to_named(run(crossed, batches[1], {})[0]), to_named(states[2]), rtol=1e-4)


@pytest.mark.parametrize("name", TINY)
def test_scanned_blocks_keep_the_names_of_weight_files(name):
    model = vj.create_model(name, scan_blocks=True, **SMALL)
    weights = vj.state_dict(model)
    plain = vj.load_weights(vj.create_model(name, abstract=True, **SMALL), weights)
    again = vj.load_weights(vj.create_model(name, abstract=True, scan_blocks=True, **SMALL), vj.state_dict(plain))
    for leaf, value in vj.state_dict(again).items():
        np.testing.assert_array_equal(value, weights[leaf], err_msg=leaf)
    assert "layers.0.blocks.2.attn.qkv.weight" in weights
    names = tiny.by_name(vj.split(model)[1]["params"])
    assert names.keys() == tiny.by_name(vj.split(plain)[1]["params"]).keys()


def test_a_layer_of_every_scanned_block_is_replaced():
    class Doubled(nnx.Module):
        def __init__(self, layer):
            self.layer = layer

        def __call__(self, x):
            return 2 * self.layer(x)

    outputs = []
    for scan in (False, True):
        model = vj.replace(vj.create_model(TINY[0], scan_blocks=scan, **SMALL), "stages.0.blocks.*.mlp.fc2", Doubled)
        outputs.append(vj.jit(model)(tiny.normal(2, 32, 32, 3)))
    np.testing.assert_allclose(outputs[1], outputs[0], rtol=0, atol=1e-5 * abs(outputs[0]).max())
    plain = vj.jit(vj.create_model(TINY[0], **SMALL))(tiny.normal(2, 32, 32, 3))
    assert abs(plain - outputs[0]).max() > 1e-3 * abs(plain).max()


def test_a_scanned_program_does_not_grow_with_depth():
    def size(depth, scan):
        fields = {**SMALL, "depths": (depth, 2), "scan_blocks": scan}
        static, variables = vj.split(vj.create_model(TINY[0], abstract=True, **fields))

        def loss(params, x, key):
            return vj.apply(static, {"params": params, "batch_stats": {}}, x, train=True, key=key)[0].sum()

        args = variables["params"], jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32), jax.random.key(0)
        return len(jax.jit(jax.grad(loss)).lower(*args).as_text())

    assert size(18, scan=True) <= 1.1 * size(6, scan=True)
    assert size(6, scan=False) > 1.5 * size(2, scan=False)  # the measure sees what it is to see
