"""Times of several calls, taken in turns."""

import statistics
import time
from typing import NamedTuple

# "cpu" counts the processor time of this process, all threads: what it is on a machine that others load too, where the
# wall clock tells more of them. It leaves out waiting: programs that keep fewer cores busy do not pay for it.
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


class Spread(NamedTuple):
    """The median of a sample and its quartiles: half of the sample lies between `low` and `high`."""

    median: float
    low: float
    high: float


def interleaved(calls, rounds, clock=time.perf_counter):
    """Times calls in turns, A B A B ..., so that whatever slows the machine for a while slows them alike.

    Each turn calls twice and times the second call: the first finds the caches, and the threads, of the turn before.

    Args:
      calls: {name: function without arguments that returns when its work is done}; already warm.
      rounds: turns of each.
      clock: function that gives seconds.

    Returns:
      {name: [seconds, one a round]}.
    """
    seconds = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            call()
            start = clock()
            call()
            seconds[name].append(clock() - start)
    return seconds


def spread(sample):
    """The median and the quartiles of numbers."""
    low, median, high = statistics.quantiles(sample, n=4, method="inclusive") if len(sample) > 1 else sample * 3
    return Spread(median, low, high)


def speedup(ours, theirs):
    """How many times faster ours is: the spread over the rounds of (their seconds / our seconds of the same round)."""
    return spread([b / a for a, b in zip(ours, theirs, strict=True)])
