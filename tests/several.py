"""Runs of several real processes on this machine, each with simulated devices of its own."""

import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import tiny_run

FIELDS = {
    **tiny_run.VIT,
    "total": 20,
    "data.source": "synthetic",
    "data.options": "{'image_size': 8, 'channels': 1, 'num_examples': 160}",  # five batches an epoch
    "eval.batch_size": 80,
    "mesh.data": 2,
    "mesh.fsdp": 4,
    "eval.every": 20,
    "checkpoint.every": 20,
    "checkpoint.keep_best": "''",
    "checkpoint.keep_last": 9,
}


class Several:
    """The processes of a run, and what each says."""

    def __init__(self, processes, logs):
        self.processes, self.logs = processes, logs

    def said(self, number):
        return self.logs[number].read_text()

    def last_word(self, number, seconds=10):
        """The last line of a process that has ended, once it is what a shell prints in its name."""
        end = time.monotonic() + seconds
        while "ended" not in (last := self.said(number).splitlines()[-1]) and time.monotonic() < end:
            time.sleep(0.1)
        return last

    def all_said(self):
        return "\n".join(f"--- process {i}:\n{self.said(i)[-6000:]}" for i in range(len(self.logs)))

    def finish(self, seconds=240):
        """The exit codes, once all have ended by themselves."""
        end = time.monotonic() + seconds
        try:
            return [process.wait(max(end - time.monotonic(), 0.1)) for process in self.processes]
        except subprocess.TimeoutExpired as error:
            raise AssertionError(f"not ended after {seconds} s:\n{self.all_said()}") from error

    def wait_for(self, condition, seconds=240):
        """Returns once the condition holds; no process must end before."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"it took too long:\n{self.all_said()}"
            assert all(process.poll() is None for process in self.processes), f"one ended:\n{self.all_said()}"
            time.sleep(0.02)


@contextlib.contextmanager
def started(workdir, fields=FIELDS, *, count=2, devices=4, differing=None, command=None, **more):
    """Starts the processes of a run in `workdir`; whatever is left of them at the end is killed.

    Args:
      workdir: of the run; logs and what was watched lie in directories beside it.
      fields, more: of the config, as `tiny_run.arguments` takes them.
      count: processes; one is not distributed.
      devices: simulated ones a process.
      differing: process number -> arguments that it alone is given, last.
      command: what is run instead of the watched command, with the arguments of the processes alone.
    """
    root = pathlib.Path(__file__).resolve().parent.parent
    workdir = pathlib.Path(workdir)
    watched = workdir.with_name(f"{workdir.name}.watched")
    watched.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    env = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": f"{root}:{root / 'tests'}"}
    train = [
        str(root / "tests" / "one_of_several.py"),
        str(watched),
        *tiny_run.arguments(workdir, fields=fields, **more),
    ]
    processes, logs = [], []
    try:
        for i in range(count):
            place = [f"--coordinator=localhost:{port}", f"--num_processes={count}", f"--process_id={i}"]
            argv = [*(command or train), *(place if count > 1 else []), *(differing or {}).get(i, [])]
            logs.append(watched / f"{i}.log")
            with logs[-1].open("w") as log:
                out = {"cwd": root, "env": env, "stdout": log, "stderr": log, "start_new_session": True}
                processes.append(subprocess.Popen([sys.executable, *argv], **out))
        yield Several(processes, logs)
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):  # the group: a process killed alone leaves its last word
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def run(workdir, fields=FIELDS, **options):
    """Starts a run, waits for its end, which must be a good one; what the first one said."""
    with started(workdir, fields, **options) as several:
        codes = several.finish()
        assert not any(codes), f"{codes}\n{several.all_said()}"
        return several.said(0)
