"""Logits of single positions, as an annotator of token labelling gives them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tiny
import vision_jax as vj
from vision_jax.registry import family_of

FIRST = {}  # of each family
for name in vj.list_models():
    FIRST.setdefault(family_of(name), name)
OTHERS = ("deit_tiny_distilled_patch16_224", "vit_base_patch16_siglip_224", "vit_small_patch14_reg4_dinov2")


@pytest.mark.heavy
@pytest.mark.parametrize("name", [*FIRST.values(), *OTHERS])
def test_every_family(name):
    model = vj.create_model(name, abstract=True, num_classes=7)
    static, variables = vj.split(model)
    sides = np.broadcast_to(model.config.img_size, 2)
    images = jax.ShapeDtypeStruct((2, *sides.tolist(), 3), jnp.float32)

    def dense(variables, images):
        return vj.apply(static, variables, images, method="dense_logits")[0]

    if family_of(name) in ("crossvit", "lookupvit"):  # of two kinds of tokens
        with pytest.raises(vj.InputError, match="ViT has no logits of single positions"):
            jax.eval_shape(dense, variables, images)
    else:
        grid = -(-sides // model.feature_info[-1].reduction)  # strided convolutions round up
        assert jax.eval_shape(dense, variables, images).shape == (2, *grid, 7)


def test_of_a_map():
    """A linear classifier's: their mean is the classifier of the mean."""
    model, images = tiny.resnet(), tiny.normal(2, 32, 64, 3)
    predict = vj.jit(model)
    dense = predict(images, method="dense_logits")
    assert dense.shape == (2, 4, 8, 5)
    np.testing.assert_allclose(dense.mean((1, 2)), predict(images), rtol=1e-4, atol=1e-5)
    assert dense.std((1, 2)).min() > 1e-3


def test_of_tokens():
    """The patch stands where the class token is read, and among registers."""
    model, images = tiny.vit(img_size=(8, 16), reg_tokens=2), tiny.normal(2, 8, 16, 3)
    predict = vj.jit(model)
    patches = predict(images, method="forward_features")[:, 3:]
    expected = patches @ model.head.kernel[...] + model.head.bias[...]
    given = predict(images, method="dense_logits")
    np.testing.assert_allclose(given, expected.reshape(2, 2, 4, 5), rtol=1e-4, atol=1e-5)
    assert given.std((1, 2)).min() > 1e-3


def test_without_a_classifier():
    with pytest.raises(vj.InputError, match="or no head"):
        tiny.vit(num_classes=0).dense_logits(tiny.normal(1, 8, 8, 3))
