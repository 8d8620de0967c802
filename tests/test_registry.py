import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import tiny
from vision_jax import registry
from vision_jax.config_fields import checked
from vision_jax.errors import InputError
from vision_jax.registry import create_model, list_models, model_info


def test_list_models():
    names = list_models()
    assert names == sorted(names)
    assert {"vit_tiny_patch16_224", "resnet50"} <= set(names)
    assert list_models("resnet*") == [name for name in names if name.startswith("resnet")]
    assert list_models("nothing*") == []
    assert list_models(("resnet1*", "resnet50")) == [
        name for name in names if name.startswith("resnet1") or name == "resnet50"
    ]


def test_list_models_filters():
    family = list_models(family="volo")
    assert family == list_models("volo*")
    assert list_models(family="volo", exclude_filters="*_d5_*") == [name for name in family if "_d5_" not in name]
    assert list_models("volo_d1*", exclude_filters=["*224", "*512"]) == ["volo_d1_384"]
    assert list_models("resnet50?", exclude_filters="*[ds]") == ["resnet50c", "resnet50t"]
    with pytest.raises(InputError, match="unknown family 'vlo': did you mean 'volo'"):
        list_models(family="vlo")
    for wrong in ({"pattern": None}, {"exclude_filters": (5,)}):
        with pytest.raises(InputError, match=rf"list_models: {next(iter(wrong))}=.*: a pattern such as"):
            list_models(**wrong)


def test_list_models_with_tags():
    published = [name for name in list_models() if model_info(name).tags[model_info(name).default_tag].hub]
    tagged = list_models(pretrained=True)
    assert sorted({name.partition(".")[0] for name in tagged}) == published
    assert len(published) < len(list_models())
    assert list_models(pretrained=True, include_tags=False) == published
    assert list_models(include_tags=True) == tagged
    assert list_models("volo_d1_224", pretrained=True) == ["volo_d1_224.sail_in1k"]
    assert list_models("resnet50.a[0-9]_in1k", pretrained=True) == [f"resnet50.a{i}_in1k" for i in "123"]
    assert list_models("resnet50", pretrained=True, exclude_filters="*.a*") == [
        f"resnet50.{tag}" for tag in sorted(model_info("resnet50").tags) if not tag.startswith("a")
    ]
    assert all(model_info(name) for name in tagged)


def test_model_info():
    info = model_info("vit_base_patch16_224")
    assert info.name == "vit_base_patch16_224"
    weights = info.tags[info.default_tag]
    assert (weights.mean, weights.std, weights.crop_pct) == ((0.5,) * 3, (0.5,) * 3, 0.9)
    assert weights.hub == f"timm/vit_base_patch16_224.{info.default_tag}"
    weights = model_info("resnet50.a1_in1k").tags["a1_in1k"]
    assert (weights.mean, weights.std) == (registry.IMAGENET_MEAN, registry.IMAGENET_STD)
    with pytest.raises(InputError, match="unknown tag of resnet50: 'a9_in1k': did you mean"):
        model_info("resnet50.a9_in1k")
    with pytest.raises(InputError, match="unknown model 'resnet5': did you mean 'resnet50'"):
        model_info("resnet5")


def test_a_name_is_registered_once():
    info = model_info("resnet50")
    with pytest.raises(ValueError, match="'resnet50' is registered twice"):
        registry.register("resnet50", info.model, info.config, params=1, gmacs=1.0, paper="", licence="")


def test_create_model_errors():
    with pytest.raises(InputError, match="unknown model 'vit_tiny_patch16_22': did you mean 'vit_tiny_patch16_224'"):
        create_model("vit_tiny_patch16_22")
    with pytest.raises(InputError, match="unknown config field of resnet18 'num_class': did you mean 'num_classes'"):
        create_model("resnet18", num_class=3)


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("num_classes", -1, "0 or more"),
        ("num_classes", True, "an int is wanted"),
        ("num_classes", 10.0, "an int is wanted"),
        ("in_chans", 0, "1 or more"),
        ("img_size", 0, "pixels, one number or"),
        ("img_size", (224, 224, 3), "pixels, one number or"),
        ("img_size", "224", "an int or a tuple is wanted"),
        ("drop_path_rate", 1.0, "at least 0 and less than 1"),
        ("drop_rate", -0.1, "at least 0 and less than 1"),
        ("drop_rate", "0.1", "a number is wanted"),
        ("depths", "2262", "a tuple is wanted"),
        ("depths", (2, 2, "6", 2), "a tuple of numbers is wanted"),
        ("scan_blocks", 1, "True or False is wanted"),
        ("remat", 3, "a string or None is wanted"),
        ("dtype", "bf16", "one of 'float32', 'bfloat16'"),
        ("dtype", "int8", "one of 'float32', 'bfloat16'"),
        ("dtype", None, "one of 'float32', 'bfloat16'"),
    ],
)
def test_values_that_a_field_cannot_have(field, value, told):
    with pytest.raises(InputError, match=rf"{field}=.* of swin_tiny_patch4_window7_224: .*{told}"):
        create_model("swin_tiny_patch4_window7_224", abstract=True, **{field: value})


def test_values_in_other_clothes():
    """NumPy's numbers, an int for a float, a dtype by its name."""
    given = dict(num_classes=np.int64(10), drop_rate=0, img_size=[32, 64], dtype="bfloat16")
    config = create_model("resnet18", abstract=True, **given).config
    assert (config.num_classes, config.drop_rate, config.img_size, config.dtype) == (10, 0, (32, 64), jnp.bfloat16)
    assert hash(config) == hash(dataclasses.replace(config, dtype=jnp.bfloat16))


def test_registered_values_are_such_as_may_be_given():
    for name in list_models():
        config = model_info(name).config
        given = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
        assert checked(name, config, given) == given
        defaults = {field.name: field.default for field in dataclasses.fields(config)}
        assert checked(name, config, defaults) == defaults


def test_fields_may_come_from_json():
    model = create_model("resnet18", abstract=True, depths=[1, 1], embed_dims=[8, 16])
    assert model.config.depths == (1, 1)
    assert dataclasses.is_dataclass(model.config)


def test_abstract_models_hold_no_arrays():
    for model in (tiny.vit(abstract=True), tiny.vit(abstract=True, scan_blocks=True), tiny.resnet(abstract=True)):
        assert {type(leaf) for leaf in jax.tree.leaves(nnx.state(model))} == {jax.ShapeDtypeStruct}


def test_scanned_and_unrolled_models_start_alike():
    plain, scanned, deeper, other = (
        nnx.to_pure_dict(nnx.state(tiny.vit(**kw))) for kw in ({}, {"scan_blocks": True}, {"depth": 4}, {"seed": 1})
    )
    tiny.assert_close(scanned, plain, rtol=0)
    deeper["blocks"].pop("3")
    tiny.assert_close(deeper, plain, rtol=0)
    kernel = "blocks.1.mlp.fc1.kernel"
    assert (tiny.by_name(other)[kernel] != tiny.by_name(plain)[kernel]).mean() > 0.99
    assert (tiny.by_name(plain)["blocks.0.mlp.fc1.kernel"] != tiny.by_name(plain)[kernel]).mean() > 0.99


def test_fill_fills_what_is_abstract_and_no_more():
    model = tiny.resnet(abstract=True)
    given = np.ones(model.conv1.kernel.shape, np.float32)
    model.conv1.kernel.set_value(jax.numpy.array(given))
    assert registry.fill(model) is model
    np.testing.assert_array_equal(model.conv1.kernel[...], given)
    np.testing.assert_array_equal(model.bn1.var[...], 1.0)
    std = np.std(getattr(model.stages[1], "0").conv1.kernel[...])
    assert std == pytest.approx(np.sqrt(2 / (9 * 16)), rel=0.1)


@pytest.mark.parametrize("make", [tiny.vit, tiny.resnet])
def test_layer_groups(make):
    model = make(abstract=True)
    groups = model.layer_groups()
    names = tiny.by_name(jax.tree.map(lambda s: np.zeros(s.shape), nnx.to_pure_dict(nnx.state(model, nnx.Param))))
    told = {name: registry.layer_group(groups, name) for name in names}
    last = max(group for _, group in groups)
    assert set(told.values()) == set(range(last + 1))
    for name, group in told.items():
        parts = name.split(".")
        inside = int(parts[1]) + 1 if parts[0] in ("blocks", "stages") else None
        stem = parts[0] in ("patch_embed", "cls_token", "pos_embed", "conv1", "bn1")
        assert group == (inside if inside is not None else 0 if stem else last), name
