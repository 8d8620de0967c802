"""NAT and DiNAT beside their goldens: every published variant, the authors' names, the golden's operator."""

import re

import jax
import numpy as np
import pytest

import vision_jax as vj
from vision_jax.registry import list_models, model_info
from vision_jax.train.optim import NO_DECAY
from vision_jax.weights.convert import dialect, entries

PARAMS = {  # of the authors' code
    "nat_mini": 19_984_174,
    "nat_tiny": 27_901_582,
    "nat_small": 50_743_297,
    "nat_base": 89_769_652,
    "dinat_mini": 19_984_174,
    "dinat_tiny": 27_901_582,
    "dinat_small": 50_719_681,
    "dinat_base": 89_769_652,
    "dinat_large": 200_943_514,
    "dinat_large_384": 200_943_514,
    "dinat_large_384_11x11": 201_144_250,
    "dinat_s_tiny": 28_288_354,
    "dinat_s_small": 49_606_258,
    "dinat_s_base": 87_768_224,
    "dinat_s_large": 196_532_476,
    "dinat_s_large_384": 196_532_476,
    "nat_isotropic_small": 21_999_736,
    "dinat_isotropic_small": 21_999_736,
    "nat_isotropic_base": 86_465_800,
    "dinat_isotropic_base": 86_465_800,
}


def test_every_variant_has_the_authors_count():
    assert {name: model_info(name).params for name in list_models(family="nat")} == PARAMS


def dilations(name):
    model = vj.create_model(name, abstract=True)
    return [
        [getattr(stage.blocks, str(i)).attn.dilation[0] for i in range(len(stage.blocks))] for stage in model.stages
    ]


def test_dilations_are_the_authors():
    assert dilations("nat_tiny") == [[1] * 3, [1] * 4, [1] * 18, [1] * 5]
    assert dilations("dinat_mini") == [[1, 8, 1], [1, 4, 1, 4], [1, 2] * 3, [1] * 5]
    assert dilations("dinat_large_384") == [[1, 13, 1], [1, 6, 1, 6], [1, 3] * 9, [1] * 5]
    assert dilations("dinat_large_384_11x11") == [[1, 8, 1], [1, 4, 1, 4], [1, 2] * 9, [1] * 5]
    assert dilations("dinat_s_tiny") == [[1, 8], [1, 4], [1, 2] * 3, [1, 1]]
    assert dilations("dinat_isotropic_base") == [[1, 2] * 6]
    assert dilations("nat_isotropic_small") == [[1] * 12]


@pytest.mark.parametrize(
    ("name", "official"),
    [
        (
            "nat_base",
            {
                "patch_embed.proj.0.weight": (64, 3, 3, 3),
                "levels.0.blocks.2.attn.rpb": (4, 13, 13),
                "levels.0.blocks.2.gamma1": (128,),
                "levels.0.downsample.reduction.weight": (256, 128, 3, 3),
                "levels.2.downsample.norm.weight": (1024,),
                "levels.3.blocks.4.mlp.fc1.weight": (2048, 1024),
                "norm.weight": (1024,),
                "head.weight": (1000, 1024),
            },
        ),
        (
            "dinat_s_tiny",
            {
                "patch_embed.proj.weight": (96, 3, 4, 4),
                "layers.1.blocks.1.attn.qkv.weight": (576, 192),
                "layers.1.downsample.reduction.weight": (384, 768),
                "layers.1.downsample.norm.weight": (768,),
            },
        ),
        (
            "dinat_isotropic_small",
            {"patch_embed.norm.bias": (384,), "layers.11.attn.rpb": (12, 13, 13), "norm.bias": (384,)},
        ),
    ],
)
def test_names_are_the_authors(name, official):
    model = vj.create_model(name, abstract=True)
    ours = {}
    for entry in entries(model, dialect(model, "official")):
        ours |= dict(zip(entry.names, entry.reference_shapes, strict=True))
    assert {key: ours.get(key) for key in official} == official


def test_what_the_authors_do_not_decay():
    """Vectors, as timm does, and the tables `rpb`, which their models name."""
    model = vj.create_model("dinat_base", abstract=True)
    names = {entry.name: len(entry.shape) for entry in entries(model, dialect(model, "ours"))}
    spared = {name for name in names if any(re.search(pattern, name) for pattern in NO_DECAY)}
    assert spared == {name for name, axes in names.items() if axes == 1 or name.endswith((".rpb", "qkv.bias"))}


def test_weights_that_are_pickles_are_told():
    with pytest.raises(vj.InputError, match=r"a pickle, https://shi-labs\.com/.*/dinat_mini_in1k_224\.pth"):
        vj.create_model("dinat_mini", pretrained=True)
    with pytest.raises(vj.InputError, match=r"dinat_large_in22k_224\.pth"):
        vj.create_model("dinat_large.in22k", pretrained=True)
    assert model_info("dinat_large").tags["in22k"].num_classes == 21841


def test_bad_fields_are_named():
    with pytest.raises(vj.InputError, match=r"dilations=.*differ in length"):
        vj.create_model("dinat_mini", depths=(1, 2), num_heads=(2, 4))
    with pytest.raises(vj.InputError, match="kernel_size=8 is even"):
        vj.create_model("nat_mini", kernel_size=8)
    with pytest.raises(vj.InputError, match="must be multiples of num_heads"):
        vj.create_model("nat_mini", num_heads=(3, 4, 8, 16))


@pytest.mark.heavy
@pytest.mark.parametrize("dilation", [1, 2])  # of every second block
def test_scanned_blocks_and_images_of_any_size(dilation):
    fields = dict(embed_dim=8, depths=(3,), num_heads=(2,), dilations=(dilation,), kernel_size=3, num_classes=5)
    plain, scanned = (vj.create_model("nat_mini", seed=3, scan_blocks=scan, **fields) for scan in (False, True))
    for size in ((32, 20), (33, 9)):
        images = np.random.default_rng(0).standard_normal((2, *size, 3)).astype(np.float32)
        np.testing.assert_allclose(vj.jit(plain)(images), vj.jit(scanned)(images), rtol=1e-5, atol=1e-6)


@pytest.mark.parity
@pytest.mark.parametrize(("size", "dilation"), [((9, 12), 1), ((9, 11), 2), ((10, 13), 3)])
def test_the_goldens_operator_is_nattens_and_with_a_bias_the_definition(size, dilation, reference):
    natten, torch = reference("natten"), reference("torch")
    attend = reference("references.nat").attend
    from vision_jax.kernels.neighborhood_attention.reference import neighborhood_attention

    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((2, *size, 2, 8)) for _ in range(3))
    rpb = rng.standard_normal((2, 5, 5))
    scaled, keys, values, table = map(torch.from_numpy, (q * 8**-0.5, k, v, rpb))
    plain = attend(scaled.float(), keys.float(), values.float(), None, 3, dilation)
    theirs = natten.na2d(
        torch.from_numpy(q).float(), keys.float(), values.float(), kernel_size=3, dilation=dilation, backend="flex-fna"
    )
    np.testing.assert_allclose(plain, theirs, atol=5e-6)
    options = dict(
        kernel_size=(3, 3), stride=(1, 1), dilation=(dilation,) * 2, is_causal=(False,) * 2, border="shift", bias=rpb
    )
    np.testing.assert_allclose(
        attend(scaled, keys, values, table, 3, dilation), neighborhood_attention(q, k, v, **options)[0], atol=1e-12
    )


@pytest.mark.heavy
def test_bfloat16_stays_near():
    fields = dict(embed_dim=8, depths=(2,), num_heads=(2,), dilations=(2,), kernel_size=3, num_classes=5)
    images = np.random.default_rng(0).standard_normal((2, 24, 28, 3)).astype(np.float32)
    static, variables = vj.split(vj.create_model("dinat_mini", **fields))
    variables = jax.tree.map(lambda a: a + 0.1, variables)
    narrow = vj.split(vj.create_model("dinat_mini", abstract=True, dtype="bfloat16", **fields))[0]
    exact, rounded = (jax.jit(lambda v, x, s=s: vj.apply(s, v, x)[0])(variables, images) for s in (static, narrow))
    assert 0 < abs(rounded.astype(np.float32) - exact).max() < 0.05 * abs(exact).max()
