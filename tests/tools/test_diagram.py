"""Diagrams: what a model calls, in order, with the shapes that leave each part."""

import xml.etree.ElementTree

import vision_jax as vj
from vision_jax.tools.diagram import draw, rows

SWIN = dict(img_size=32, window_size=4, embed_dim=32, depths=(1, 3), num_heads=(2, 4), num_classes=5, abstract=True)


def test_rows_of_a_model():
    network, block, title = rows(vj.create_model("swin_tiny_patch4_window7_224", **SWIN))
    assert [(name, shape) for name, _, shape in network] == [
        ("patch_embed", (8, 8, 32)),
        ("stages.0.blocks", (8, 8, 32)),
        ("stages.1.downsample", (4, 4, 64)),
        ("stages.1.blocks", (4, 4, 64)),
        ("norm", (4, 4, 64)),
        ("head", (5,)),
    ]
    assert network[3][1] == "3 x Block"
    assert title == "stages.1.blocks.2: Block, the last of 3"
    assert [name for name, _, _ in block] == ["norm1", "attn", "norm2", "mlp"]
    assert block[1][1] == "WindowAttention: qkv, proj"


def test_a_picture_is_well_formed_and_leaves_the_classes_as_they_were():
    model = vj.create_model("swin_tiny_patch4_window7_224", **SWIN)
    before = type(model).__call__
    text = draw(model)
    assert type(model).__call__ is before
    svg = xml.etree.ElementTree.fromstring(text)
    said = [node.text for node in svg.iter("{http://www.w3.org/2000/svg}text")]
    assert "32 x 32 x 3" in said
    assert "stages.1.blocks" in said
