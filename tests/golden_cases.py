"""The small configurations that goldens are made of, gathered from `tests/cases/`: one file a family."""

import importlib
import pathlib

import golden
import vision_jax as vj

FAMILIES = {
    path.stem: importlib.import_module(f"cases.{path.stem}").CASES
    for path in sorted((pathlib.Path(__file__).parent / "cases").glob("*.py"))
}
CASES = {key: case for cases in FAMILIES.values() for key, case in cases.items()}


def filled(case, record, arrays, **fields):
    """Our model with the golden's weights."""
    source = {name: golden.fill(name, tuple(shape), record["gain"]) for name, shape in record["shapes"].items()}
    source |= {name.removeprefix("before/"): value for name, value in arrays.items() if name.startswith("before/")}
    return vj.load_weights(vj.create_model(case.ours, abstract=True, **case.fields, **fields), source)
