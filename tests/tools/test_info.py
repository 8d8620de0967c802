"""The info command: lists, cards, and the README's table in step with the registry."""

import pytest

import vision_jax as vj
from vision_jax.tools import info


def test_readme_table_is_in_step(root):
    text = (root / "README.md").read_text()
    assert info.with_table(text) == text, "run: python -m vision_jax.tools.info table --write README.md"


def test_list(capsys):
    assert info.main(["list", "vit_*"]) == 0
    assert capsys.readouterr().out.split() == vj.list_models("vit_*")


def test_list_of_nothing_names_the_closest(capsys):
    assert info.main(["list", "resnet5"]) == 2
    assert "resnet50" in capsys.readouterr().err


def test_card(capsys):
    assert info.main(["show", "resnet50"]) == 0
    card = capsys.readouterr().out
    for line in ("parameters    25.56 M", "4.09 GMACs at 224x224 counted, 4.11 published", "activations   11.11 M"):
        assert line in card
    assert "layer4                  32      2048" in card


def test_unknown_model_is_told(capsys):
    assert info.main(["show", "resnet5O"]) == 2
    assert "did you mean 'resnet50'" in capsys.readouterr().err


def test_write_needs_the_markers(tmp_path, capsys):
    (tmp_path / "page.md").write_text("nothing")
    assert info.main(["table", "--write", str(tmp_path / "page.md")]) == 2
    assert (tmp_path / "page.md").read_text() == "nothing"


@pytest.mark.heavy
def test_scanned_blocks_cost_as_much():
    from vision_jax.tools.cost import count_cost

    models = [vj.create_model("vit_tiny_patch16_224", abstract=True, depth=5, scan_blocks=s) for s in (False, True)]
    assert count_cost(models[0]) == count_cost(models[1])


def test_a_grouped_convolution_costs_what_its_groups_cost():
    """Not what the form for CPUs costs, which multiplies zeros between the groups."""
    from vision_jax.tools.cost import count_cost

    macs = count_cost(vj.create_model("resnext50_32x4d", abstract=True)).macs / 1e9
    assert macs == pytest.approx(vj.model_info("resnext50_32x4d").gmacs, rel=0.01)
