"""CvT beside its golden: names of the authors' code, misuse."""

import pytest

import vision_jax as vj
from vision_jax.weights.convert import dialect, entries


def shapes(name, names):
    model = vj.create_model(name, abstract=True)
    found = entries(model, dialect(model, names))
    return {key: shape for entry in found for key, shape in zip(entry.names, entry.reference_shapes, strict=True)}


def test_names_of_the_authors_code():
    official = shapes("cvt_13", "official")
    assert official["stage0.patch_embed.proj.weight"] == (64, 3, 7, 7)
    assert official["stage1.blocks.1.attn.conv_proj_k.conv.weight"] == (192, 1, 3, 3)
    assert official["stage1.blocks.1.attn.conv_proj_k.bn.running_var"] == (192,)
    assert official["stage2.blocks.9.attn.proj_v.weight"] == (384, 384)
    assert official["stage2.cls_token"] == (1, 1, 384)


def test_bad_fields_are_named():
    with pytest.raises(vj.InputError, match="act='relu'"):
        vj.create_model("cvt_13", act="relu")
    with pytest.raises(vj.InputError, match="depths"):
        vj.create_model("cvt_13", depths=(1, 2))
    with pytest.raises(vj.InputError, match="num_heads"):
        vj.create_model("cvt_13", num_heads=(1, 3, 7))
