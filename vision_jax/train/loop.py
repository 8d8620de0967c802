"""Training: from a config to a trained model, stopping and resuming at any moment."""

import contextlib
import functools
import logging
import os
import pathlib
import signal
import threading
import time

import jax
import numpy as np

from vision_jax.data import train_batches
from vision_jax.devices import batch_that_fits, out_of_memory
from vision_jax.errors import DivergedError, InputError
from vision_jax.names import names
from vision_jax.parallel.processes import agree, local_rows, place, share, to_global
from vision_jax.parallel.sharding import batch_sharding, replicated
from vision_jax.train.checkpoint import Checkpointer
from vision_jax.train.config import differences, flat, read_config, save_config
from vision_jax.train.evaluate import evaluate
from vision_jax.train.logs import MetricLog
from vision_jax.train.lowered import compiled_at, examples_at_once
from vision_jax.train.overview import parameter_overview
from vision_jax.train.report import report
from vision_jax.train.run import build
from vision_jax.train.step import evaluated
from vision_jax.train.teachers import frozen_variables
from vision_jax.train.warm_start import warm_start

logger = logging.getLogger(__name__)


def train(config, workdir):
    """Trains what the config describes, resuming from the newest checkpoint in the workdir.

    Leaves there: `config.json`, `checkpoints/`, `metrics.jsonl`, TensorBoard events, `predictions.png` and
    `confusion.png`. Several processes (`vision_jax.parallel.processes`) each call it with the same arguments; all of
    them write the checkpoints, the first one the rest.

    Args:
      config: see `vision_jax.train.config`.
      workdir: the run's directory; made if it is not there.

    Returns:
      The metrics of the last evaluation, or None if the run was told to stop (SIGTERM, SIGINT) and saved itself.

    Raises:
      InputError: the config cannot be, the workdir holds another run, or the processes differ. Nothing has been written
        then.
      DivergedError: the loss is not finite.
    """
    workdir = pathlib.Path(workdir)
    with contextlib.ExitStack() as stack:
        stopped = stack.enter_context(_signals())
        saved = sorted(int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdecimal())
        agree({"the list of saved steps": saved, **flat(config)})
        run = build(config, training=True, evaluation=True)
        agree({"the number of images": len(run.train_source), **flat(run.resolved())})
        share(workdir)
        stack.enter_context(jax.set_mesh(run.mesh))
        frozen = place(frozen_variables(run), replicated(run.mesh))
        begun = bool(saved)
        state = None if begun else _initial_state(run)
        saver = stack.enter_context(_checkpointer(config.checkpoint, workdir))
        if begun:
            state = _resumed(run, saver, workdir)
        _keep_config(run.resolved(), workdir)
        logger.info("%s", parameter_overview(state["params"]))
        log = MetricLog(
            workdir,
            total_steps=run.total_steps,
            resume_step=int(state["step"]),
            process_index=jax.process_index(),
        )
        stack.enter_context(log)
        batches = train_batches(
            run.train_source,
            run.train_ops[0],
            batch_size=config.data.batch_size,
            seed=config.seed,
            start=int(state["data_position"]),
            workers=config.data.workers,
            on_error=config.data.on_error,
            repeats=config.data.repeats,
            rows=local_rows(config.data.batch_size, batch_sharding(run.mesh)),
        )
        stack.enter_context(batches)
        return _Loop(run, workdir, saver, log, batches, stopped, frozen).run_from(state)


def _initial_state(run):
    state, source = run.initial_state(), run.config.init_from
    return warm_start(state, source, run) if source else state


def _checkpointer(config, workdir):
    best = config.keep_best or None
    mode = "min" if best and "loss" in best else "max"
    return Checkpointer(workdir / "checkpoints", keep_last=config.keep_last, keep_best=best, mode=mode)


_SHAPING = ("model.", "task.", "optim.", "ema")  # the fields of a config that decide what a state holds


def _resumed(run, saver, workdir):
    if saver.latest_step() is None:  # all were damaged, and have been set aside
        return _initial_state(run)
    try:
        state, step = saver.restore(run.state_shapes())
    except InputError as error:
        path = workdir / "config.json"
        lines = differences(read_config(path), run.resolved()) if path.is_file() else []
        lines = sorted((line for line in lines if line.startswith(_SHAPING)), key=lambda line: "model.name" not in line)
        why = f"\nThe config differs from that of the run there: {'; '.join(lines[:5])}" if lines else ""
        fix = "\nGive this run a --workdir of its own, or the config of the run there"
        raise InputError(f"{error}{why}{fix}") from error
    logger.info("resuming from step %d in %s", step, saver.directory)
    return state


def _keep_config(config, workdir):
    path = workdir / "config.json"
    if path.is_file():
        for line in differences(read_config(path), config):
            logger.warning("the config differs from the run that began here: %s", line)
    if jax.process_index() == 0:
        save_config(config, path)


@contextlib.contextmanager
def _signals():
    """A list that is no longer empty once the process was asked to stop; a second Ctrl-C stops it at once."""
    received = []
    if threading.current_thread() is not threading.main_thread():
        yield received  # Python delivers signals to the main thread alone
        return

    def receive(number, _):
        if not received:  # os.write: a handler may interrupt whoever is writing to sys.stderr
            os.write(2, b"\nasked to stop: saving after this step (Ctrl-C again stops at once, without saving)\n")
        received.append(number)
        signal.signal(signal.SIGINT, before[signal.SIGINT])

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in before:
        signal.signal(number, receive)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Loop:
    """The loop proper; its parts are methods so that each reads alone."""

    def __init__(self, run, workdir, saver, log, batches, stopped, frozen):
        self.run, self.workdir, self.saver, self.log = run, workdir, saver, log
        self.batches, self.stopped, self.frozen = batches, stopped, frozen
        # Several processes stop after the same step: what each was told goes through the step, and all learn of it
        self.asked = stopped if jax.process_count() == 1 else []
        self.train_step, self.eval_step = run.train_step(), run.eval_step()
        self.place = batch_sharding(run.mesh)
        self.pending = None  # (step, metrics) of the last step, not looked at yet
        self.replaced = 0  # images, since the last record
        self.since = (time.perf_counter(), 0)  # when and at which step the last record was written
        self.profiling = False

    def run_from(self, state):
        """Steps until the end, or until asked to stop."""
        run, c, total = self.run, self.run.config, self.run.total_steps
        first = int(state["step"])
        self.since = (time.perf_counter(), first)
        metrics = {}
        for step in range(first + 1, total + 1):
            if self.asked:
                return self._stop(step - 1, state)
            self._profile_from(step)
            state, scalars = self._step(state)
            self._check_previous()  # one step behind, so that the device is never waited for
            self.pending = (step, scalars)
            last = step == total
            self._profile_until(step, state, last)
            self.log.advance(step)
            writing = step % c.log_every == 0 or last
            evaluating = step % run.eval_every == 0 or last
            saving = step % run.save_every == 0 or last or (evaluating and c.checkpoint.keep_best)
            if writing or evaluating or saving:
                self._check_previous()  # nothing of a run that went wrong is told or kept
            if writing:
                self._write(step, scalars)
            metrics = self._evaluate(step, state, last) if evaluating else {}
            if saving:
                self.saver.save(step, state, metrics)
        if first >= total:
            logger.info("already trained for %d steps: nothing to do but evaluate", first)
            metrics = self._evaluate(first, state, last=True, anew=False)
        self.saver.wait()
        return metrics

    def _step(self, state):
        try:
            return self.train_step(state, self._next_batch(), self.frozen)
        except jax.errors.JaxRuntimeError as error:
            if not out_of_memory(error):
                raise
            reason = error
        batch = examples_at_once(self.run)
        fits = batch_that_fits(functools.partial(compiled_at, self.run), batch)
        told = f"a step with {batch} images at once on a device does not fit in its memory"
        fix = "a larger --config.mesh.fsdp, or --config.model.remat=full"
        fix = f"--config.optim.device_batch={fits} does, and keeps the batch by accumulation; or {fix}" if fits else fix
        raise InputError(f"{told}: {fix}") from reason

    def _next_batch(self):
        batch = {k: v for k, v in next(self.batches).items() if k != "index"}
        if jax.process_count() > 1:
            batch["stop"] = np.full(len(batch["label"]), bool(self.stopped))
        return to_global(batch, self.place)

    def _stop(self, step, state):
        self._profile_until(step, state, last=True)
        self._check_previous()
        self.saver.save(step, state)
        self.saver.wait()
        where, total = self.saver.directory, self.run.total_steps
        logger.info("asked to stop: saved step %d of %d in %s; the same command goes on from there", step, total, where)

    def _check_previous(self):
        """Stops the run at the first step whose loss, gradient or parameters are not finite."""
        if self.pending is None:
            return
        (step, metrics), self.pending = self.pending, None
        self.replaced += int(metrics.get("images_replaced", 0))
        if metrics.pop("stop", False):
            self.asked.append(step)
        loss, finite = float(metrics["loss"]), np.asarray(metrics["finite"])
        if np.isfinite(loss) and finite.all():
            return
        shapes = jax.tree_util.tree_leaves_with_path(self.run.static.shapes["params"])
        bad = [names(path, leaf)[0] for (path, leaf), good in zip(shapes, finite, strict=True) if not good]
        which = ", ".join(bad[:5]) + (", ..." if len(bad) > 5 else "")
        good = self.saver.latest_step()
        kept = "none, the run had saved nothing yet" if good is None else f"step {good} in {self.saver.directory}"
        raise DivergedError(
            f"step {step}: the loss is {loss}, and {len(bad)} of {len(shapes)} parameters have a gradient or a value "
            f"that is not finite{': ' if bad else ''}{which}. The last good checkpoint: {kept}. Lower config.optim.lr, "
            "clip the gradient (config.optim.clip), or warm up longer."
        )

    def _write(self, step, metrics):
        now, (then, before) = time.perf_counter(), self.since
        rate = (step - before) * self.run.config.data.batch_size / max(now - then, 1e-9)
        scalars = {f"train/{k}": float(v) for k, v in metrics.items() if k != "finite"}
        if "images_replaced" in metrics:
            scalars["train/images_replaced"], self.replaced = self.replaced, 0
        scalars |= {"train/learning_rate": float(self.run.schedule(step - 1)), "images_per_second": rate}
        scalars["images_per_second_per_device"] = rate / self.run.mesh.size
        self.log.write(step, scalars)
        self.since = (time.perf_counter(), step)

    def _evaluate(self, step, state, last, anew=True):
        """The metrics; none where the run was asked to stop meanwhile, unless it is over anyway."""
        began = time.perf_counter()
        sums = evaluate(self.run, self.eval_step, evaluated(state), () if last else self.stopped)
        if sums is None:
            self.asked.append(step)
            return {}
        metrics = self.run.task.metrics(sums)
        if anew:
            self.log.write(step, {f"eval/{k}": v for k, v in metrics.items()})
        else:
            logger.info("step %d: %s", step, ", ".join(f"{k} {v:.4f}" for k, v in metrics.items()))
        if last:
            self.log.images(step, report(self.run, evaluated(state), sums, self.workdir))
        self.since = (self.since[0] + time.perf_counter() - began, self.since[1])  # not the training's time
        return metrics

    def _profile_from(self, step):
        if step in self.run.config.profile_steps[:1]:
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # it hooks every thread and call of the process, and slows what is measured
            jax.profiler.start_trace(self.workdir / "profile", profiler_options=options)
            self.profiling = True

    def _profile_until(self, step, state, last):
        if self.profiling and (last or step == self.run.config.profile_steps[1]):
            jax.block_until_ready(state)
            jax.profiler.stop_trace()
            self.profiling = False
            first = self.run.config.profile_steps[0]
            logger.info("profiled steps %d to %d: %s", first, step, self.workdir / "profile")
