"""What the site shows of the library itself: a page for each model family, every config field, the API, figures."""

import importlib
import inspect
import pathlib
import re
import sys
import tokenize

sys.path.insert(0, str(pathlib.Path(__file__).parent))  # MkDocs loads this file by its path

import figures
from mkdocs.structure.files import File

import vision_jax as vj
from vision_jax.registry import family_of
from vision_jax.tools import info
from vision_jax.tools.diagram import draw
from vision_jax.train.config import default_config

ROOT = pathlib.Path(__file__).resolve().parents[2]
ROOMS = {  # the pages of the API: title -> modules whose public names they show
    "Models and calls": ("registry", "functional", "weights.pretrained", "weights.load", "weights.save"),
    "Kernels": ("kernels.window_attention", "kernels.neighborhood_attention", "kernels.linear_attention"),
    "Layers": ("layers.*",),
    "Model classes": ("models.base",),
    "Data": ("data.*",),
    "Tasks": ("tasks.*",),
    "Training": ("train.*",),
    "Meshes and scale": ("mesh", "parallel.*"),
    "Tools": ("tools.*",),
}


def families():
    """Names of the families, sorted."""
    return sorted({family_of(name) for name in vj.list_models()})


def on_config(config):
    """Adds the generated pages to the navigation."""
    for entry in config.nav:
        if isinstance(entry, dict) and "Models" in entry:
            entry["Models"] += [{_title(family).split(":")[0]: f"models/{family}.md"} for family in families()]
        if isinstance(entry, dict) and "API" in entry:
            entry["API"] += [{room: f"api/{_slug(room)}.md"} for room in ROOMS]
    return config


def on_files(files, config):
    """Adds the generated pages and pictures."""
    pages = {"models/index.md": _zoo(), "api/index.md": _api_index()}
    pages |= {f"models/{family}.md": _family(family) for family in families()}
    pages |= {f"models/{family}.svg": draw(vj.create_model(_smallest(family), abstract=True)) for family in families()}
    pages |= {f"api/{_slug(room)}.md": _room(room, modules) for room, modules in ROOMS.items()}
    pages |= {f"figures/{name}.svg": picture for name, picture in figures.all_figures().items()}
    for uri, content in pages.items():
        files.append(File.generated(config, uri, content=content))
    return files


def on_page_markdown(markdown, page, **_):
    """Puts the table of config fields where a page asks for it."""
    return markdown.replace("<!-- config fields -->", _fields()) if "<!-- config fields -->" in markdown else markdown


def _slug(room):
    return room.lower().replace(" ", "_")


def _about(family):
    return importlib.import_module(f"vision_jax.models.{family}").__doc__.strip()


def _title(family):
    return _about(family).splitlines()[0].rstrip(".")


def _smallest(family):
    return min(vj.list_models(family=family), key=lambda name: vj.model_info(name).params)


def _zoo():
    lines = [
        "# Models",
        "",
        f"{len(vj.list_models())} models of {len(families())} families. Each family has a page: the idea, a diagram, a "
        "table of its models. `python -m vision_jax.tools.info show NAME` prints one model's card.",
        "",
        "| family | models | parameters, M |",
        "| --- | ---: | ---: |",
    ]
    for family in families():
        sizes = sorted(vj.model_info(name).params / 1e6 for name in vj.list_models(family=family))
        title = _title(family).replace("|", "\\|")
        lines.append(f"| [{title}]({family}.md) | {len(sizes)} | {sizes[0]:.1f} to {sizes[-1]:.1f} |")
    return "\n".join(lines) + "\n"


def _family(family):
    title, _, rest = _about(family).partition("\n")
    example = _smallest(family)
    paper = vj.model_info(example).paper
    return "\n".join(
        [
            f"# {title.rstrip('.').split(':')[0]}",
            "",
            f"{title} [Paper](https://arxiv.org/abs/{paper}).",
            "",
            rest.strip(),
            "",
            f'![{example}: what it calls, in order, and the shapes]({family}.svg "{example}")',
            "",
            f"`{example}`, drawn from one traced forward pass.",
            "",
            *info.family_table(family),
            "",
            "A model with published weights takes `pretrained=True`; their tags, licence and preprocessing are in",
            f"`python -m vision_jax.tools.info show {example}`.",
            "",
        ]
    )


def _fields():
    """Every field of a run's config as a table: name, default, and the comment beside it."""
    source = inspect.getsource(default_config)
    comments, config, lines = {}, default_config(), source.splitlines()
    for token in tokenize.generate_tokens(iter(source.splitlines(keepends=True)).__next__):
        if token.type == tokenize.COMMENT:
            comments[token.start[0] - 1] = token.string.lstrip("# ")
    said, group = {}, []
    for number, line in enumerate(lines):
        if match := re.match(r"    c\.(\w+) = (.*)", line):
            group = [match[1]]
            said[match[1]] = comments.get(number, "")
        elif match := re.match(r'( +)"(\w+)": ', line):
            group = [*group[: len(match[1]) // 4 - 1], match[2]]
            said[".".join(group)] = comments.get(number, "")
    rows = ["| field | default | meaning |", "| --- | --- | --- |"]
    for name, meaning in said.items():
        value = config
        for part in name.split("."):
            value = value[part]
        if not hasattr(value, "items") or not any(other.startswith(f"{name}.") for other in said):
            value = value.to_dict() if hasattr(value, "to_dict") else value
            rows.append(f"| `{name}` | `{value!r}` | {meaning.replace('|', '&#124;')} |")
    return "\n".join(rows)


def _modules(patterns):
    for pattern in patterns:
        base = pattern.removesuffix(".*")
        path = ROOT / ("" if base.startswith("kernels") else "vision_jax") / base.replace(".", "/")
        if pattern.endswith(".*"):
            names = {p.stem for p in path.glob("*.py")} | {p.parent.name for p in path.glob("*/__init__.py")}
            yield from (f"{base}.{name}" for name in sorted(names) if not name.startswith("_"))
        else:
            yield base


def _room(room, patterns):
    lines = [f"# {room}", ""]
    for module in _modules(patterns):
        found = module if module.startswith("kernels.") else f"vision_jax.{module}"
        options = f"    options:\n      heading: vision_jax.{module}\n      toc_label: {module}"
        lines += [f"::: {found}", options, ""]
    return "\n".join(lines)


def _api_index():
    lines = ["# API", "", "The public names of `vision_jax`:", "", "| name | |", "| --- | --- |"]
    for name in vj.__all__:
        about = (getattr(vj, name).__doc__ or "").strip().splitlines()[0]
        lines.append(f"| `vj.{name}` | {about} |")
    rooms = ", ".join(f"[{room}]({_slug(room)}.md)" for room in ROOMS)
    return "\n".join([*lines, "", f"By room: {rooms}."]) + "\n"
