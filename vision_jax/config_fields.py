"""The fields of a model's configuration that a caller gives: which there are, and what each one may be."""

import dataclasses
import numbers
import types
import typing

import jax.numpy as jnp

from vision_jax.errors import InputError, unknown

SAID = {int: "an int", float: "a number", bool: "True or False", str: "a string", tuple: "a tuple", type(None): "None"}


def checked(name, config, fields):
    """The fields, lists as tuples (JSON knows no others) and dtypes by name as dtypes.

    What a family's fields must fulfil together is its config's own to check.

    Args:
      name: of the model, for messages.
      config: its configuration, a dataclass whose annotations say what fields may be.
      fields: {name: value}, what is to be replaced.

    Raises:
      InputError: an unknown field; a value of another type, or beyond what the field can mean in any family.
    """
    known = typing.get_type_hints(type(config))
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    known = {field: known[field] for field in defaults}
    out = {}
    for field, value in fields.items():
        if field not in known:
            raise unknown(f"config field of {name}", field, known)
        value = tuple(value) if isinstance(value, list) else value
        kinds = _kinds(known[field])
        if not any(_is(value, kind) for kind in kinds):
            wanted = " or ".join(SAID.get(kind, kind.__name__) for kind in kinds)
            raise InputError(f"{field}={value!r} of {name}: {wanted} is wanted")
        has_numbers = _all_numbers(value) or value == defaults[field]
        if _all_numbers(getattr(config, field)) and isinstance(value, tuple) and not has_numbers:
            raise InputError(f"{field}={value!r} of {name}: a tuple of numbers is wanted, as {getattr(config, field)}")
        _check_range(name, field, value)
        out[field] = _dtype(name, value) if field == "dtype" else value
    return out


def _kinds(annotation):
    """The types that a field may be of."""
    union = isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union
    return typing.get_args(annotation) if union else (annotation,)


def _all_numbers(value):
    return isinstance(value, tuple) and value != () and all(_is(x, float) for x in value)


def _is(value, kind):
    if kind in (int, float):
        return isinstance(value, numbers.Integral if kind is int else numbers.Real) and not isinstance(value, bool)
    return kind is typing.Any or isinstance(value, kind)


def _dtype(name, dtype):
    try:
        given = None if dtype is None else jnp.dtype(dtype)  # NumPy's is float64 for None
    except TypeError:
        given = None
    if given is None or not jnp.issubdtype(given, jnp.floating):
        raise InputError(f"dtype={dtype!r} of {name}: one of 'float32', 'bfloat16', 'float16', 'float64' is wanted")
    return getattr(jnp, given.name) if isinstance(dtype, str) else dtype


def _check_range(name, field, value):
    """Of what means the same in every family: no number of things is negative."""
    sizes = value if isinstance(value, tuple) else (value,)
    if field == "img_size" and not (len(sizes) < 3 and all(_is(size, int) and size > 0 for size in sizes)):
        raise InputError(f"img_size={value!r} of {name}: pixels, one number or (height, width)")
    least = 1 if field == "in_chans" else 0
    if _is(value, int) and value < least:
        raise InputError(f"{field}={value} of {name}: {least} or more")
    is_rate = field.endswith("drop_rate") or field == "drop_path_rate"
    if is_rate and not all(0 <= rate < 1 for rate in sizes):
        raise InputError(f"{field}={value} of {name}: a probability, at least 0 and less than 1")
