"""What Orbax says when it cannot read: pages of it, from several threads. Here it becomes one line."""

import contextlib
import logging
import sys

from absl import logging as absl_logging


def one_line(error):
    """The error at the bottom of a chain, which says what happened, on one line."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__
    line = " ".join(f"{type(error).__name__}: {error}".split())
    return line if len(line) <= 200 else line[:197] + "..."


@contextlib.contextmanager
def unsaid():
    """Within it Orbax does not log: its caller tells the cause, once."""
    absl_logger = absl_logging.get_absl_logger()
    level = absl_logger.level
    absl_logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        absl_logger.setLevel(level)


def ignore_late_work():
    """To be called before Orbax works: its threads outlive what was asked for, and end with tracebacks of their own.

    Where one read fails, the others go on; and what a killed run left half-written is cleared away in the background,
    or at the next start if the process ends first.
    """
    for logger in (logging.getLogger("asyncio"), absl_logging.get_absl_logger()):
        logger.addFilter(_not_late)
    if not getattr(sys.excepthook, "ignores_late_work", False):
        sys.excepthook = _unless_late(sys.excepthook, lambda kind, error, traceback: error)
        sys.unraisablehook = _unless_late(sys.unraisablehook, lambda unraisable: unraisable.exc_value)


def _is_late(error):
    told = str(error)
    endings = (
        "Event loop is closed",
        "cannot schedule new futures after shutdown",  # this and the next where the process ends first
        "cannot schedule new futures after interpreter shutdown",
    )
    return told in endings or told.startswith("Encountered error while reading array index")


def _not_late(record):
    return not (record.exc_info and _is_late(record.exc_info[1]))


def _unless_late(before, error_of):
    def hook(*args):
        if not _is_late(error_of(*args)):
            before(*args)

    hook.ignores_late_work = True
    return hook
