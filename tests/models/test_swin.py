"""Swin and Swin V2 beyond their goldens: sizes, misuse, cosine attention by its definition."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import vision_jax as vj
import windows
from vision_jax.errors import InputError
from vision_jax.models.swin_v2 import CosineWindowAttention

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
        (dict(img_size=226), r"the nearest is \(224, 224\)"),
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
