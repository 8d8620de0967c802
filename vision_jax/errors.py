"""The errors that are the caller's to mend, and how they say so."""

import difflib


class InputError(ValueError):
    """Wrong input. The message names the argument, what was given, what is allowed and the nearest valid choice.

    The command line prints it without a traceback and exits with status 2.
    """


class DivergedError(ArithmeticError):
    """The loss or the parameters of a run are no longer finite numbers."""


def unknown(what, given, allowed):
    """The error for a name that is none of `allowed`.

    Args:
      what: what the name stands for, as "model" or "optimiser".
      given: the name that was given.
      allowed: the valid names.

    Returns:
      An `InputError` (to be raised by the caller) with the closest match first.

    >>> str(unknown("optimiser", "adamv", ["adamw", "sgd"]))
    "unknown optimiser 'adamv': did you mean 'adamw'? (one of adamw, sgd)"
    """
    allowed = sorted(map(str, allowed))
    near = difflib.get_close_matches(str(given), allowed, 1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    shown = ", ".join(allowed[:20]) + (f", ... {len(allowed)} in all" if len(allowed) > 20 else "")
    return InputError(f"unknown {what} {given!r}: {hint}({f'one of {shown}' if shown else 'there is none'})")
