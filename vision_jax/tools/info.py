"""What is known of the models: `python -m vision_jax.tools.info list [PATTERN] | show NAME | table`.

`list` prints the names that match a wildcard pattern, `show` a model's card, `table` the README's model table.
"""

import argparse
import importlib
import pathlib
import sys

import jax
import numpy as np
from flax import nnx

from vision_jax.errors import InputError, unknown
from vision_jax.layers.conv import pair
from vision_jax.registry import create_model, family_of, list_models, model_info
from vision_jax.tools.cost import count_cost

BEGIN, END = "<!-- models: python -m vision_jax.tools.info table --write README.md -->", "<!-- end of models -->"


def card(name):
    """A model's card, as text."""
    info = model_info(name)
    model = create_model(name, abstract=True)
    cost, params = count_cost(model), parameters(model)
    about = importlib.import_module(info.model.__module__).__doc__.strip()
    size = "x".join(map(str, pair(info.config.img_size)))
    lines = [
        f"{info.name}  ({family_of(info.name)})",
        "",
        about,
        "",
        f"paper         {f'https://arxiv.org/abs/{info.paper}' if info.paper else 'not on arXiv'}",
        f"parameters    {params / 1e6:.2f} M",
        f"multiply-adds {cost.macs / 1e9:.2f} GMACs at {size} counted, {info.gmacs:g} published",
        f"activations   {cost.activations / 1e6:.2f} M",
        f"compared with {compared(info)}",
        f"licence       {info.licence} (of the published weights)",
        "",
        f"{'map':<16} {'reduction':>9} {'channels':>9}",
        *(f"{f.name:<16} {f.reduction:>9} {f.channels:>9}" for f in model.feature_info),
        "",
        "published weights:" if info.default_tag else "no published weights",
    ]
    for tag, p in info.tags.items() if info.default_tag else ():
        side = "x".join(map(str, pair(p.img_size)))
        lines.append(
            f"  .{tag}: {p.hub or p.url}, {p.num_classes} classes, {side}, crop {p.crop_pct:g}, {p.interpolation}, "
            f"mean {p.mean}, std {p.std}"
        )
    return "\n".join(lines)


def parameters(model):
    """Number of parameters of a model."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(nnx.state(model, nnx.Not(nnx.BatchStat))))


def compared(info):
    """What a model is held equal to by the tests."""
    return (
        f"{info.reference}, values and gradients in float64"
        if info.reference
        else "the paper only: no runnable reference"
    )


def table():
    """The model table, as Markdown: a folded section a family."""
    names = list_models()
    families = sorted({family_of(name) for name in names})
    lines = [BEGIN, "", f"{len(names)} models of {len(families)} families.", ""]
    for family in families:
        title = importlib.import_module(f"vision_jax.models.{family}").__doc__.strip().splitlines()[0]
        count = len(list_models(family=family))
        lines += [f"<details><summary><b>{title}</b>: {count} models</summary>", "", *family_table(family)]
        lines += ["", "</details>", ""]
    return "\n".join([*lines, END])


def family_table(family):
    """The lines of a family's table, as Markdown, the smallest model first."""
    lines = [
        "| model | parameters, M | GMACs | input | weights | compared with |",
        "| --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for info in sorted(map(model_info, list_models(family=family)), key=lambda info: info.params):
        size = "x".join(map(str, pair(info.config.img_size)))
        weights = len(info.tags) if info.default_tag else 0
        reference = info.reference or "paper only"
        lines.append(f"| {info.name} | {info.params / 1e6:.2f} | {info.gmacs:g} | {size} | {weights} | {reference} |")
    return lines


def with_table(text):
    """A document with the table between its markers brought up to date."""
    if BEGIN not in text or END not in text:
        raise InputError(f"the file has no lines {BEGIN!r} and {END!r} between which the table goes")
    before, rest = text.split(BEGIN, 1)
    return before + table() + rest.split(END, 1)[1]


def main(argv=None):
    """The command."""
    parser = argparse.ArgumentParser(prog="vision_jax.tools.info", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list").add_argument("pattern", nargs="?", default="*")
    commands.add_parser("show").add_argument("name")
    commands.add_parser("table").add_argument("--write", help="a Markdown file whose table is brought up to date")
    args = parser.parse_args(argv)
    try:
        if args.command == "list":
            names = list_models(args.pattern)
            if not names:
                raise unknown("model pattern", args.pattern, list_models())
            print("\n".join(names))
        elif args.command == "show":
            print(card(args.name))
        elif args.write:
            path = pathlib.Path(args.write)
            path.write_text(with_table(path.read_text()))
        else:
            print(table())
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
