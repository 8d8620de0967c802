"""A run of one or many processes: how they find each other, agree, hold a batch together, and end.

Each process loads and places its own rows of a batch; what is computed is one program over all devices. A process that
is gone cannot be waited for: within a minute JAX ends the others, and each leaves a last word on how to go on.
"""

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import threading
import time
import traceback

import jax
import numpy as np
from jax.experimental import multihost_utils

from vision_jax.errors import InputError

HEARTBEAT = 30  # seconds without a sign of life after which a process counts as dead, and the others are ended
LEAVING = 10  # seconds that a process which failed gives the others to fail alike


def start(coordinator=None, num_processes=None, process_id=None):
    """Joins the processes of a run; before anything else that uses JAX.

    Args:
      coordinator: "HOST:PORT" of the first process. What is None is found out by JAX itself: on TPU VMs, SLURM, Open
        MPI and GKE (where the `kubernetes` package is installed).
      num_processes: how many there are.
      process_id: which of them this is, from 0.

    Returns:
      Which of them this is.

    Raises:
      InputError: they do not find each other.
    """
    how = "and JAX finds them only on TPU VMs, SLURM and GKE: give --coordinator, --num_processes, --process_id"
    if coordinator:
        given = f"--coordinator={coordinator}, --num_processes={num_processes}, --process_id={process_id}"
        how = f"with {given}: are all started, each with its own id, and is the first one's host and a free port named?"
    lost = f"the processes of the run have not found each other, {how}"
    _LastWords.begin()
    _LastWords.say(lost)  # JAX ends a process that waits in vain
    try:
        jax.distributed.initialize(coordinator, num_processes, process_id, heartbeat_timeout_seconds=HEARTBEAT)
    except (ValueError, RuntimeError) as error:
        _LastWords.say("")
        raise InputError(f"{lost} ({error})") from error
    _LastWords.say(
        f"process {jax.process_index()} of {jax.process_count()} has ended abruptly: it was killed, or another one is "
        "gone, and without it the rest cannot go on; the log in which an error is told first says which. What is saved "
        "is whole: start all processes again with the same command, on any number of devices, to go on from there"
    )
    return jax.process_index()


def end(status):
    """Ends what `start` began; does nothing where it was not called.

    Args:
      status: the exit code; None where an exception passes that nobody has told. But for 0, the process ends here: the
        others may be waiting for what this one will never compute.
    """
    if _LastWords.pipe is None:
        return
    if status == 0:
        jax.distributed.shutdown()  # waits for the others
        _LastWords.say("")
        return
    if status is None:
        traceback.print_exc()
    else:
        _LastWords.say("")
    leave = threading.Thread(target=_leave, daemon=True)
    leave.start()
    leave.join(LEAVING)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1 if status is None else status)


def _leave():
    with contextlib.suppress(Exception):
        jax.distributed.shutdown()  # returns once the others fail alike


class _LastWords:
    """A line that is printed when this process ends, however it does: JAX ends it from a thread that is not Python's.

    A shell keeps the line, reads on until its end of the pipe is closed, and prints what it read last.
    """

    pipe = None

    @classmethod
    def begin(cls):
        keep = 'trap "" TERM INT HUP; while read -r line; do words=$line; done; [ -z "$words" ] || echo "$words" >&2'
        shell = subprocess.Popen(["sh", "-c", keep], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        cls.pipe = shell.stdin

    @classmethod
    def say(cls, line):
        cls.pipe.write(line + "\n")
        cls.pipe.flush()


def agree(facts):
    """Compares what the processes are about to do; waits for all of them.

    Args:
      facts: name -> anything that JSON takes, all of which has to be the same everywhere.

    Raises:
      InputError: in every process, naming what differs, and where.
    """
    if jax.process_count() == 1:
        return
    if not jax.distributed.is_initialized():
        raise InputError(f"this is one of {jax.process_count()} processes: start each of them with --distributed")
    every = [json.loads(text) for text in _gather(json.dumps(facts, default=str))]
    lines = []
    for name in sorted(set().union(*every)):
        told = {}
        for process, its in enumerate(every):
            told.setdefault(repr(its[name]) if name in its else "none", []).append(process)
        if len(told) > 1:
            lines.append(f"{name} is " + ", but ".join(f"{value} in {_which(where)}" for value, where in told.items()))
    if not lines:
        return
    more = f"; and {len(lines) - 5} more" if len(lines) > 5 else ""
    raise InputError(f"the processes of the run differ, so it is not begun: {'; '.join(lines[:5])}{more}")


def in_any(true_here):
    """Whether something is true in any of the processes; waits for all of them."""
    return true_here if jax.process_count() == 1 else bool(multihost_utils.process_allgather(np.bool_(true_here)).any())


def share(directory):
    """Makes a directory, and sees that it is one and the same for all processes.

    Raises:
      InputError: in every process, naming those that do not see it.
    """
    if jax.process_count() == 1:
        return
    token = pathlib.Path(directory) / ".shared"
    if jax.process_index() == 0:
        token.parent.mkdir(parents=True, exist_ok=True)
        token.touch()
    multihost_utils.sync_global_devices("vision_jax made a directory")
    patience = time.monotonic() + LEAVING  # a network's file systems show what others wrote a little later
    while not token.exists() and time.monotonic() < patience:
        time.sleep(0.5)
    try:
        agree({"what process 0 wrote in the workdir, which all share,": "seen" if token.exists() else "not seen"})
    finally:
        if jax.process_index() == 0:
            token.unlink()


def _which(processes):
    if len(processes) == 1:
        return f"process {processes[0]}"
    return f"processes {', '.join(map(str, processes[:8]))}{', ...' if len(processes) > 8 else ''}"


def _gather(text):
    """Each process's text, in the order of the processes."""
    data = np.frombuffer(text.encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(data.size))
    padded = np.zeros(sizes.max(), np.uint8)
    padded[: data.size] = data
    rows = multihost_utils.process_allgather(padded)
    return [row[:size].tobytes().decode() for row, size in zip(rows, sizes, strict=True)]


def local_rows(batch_size, sharding):
    """The rows of a batch that this process's devices hold, ascending; where only features are split, the same."""
    places = sharding.addressable_devices_indices_map((batch_size,)).values()
    return sorted({row for (part,) in places for row in range(*part.indices(batch_size))})


def to_global(batch, sharding):
    """This process's rows of a batch, numpy arrays [b, ...] -> global arrays [B, ...] on the mesh."""
    return {k: jax.make_array_from_process_local_data(sharding, np.asarray(v)) for k, v in batch.items()}


def place(tree, shardings):
    """Arrays that every process has whole -> global arrays. A sharding may stand for a whole branch."""

    def one(x, sharding):
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    def branch(sharding, tree):
        return jax.tree.map(lambda x: one(x, sharding), tree)

    return jax.tree.map(branch, shardings, tree)
