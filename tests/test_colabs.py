"""The notebooks: clean as they are stored, and run from top to bottom with the pictures that they promise."""

import json
import pathlib
import sys

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = pathlib.Path(__file__).resolve().parent.parent
PICTURES = {  # notebook -> its cells that show one
    "quickstart": ["classes", "features"],
    "finetune": ["folder", "curves", "predictions", "confusion", "rollout"],
    "attention": [
        *(
            f"{kind}-{model}"
            for kind in ("attention", "rollout", "pca", "erf", "gradcam")
            for model in ("vit", "swin", "nat")
        ),
        "bias-swin",
        "bias-nat",
        "published",
    ],
    "kernels": ["see", "neighborhood", "time"],
    "pods": ["memory"],
    "new_backbone": ["confusion", "bias", "gradcam"],
}


def notebook(name):
    return nbformat.read(ROOT / "colabs" / f"{name}.ipynb", as_version=4)


def test_every_notebook_is_listed():
    assert {file.stem for file in (ROOT / "colabs").iterdir()} == set(PICTURES)


@pytest.mark.parametrize("name", PICTURES)
def test_it_is_stored_clean(name):
    book = notebook(name)
    nbformat.validate(book)
    assert (book.nbformat, book.nbformat_minor) == (4, 5)
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
    assert all(cell.metadata == {} for cell in book.cells)
    assert set(PICTURES[name]) <= {cell.id for cell in code}
    text = (ROOT / "colabs" / f"{name}.ipynb").read_text(encoding="utf-8")
    ids = [cell["id"] for cell in json.loads(text)["cells"]]  # nbformat mends them when it reads
    assert len(set(ids)) == len(ids)
    assert text == json.dumps(json.loads(text), indent=1, ensure_ascii=False) + "\n"


@pytest.mark.parametrize("name", PICTURES)
def test_it_begins_with_its_title_and_the_one_install_cell(name):
    title, install, *others = notebook(name).cells
    assert title.cell_type == "markdown"
    assert title.source.startswith("# ")
    assert install.id == "install"
    assert install.source.replace("[colab,pods]", "[colab]") == notebook("quickstart").cells[1].source
    assert 'find_spec("vision_jax") is None' in install.source
    assert "%pip install" in install.source
    assert not any("pip install" in cell.source for cell in others)


@pytest.mark.slow
@pytest.mark.parametrize("name", PICTURES)
def test_it_runs(name, tmp_path, monkeypatch):
    """In a directory of its own, with the running Python, as where nothing can be downloaded."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("XLA_FLAGS", raising=False)  # the tests' eight devices and cheap compiles are not a reader's
    kernel = tmp_path / "jupyter" / "kernels" / "this"
    kernel.mkdir(parents=True)
    start = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (kernel / "kernel.json").write_text(json.dumps({"argv": start, "display_name": "this", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    work = tmp_path / "work"
    work.mkdir()
    book = notebook(name)
    client = NotebookClient(book, timeout=600, kernel_name="this", resources={"metadata": {"path": str(work)}})
    client.execute()  # raises where a cell does
    shown = {
        cell.id: [output.data for output in cell.outputs if "image/png" in output.get("data", {})]
        for cell in book.cells
        if cell.cell_type == "code"
    }
    assert {cell for cell, pictures in shown.items() if pictures} == set(PICTURES[name])
