"""Learning-rate schedules, and lengths of time as configs write them."""

import math
import re

import jax.numpy as jnp
import optax

from vision_jax import errors

SCHEDULES = ("cosine", "linear", "rsqrt", "constant")
UNITS = ("steps", "epochs", "examples", "%")


def duration(value, *, batch_size, num_examples, total_steps=None, what="warmup"):
    """A length of time -> a number of steps, rounded to the nearest.

    Args:
      value: an int, which is steps; or a string, as "500 steps", "5 epochs", "1e6 examples" or "10%" (of the run).
      batch_size: examples a step, over all devices and processes.
      num_examples: examples an epoch; None for a source without an end, which takes no epochs.
      total_steps: steps of the run, of which "%" is a part; None where the run's own length is asked for.
      what: the config field, for the error message.

    Returns:
      The number of steps, a Python int.

    Raises:
      InputError: the value is no such length, its unit is unknown, or what the unit is counted in is not known.

    >>> duration("5 epochs", batch_size=100, num_examples=1000)
    50
    """
    given = f"{what}={value!r}"
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d+\.?\d*(?:e[+-]?\d+)?|\.\d+)\s*([a-z%]*)\s*", value, re.IGNORECASE)
        if not match:
            raise errors.InputError(f"{given}: write a number and a unit ({', '.join(UNITS)}), as '5 epochs'")
        number, unit = float(match[1]), match[2].lower() or "steps"
        unit = unit if unit in UNITS else unit + "s"
        if unit not in UNITS:
            raise errors.unknown(f"unit of {what}", match[2], UNITS)
    elif isinstance(value, bool) or not hasattr(value, "__index__"):
        raise errors.InputError(f"{given}: an int is steps; other units are strings, as '5 epochs' or '10%'")
    else:
        number, unit = int(value), "steps"
    if number < 0 or not math.isfinite(number):
        raise errors.InputError(f"{given} is negative or infinite")
    whole, parts = {
        "steps": (1, 1),
        "epochs": (num_examples, batch_size),
        "examples": (1, batch_size),
        "%": (total_steps, 100),
    }[unit]
    if whole is None:
        lacking = "the number of examples an epoch" if unit == "epochs" else "the length of the run"
        raise errors.InputError(f"{given}: {lacking} is not known here; give it in steps or examples")
    return round(number * whole / parts)


def make_schedule(name, base_lr, total_steps, *, warmup=0, cooldown=0, end=0.0, timescale=10_000):
    """A learning rate as a function of the step.

    It rises on a straight line from 0 at step 0 to `base_lr` at step `warmup`; decays over all the steps that follow,
    as if there were no cooldown; and falls through the last `cooldown` steps on a straight line from where the decay
    then stands to 0 at `total_steps`.

    Args:
      name: "cosine" (half a period; SGDR, arXiv:1608.03983), "linear", "rsqrt" (base_lr / sqrt(1 + steps / timescale),
        steps counted from the end of the warm-up; arXiv:2106.04560) or "constant".
      base_lr: the highest learning rate.
      total_steps: steps of the run.
      warmup: steps of warm-up.
      cooldown: steps of cooldown.
      end: the learning rate at `total_steps`, of the cosine and linear decays without a cooldown.
      timescale: of rsqrt, in steps.

    Returns:
      An optax schedule, step -> learning rate, which `jax.jit` can trace.

    Raises:
      InputError: an unknown name, negative lengths, warm-up and cooldown together longer than the run, an `end` where
        the decay has none.
    """
    if name not in SCHEDULES:
        raise errors.unknown("schedule", name, SCHEDULES)
    if min(warmup, cooldown) < 0 or warmup + cooldown > total_steps:
        raise errors.InputError(
            f"warmup={warmup} and cooldown={cooldown} steps do not fit a run of total_steps={total_steps}"
        )
    if end and name in ("rsqrt", "constant"):
        raise errors.InputError(f"end={end} is for the schedules cosine and linear; {name} has no end")
    if name == "rsqrt" and not timescale > 0:
        raise errors.InputError(f"timescale={timescale} must be positive")
    decay_steps = max(1, total_steps - warmup)

    def rsqrt(step):
        # A joined schedule is evaluated before its own beginning too, where the root would be of a negative number.
        return base_lr / jnp.sqrt(1 + jnp.maximum(step, 0) / timescale)

    unit_cosine = optax.cosine_decay_schedule(1.0, decay_steps)
    decay = {
        "cosine": lambda step: end + (base_lr - end) * unit_cosine(step),
        "linear": optax.linear_schedule(base_lr, end, decay_steps),
        "rsqrt": rsqrt,
        "constant": optax.constant_schedule(base_lr),
    }[name]
    parts, boundaries = [decay], []
    if warmup:
        parts, boundaries = [optax.linear_schedule(0.0, base_lr, warmup), decay], [warmup]
    if cooldown:
        start = total_steps - cooldown
        parts.append(optax.linear_schedule(float(decay(start - warmup)), 0.0, cooldown))
        boundaries.append(start)
    return optax.join_schedules(parts, boundaries)
