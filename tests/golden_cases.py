"""The small configurations that goldens are made of, gathered from `tests/cases/`: one file a family."""

import importlib
import pathlib

FAMILIES = {
    path.stem: importlib.import_module(f"cases.{path.stem}").CASES
    for path in sorted((pathlib.Path(__file__).parent / "cases").glob("*.py"))
}
CASES = {key: case for cases in FAMILIES.values() for key, case in cases.items()}
