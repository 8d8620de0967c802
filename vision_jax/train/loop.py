"""Training: from a config to a trained model, stopping and resuming at any moment."""

import contextlib
import logging
import pathlib
import signal
import time

import jax
import numpy as np

from vision_jax.data import train_batches
from vision_jax.names import names
from vision_jax.parallel.processes import to_global
from vision_jax.parallel.sharding import batch_sharding
from vision_jax.train.checkpoint import Checkpointer
from vision_jax.train.config import differences, read_config, save_config
from vision_jax.train.evaluate import evaluate
from vision_jax.train.logs import MetricLog
from vision_jax.train.overview import parameter_overview
from vision_jax.train.report import report
from vision_jax.train.run import build
from vision_jax.train.step import evaluated
from vision_jax.train.warm_start import frozen_variables, warm_start

logger = logging.getLogger(__name__)


class Diverged(ArithmeticError):
    """The loss is no longer a finite number."""


def train(config, workdir):
    """Trains what the config describes, resuming from the newest checkpoint in the workdir.

    Leaves there: `config.json`, `checkpoints/`, `metrics.jsonl`, TensorBoard events, `predictions.png` and
    `confusion.png`.

    Args:
      config: see `vision_jax.train.config`.
      workdir: the run's directory; made if it is not there.

    Returns:
      The metrics of the last evaluation, or None if the run was told to stop (SIGTERM, SIGINT) and saved itself.

    Raises:
      InputError: the config cannot be, or the workdir holds another run.
      Diverged: the loss is not finite.
    """
    run = build(config, training=True, evaluation=True)
    workdir = pathlib.Path(workdir)
    with jax.set_mesh(run.mesh), contextlib.ExitStack() as stack:
        best = config.checkpoint.keep_best or None
        saver = stack.enter_context(
            Checkpointer(workdir / "checkpoints", keep_last=config.checkpoint.keep_last, keep_best=best)
        )
        state = _first_state(run, saver, config)
        start = int(state["step"])
        _keep_config(run.resolved(), workdir)
        logger.info("%s", parameter_overview(state["params"]))
        log = stack.enter_context(
            MetricLog(workdir, total_steps=run.total_steps, resume_step=start, process_index=jax.process_index())
        )
        batches = stack.enter_context(
            train_batches(
                run.train_source,
                run.train_ops[0],
                batch_size=config.data.batch_size,
                seed=config.seed,
                start=int(state["data_position"]),
                workers=config.data.workers,
                on_error=config.data.on_error,
                process_index=jax.process_index(),
                process_count=jax.process_count(),
            )  # fmt: skip
        )
        stopped = stack.enter_context(_signals())
        return _Loop(run, workdir, saver, log, batches, stopped).run_from(state)


def _first_state(run, saver, config):
    if saver.latest_step() is not None:
        state, step = saver.restore(run.state_shapes())
        logger.info("resuming from step %d in %s", step, saver.directory)
        return state
    state = run.initial_state()
    return warm_start(state, config.init_from, run) if config.init_from else state


def _keep_config(config, workdir):
    path = workdir / "config.json"
    if path.is_file():
        for line in differences(read_config(path), config):
            logger.warning("the config differs from the run that began here: %s", line)
    if jax.process_index() == 0:
        save_config(config, path)


@contextlib.contextmanager
def _signals():
    """A list that is no longer empty once the process was asked to stop."""
    received = []
    before = {
        number: signal.signal(number, lambda number, _: received.append(number))
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Loop:
    """The loop proper; its parts are methods so that each reads alone."""

    def __init__(self, run, workdir, saver, log, batches, stopped):
        self.run, self.workdir, self.saver, self.log = run, workdir, saver, log
        self.batches, self.stopped = batches, stopped
        self.train_step, self.eval_step = run.train_step(), run.eval_step()
        self.place = batch_sharding(run.mesh)
        c = run.config
        self.eval_every, self.save_every = (
            run.steps(c.eval.every, "eval.every"),
            run.steps(c.checkpoint.every, "checkpoint.every"),
        )
        self.metrics, self.pending, self.since = {}, None, (time.perf_counter(), 0)

    def run_from(self, state):
        """Steps until the end, or until asked to stop."""
        c, total = self.run.config, self.run.total_steps
        frozen = frozen_variables(self.run)
        first = int(state["step"])
        self.since = (time.perf_counter(), first)
        for step in range(first + 1, total + 1):
            if step in c.profile_steps[:1]:
                jax.profiler.start_trace(self.workdir / "profile")
            batch = to_global({k: v for k, v in next(self.batches).items() if k != "index"}, self.place)
            state, metrics = self.train_step(state, batch, frozen)
            self._check_previous()  # one step behind, so that the device is never waited for
            self.pending = (step, metrics)
            if step in c.profile_steps[1:]:
                jax.block_until_ready(state)
                jax.profiler.stop_trace()
                logger.info("profiled steps %d to %d: %s", *c.profile_steps, self.workdir / "profile")
            self.log.advance(step)
            last = step == total
            if step % c.log_every == 0 or last:
                self._write(step, metrics)
            if step % self.eval_every == 0 or last:
                self._evaluate(step, state, last)
            if step % self.save_every == 0 or last or self.stopped:
                self._check_previous()
                self.saver.save(step, state, self.metrics)
            if self.stopped and not last:
                self.saver.wait()
                logger.info(
                    "asked to stop: saved step %d of %d in %s; the same command goes on from there",
                    step,
                    total,
                    self.saver.directory,
                )
                return None
        if first >= total:
            logger.info("already trained for %d steps: nothing to do", total)
            self._evaluate(first, state, last=True)
        self.saver.wait()
        return self.metrics

    def _check_previous(self):
        """Stops the run at the first step whose loss or gradient is not finite."""
        if self.pending is None:
            return
        (step, metrics), self.pending = self.pending, None
        finite = np.asarray(metrics["finite"])
        if np.isfinite(metrics["loss"]) and finite.all():
            return
        shapes = jax.tree_util.tree_leaves_with_path(self.run.static.shapes["params"])
        bad = [names(path, leaf)[0] for (path, leaf), good in zip(shapes, finite, strict=True) if not good]
        good = self.saver.latest_step()
        raise Diverged(
            f"step {step}: the loss is {float(metrics['loss'])}, the gradient is not finite in {len(bad)} of {len(shapes)} "
            f"parameters, as {', '.join(bad[:5]) or 'none'}. The last good checkpoint is "
            f"{f'step {good} in {self.saver.directory}' if good is not None else 'none: the run had saved nothing yet'}. "
            "Lower config.optim.lr, clip the gradient (config.optim.clip), or warm up longer."
        )

    def _write(self, step, metrics):
        now, (then, before) = time.perf_counter(), self.since
        rate = (step - before) * self.run.config.data.batch_size / max(now - then, 1e-9)
        scalars = {f"train/{k}": float(v) for k, v in metrics.items() if k != "finite"}
        scalars |= {"train/learning_rate": float(self.run.schedule(step - 1)), "images_per_second": rate}
        scalars["images_per_second_per_device"] = rate / self.run.mesh.size
        self.log.write(step, scalars)
        self.since = (time.perf_counter(), step)

    def _evaluate(self, step, state, last):
        began = time.perf_counter()
        sums = evaluate(self.run, self.eval_step, evaluated(state))
        self.metrics = self.run.task.metrics(sums)
        self.log.write(step, {f"eval/{k}": v for k, v in self.metrics.items()})
        if last:
            self.log.images(step, report(self.run, evaluated(state), sums, self.workdir))
        self.since = (self.since[0] + time.perf_counter() - began, self.since[1])  # not the training's time
