"""The documentation site builds without a warning, and what stands in its code blocks runs."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(
    r"^(?:<!-- not run here: (?P<reason>.+?) -->\n)?```(?P<language>\w+)\n(?P<text>.*?)^```", re.S | re.M
)


def blocks(path):
    """(language, text, why it is not run or None) of a page's code blocks, in order."""
    return [(m["language"], m["text"], m["reason"]) for m in BLOCK.finditer((ROOT / path).read_text())]


@pytest.mark.parametrize("page", PAGES)
def test_blocks_are_of_languages_that_are_checked(page):
    assert {language for language, _, _ in blocks(page)} <= {"python", "bash", "yaml", "bibtex"}


@pytest.mark.parametrize("page", PAGES)
def test_blocks_parse_and_name_configs_that_exist(page):
    for language, text, _ in blocks(page):
        if language == "python":
            compile(text, page, "exec")
        if language == "bash":
            done = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True)
            assert done.returncode == 0, done.stderr
        for config in re.findall(r"configs/\w+\.py", text):
            assert (ROOT / config).is_file(), config


def script(page, language):
    """The code of a page that is run, "" where there is none."""
    return "\n".join(text for own, text, reason in blocks(page) if own == language and not reason)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if script(page, "python")])
def test_python_runs(page, tmp_path):
    run([sys.executable, "-c", script(page, "python")], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES[1:] if script(page, "bash")])
def test_commands_run(page, tmp_path):
    """Those of the site; the README's train for minutes, and .ci/run runs its test commands."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    run(["bash", "-euo", "pipefail", "-c", script(page, "bash")], tmp_path)


@pytest.mark.slow
def test_the_site_builds_strictly(tmp_path):
    done = run([sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")], ROOT)
    assert "WARNING" not in done.stderr
    pages = {path.parent.name for path in (tmp_path / "site" / "models").glob("*/index.html")}
    assert {"swin", "vit", "resnet"} <= pages
    assert "drop_path_rate" in (tmp_path / "site/api/model_classes/index.html").read_text()
    assert "optim.weight_decay" in (tmp_path / "site/training/index.html").read_text()


def run(command, directory):
    """Runs a command in a directory, with this checkout importable and this Python first on the path."""
    paths = {"PYTHONPATH": str(ROOT), "PATH": f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        command, cwd=directory, env={**os.environ, **paths, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done
