import copy
import json
import pathlib
import sys

import pytest

import tiny_run
from vision_jax.errors import InputError
from vision_jax.train.config import default_config, differences, load_config, read_config, save_config
from vision_jax.train.optim import DEFAULTS

RECIPES = sorted(path.name for path in tiny_run.CONFIGS.glob("[!_]*.py"))


def recipe(tmp_path, body, head="from vision_jax.train.config import default_config"):
    path = tmp_path / "recipe.py"
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    path.write_text(f"{head}\n\n\ndef get_config(arg=''):\n    c = default_config()\n{lines}    return c\n")
    return str(path)


def told(call, *args):
    with pytest.raises(InputError) as caught:
        call(*args)
    return str(caught.value)


def overridden(*overrides):
    return load_config(str(tiny_run.CONFIGS / "digits_vit.py"), overrides)


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_load_and_name_the_command_that_runs_them(name):
    load_config(str(tiny_run.CONFIGS / name))
    assert f"--config configs/{name}" in (tiny_run.CONFIGS / name).read_text()


def test_a_recipe_keeps_the_defaults_it_does_not_set(tmp_path):
    config = load_config(recipe(tmp_path, "c.optim.lr = 0.5\nc.data.options.image_size = 8"))
    expected = default_config()
    expected.optim.lr = 0.5
    expected.data.options.image_size = 8
    assert config == expected
    assert config.is_locked


def test_defaults_are_those_of_the_parts_they_configure():
    optim = {key: value for key, value in default_config().optim.items() if key in DEFAULTS}
    assert set(optim) == set(DEFAULTS)


def test_the_argument_reaches_the_recipe(tmp_path):
    path = recipe(tmp_path, "c.init_from = arg")
    assert load_config(f"{path}:gs://bucket/x:y").init_from == "gs://bucket/x:y"
    assert load_config(path).init_from == ""


def test_recipes_import_their_own_neighbours(tmp_path):
    before = list(sys.path), set(sys.modules)
    for name, seed in (("one", 1), ("two", 2)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "_shared.py").write_text(f"SEED = {seed}\n")
        path = recipe(tmp_path / name, "from _shared import SEED\nc.seed = SEED")
        assert load_config(path).seed == seed
    assert (list(sys.path), set(sys.modules)) == before


def test_whole_groups_may_be_given_as_dicts(tmp_path):
    config = load_config(recipe(tmp_path, "c.optim = dict(name='sgd', schedule=dict(name='linear'))"))
    assert (config.optim.name, config.optim.schedule.name) == ("sgd", "linear")
    assert config.optim.schedule.warmup == default_config().optim.schedule.warmup
    assert config.optim.clip == default_config().optim.clip


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        ("optim.lr", "3e-4", 3e-4),
        ("optim.lr", "1", 1.0),
        ("data.batch_size", "32", 32),
        ("dtype", "bfloat16", "bfloat16"),
        ("model.class_token", "true", True),
        ("model.class_token", "False", False),
        ("model.depths", "(2, 2)", (2, 2)),
        ("model.drop_rate", "0.1", 0.1),
        ("optim.freeze", "head", ("head",)),
        ("optim.freeze", "('head', 'norm')", ("head", "norm")),
        ("data.ops", "normalize", ("normalize",)),
        ("profile_steps", "10,15", (10, 15)),
        ("total", "5 epochs", "5 epochs"),
        ("total", "500", "500 steps"),
        ("optim.schedule.warmup", "10%", "10%"),
        ("eval.every", "7", "7 steps"),
        ("optim.options.b1", "0.8", 0.8),
        ("checkpoint.keep_best", "", ""),
        ("sharding_rules", "(('head', 'replicate'),)", (("head", "replicate"),)),
    ],
)
def test_overrides(field, text, value):
    config = overridden((field, text))
    for part in field.split("."):
        config = config[part]
    assert config == value
    assert type(config) is type(value)


def test_a_group_overridden_by_a_dict_keeps_its_other_fields():
    config = overridden(("optim", "{'lr': 0.5}"))
    assert config.optim.lr == 0.5
    assert config.optim.name == "adamw"


def test_later_overrides_win():
    assert overridden(("optim.lr", "1"), ("optim.lr", "2")).optim.lr == 2


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ([("optm.lr", "1")], ["--config.optm.lr", "did you mean 'optim'"]),
        ([("batch_size", "1")], ["config.batch_size", "did you mean config.data.batch_size or config.eval.batch_size"]),
        ([("model.fields.depth", "1")], ["group", "'fields'", "there is none"]),
        ([("optim.lrate", "1")], ["optim.lrate", "did you mean 'lr'"]),
        ([("optim.schedule.warm_up", "1")], ["optim.schedule.warm_up", "did you mean 'warmup'"]),
        ([("optim.schedule", "cosine")], ["config.optim.schedule='cosine'", "warmup"]),
        ([("optim", "{'lrate': 1}")], ["config.optim.lrate", "did you mean 'lr'"]),
        ([("seed", "1.5")], ["config.seed=1.5", "int"]),
        ([("optim.lr", "fast")], ["config.optim.lr='fast'", "float"]),
        ([("data.batch_size", "None")], ["config.data.batch_size=None", "int"]),
        ([("total", "1.5")], ["config.total=1.5", "str"]),
        ([("model.embed_dim", "many")], ["config.model.embed_dim='many'", "int"]),
        ([("seed.x", "1")], ["--config.seed.x", "'seed'"]),
    ],
)
def test_wrong_overrides_are_told(overrides, says):
    message = told(overridden, *overrides)
    for part in says:
        assert part in message


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("c.optim.lrr = 1", ["line 6", "lrr", 'Did you mean "lr"']),
        ("c.optim.lr = 'fast'", ["line 6", "lr"]),
        ("c.optim = dict(lrr=1)", ["config.optim.lrr", "did you mean 'lr'"]),
        ("c.data = dict(option=dict())", ["config.data.option", "did you mean 'options'"]),
        ("c.optim.schedule = 3", ["schedule"]),
        ("c.model = 'resnet18'", ["model"]),
        ("c.data.size = int('x')", ["line 6", "ValueError", "'x'"]),
        ("return {'seed': 1}", ["ConfigDict"]),
        ("return None", ["get_config returned None"]),
    ],
)
def test_wrong_recipes_are_told(tmp_path, body, says):
    path = recipe(tmp_path, body)
    message = told(load_config, path)
    for part in ([path, *says]) if "line 6" in says else says:
        assert part in message


def test_files_that_are_no_recipes(tmp_path):
    assert "no such file" in told(load_config, str(tmp_path / "none.py"))
    path = recipe(tmp_path, "pass")
    (tmp_path / "_recipes.py").touch()  # of what recipes share, and none itself
    message = told(load_config, path.replace("recipe.py", "recipes.py"))
    assert "did you mean" in message
    assert "_recipes.py" not in message
    pathlib.Path(path).write_text("x = 1\n")
    assert "get_config" in told(load_config, path)
    pathlib.Path(path).write_text("def get_config(:\n")
    assert "SyntaxError" in told(load_config, path)
    pathlib.Path(path).write_text("import no_such_package\n")
    assert "no_such_package" in told(load_config, path)


@pytest.mark.parametrize("name", RECIPES)
def test_round_trip(tmp_path, name):
    config = load_config(
        str(tiny_run.CONFIGS / name),
        [("sharding_rules", "(('head', 'replicate'),)"), ("optim.freeze", "head"), ("task.class_names", "('a', 'b')")],
    )
    save_config(config, tmp_path / "config.json")
    read = read_config(tmp_path / "config.json")
    assert read == config
    assert differences(read, config) == []
    assert type(read.data.ops) is tuple


def test_overrides_of_a_saved_config(tmp_path):
    save_config(default_config(), tmp_path / "config.json")
    assert read_config(tmp_path / "config.json", [("eval.batch_size", "8")]).eval.batch_size == 8
    assert "did you mean 'eval'" in told(read_config, tmp_path / "config.json", [("evl.batch_size", "8")])


def test_a_saved_config_of_unknown_fields_or_cut_short(tmp_path):
    path = tmp_path / "config.json"
    assert str(path) in told(read_config, path)
    save_config(default_config(), path)
    path.write_text(path.read_text()[:-10])
    assert "damaged" in told(read_config, path)
    path.write_text(json.dumps({"sede": 1}))
    assert "did you mean 'seed'" in told(read_config, path)


def test_saving_leaves_the_old_file_until_the_new_one_is_whole(tmp_path, monkeypatch):
    path = tmp_path / "config.json"
    save_config(default_config(), path)
    before = path.read_text()
    monkeypatch.setattr("os.replace", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_config(overridden(), path)
    assert path.read_text() == before


def test_differences():
    old = default_config()
    new = copy.deepcopy(old)
    assert differences(old, new) == []
    new.optim.lr = 0.5
    new.model.depth = 3
    new.profile_steps = (1, 2)
    assert differences(old, new) == [
        "model.depth: None -> 3",
        "optim.lr: 0.001 -> 0.5",
        "profile_steps: () -> (1, 2)",
    ]
