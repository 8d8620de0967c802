"""Checkpoints: written while training goes on, read onto any mesh, damaged ones passed over.

Orbax writes them: the arrays are copied to the host, the rest happens in the background, in a temporary directory that
is renamed when complete: a run killed at any moment leaves the checkpoint before intact. Here is what Orbax leaves to
its user: names (`named_state`), the way past a damaged checkpoint, and one line for what went wrong.
"""

import json
import logging
import math

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from vision_jax.errors import InputError, unknown
from vision_jax.parallel.processes import in_any
from vision_jax.train import named_state, orbax_errors

logger = logging.getLogger(__name__)


class Checkpointer:
    """The checkpoints of one run, in the hands of the run that writes them. (To only read, use `read`.)

    In a run of several processes each of them makes one and calls its methods at the same steps.

    Args:
      directory: where they lie, one subdirectory a step; local, or any address that `etils.epath` takes ("gs://...").
        Made if it is not there. Leftovers of saves that were killed are removed.
      keep_last: how many of the newest are kept.
      keep_best: name of a metric; the checkpoint with the best value is kept besides, however old.
      mode: "max" if a higher value of that metric is better, "min" if a lower one is.

    Raises:
      InputError: if `keep_last` is below 1, or `mode` is neither.
    """

    def __init__(self, directory, *, keep_last=2, keep_best=None, mode="max"):
        if keep_last < 1:
            raise InputError(f"keep_last is {keep_last}: at least one checkpoint must be kept")
        if mode not in ("max", "min"):
            raise unknown("mode", mode, ["max", "min"])
        self.directory = epath.Path(directory).absolute()
        self.keep_last, self.keep_best, self.mode = keep_last, keep_best, mode
        self._under_way = None  # (step, Orbax's answer) of the last save
        self._set_aside([step for step in _listed(self.directory) if not _metrics_readable(self.directory / str(step))])
        self._open()

    def save(self, step, state, metrics=None):
        """Starts to save a state; the caller may donate or change its arrays at once.

        Waits for the save before, if that is still being written. Stacked blocks are cut into their own arrays first,
        which for a moment takes their memory on the device again.

        Args:
          step: the number it goes by. A step that is already saved is left as it is.
          state: a pytree of arrays and plain numbers.
          metrics: dict name -> number, kept with the checkpoint.

        Returns:
          Whether a save was started.

        Raises:
          InputError: if `keep_best` is none of the metrics.
          OSError: if the save before could not be written.
        """
        self.wait()
        step = int(step)
        if step in self.steps():
            return False
        if metrics and self.keep_best and self.keep_best not in metrics:
            raise unknown("keep_best metric", self.keep_best, metrics)
        metrics = {name: float(value) for name, value in (metrics or {}).items() if math.isfinite(value)}
        response = self._orbax.save_async(step, named_state.to_named(state), force=True, metrics=metrics or None)
        self._under_way = (step, response)
        return True

    def restore(self, abstract_state, step=None):
        """Reads a checkpoint: the newest one that is whole, or the one asked for.

        Where a newer one turns out damaged, this is logged and it is renamed to "<step>.damaged", out of the way of the
        run that goes on.

        Args:
          abstract_state: a pytree of `jax.ShapeDtypeStruct` with shardings (or arrays, whose values do not matter) on
            any mesh; plain numbers and numpy arrays where the state has such. Blocks may be stacked or not.
          step: which one; the newest if None.

        Returns:
          (the state, its step).

        Raises:
          InputError: if there is none, none is whole, or it holds other names or shapes than `abstract_state`.
        """
        self.wait()

        def load(step):
            wanted = named_state.targets(abstract_state)
            found = _metadata(self.directory / str(step))
            named_state.check_match(found, wanted, f"checkpoint {step} in {self.directory}")
            return named_state.from_named(ocp.load(self.directory / str(step), wanted), abstract_state)

        state, step, damaged = _first_whole(load, self.directory, self.steps(), step)
        if damaged:
            self._orbax.close()
            self._set_aside(damaged)
            self._open()
        return state, step

    def steps(self):
        """The steps that are saved or being saved, in ascending order."""
        return [checkpoint.step for checkpoint in self._orbax.checkpoints]

    def latest_step(self):
        """The newest of `steps()`, or None."""
        return max(self.steps(), default=None)

    def best_step(self):
        """The step with the best value of the metric `keep_best` (the newest of equals), or None."""
        return self._best(self._orbax.checkpoints)

    def wait(self):
        """Returns when all that was saved is on disk.

        Raises:
          OSError: if it could not be written.
        """
        if self._under_way:
            (step, response), self._under_way = self._under_way, None
            try:
                response.result()
            except Exception as error:
                raise OSError(
                    f"checkpoint {step} in {self.directory} was not written: {orbax_errors.one_line(error)}"
                ) from error

    def close(self):
        """Waits, then stops the background threads."""
        try:
            self.wait()
        finally:
            self._orbax.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def should_preserve(self, checkpoints, *, context):
        """Which checkpoints stay; Orbax asks this at each save and removes the others once the new one is complete."""
        del context
        newest = sorted(checkpoint.step for checkpoint in checkpoints)[-self.keep_last :]
        kept = {*newest, self._best(checkpoints)}
        return [checkpoint.step in kept for checkpoint in checkpoints]

    def _best(self, checkpoints):
        sign = 1 if self.mode == "max" else -1
        judged = [
            (sign * c.metrics[self.keep_best], c.step) for c in checkpoints if self.keep_best in (c.metrics or {})
        ]
        return max(judged)[1] if judged else None

    def _open(self):
        orbax_errors.ignore_late_work()
        self._orbax = ocp.training.Checkpointer(self.directory, preservation_policy=self, cleanup_tmp_directories=True)

    def _set_aside(self, steps):
        for step in steps if jax.process_index() == 0 else ():
            aside = self.directory / f"{step}.damaged"
            if aside.exists():
                aside.rmtree()
            (self.directory / str(step)).rename(aside)
            logger.warning("checkpoint %d is damaged: renamed to %s", step, aside)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("vision_jax set damaged checkpoints aside")


def read(directory, collections=("params", "batch_stats", "ema"), step=None):
    """Reads some collections of a checkpoint, whatever model it holds, for a warm start. Changes nothing there.

    Args:
      directory: as given to the `Checkpointer` that wrote it.
      collections: the first parts of the names to read; those that the checkpoint does not have are passed over.
      step: which one; the newest that is whole if None.

    Returns:
      A dict name -> numpy array with the shape and type of the file, as "params.blocks.0.mlp.fc1.kernel".

    Raises:
      InputError: if there is no such checkpoint, none is whole, or it has none of the collections.
    """
    directory = epath.Path(directory).absolute()
    context = ocp.Context()
    context.pytree.loading.partial_load = True

    def load(step):
        found = _metadata(directory / str(step))
        wanted = {n: np.empty(x.shape, x.dtype) for n, x in found.items() if n.partition(".")[0] in collections}
        if not wanted:
            raise unknown("collections", ", ".join(collections), {name.partition(".")[0] for name in found})
        with context:
            return ocp.load(directory / str(step), wanted)

    return _first_whole(load, directory, _listed(directory), step)[0]


def restore_part(directory, abstract_state, step=None):
    """Reads a part of a checkpoint onto a mesh, to evaluate or ship a model. Changes nothing there.

    Args:
      directory: as given to the `Checkpointer` that wrote it.
      abstract_state: as `Checkpointer.restore` takes it, of some of the saved state's collections, each of them whole.
      step: which one; the newest that is whole if None.

    Returns:
      (the part of the state, its step).

    Raises:
      InputError: if there is no such checkpoint, none is whole, or it holds other names or shapes.
    """
    directory = epath.Path(directory).absolute()
    wanted = named_state.targets(abstract_state)
    collections = {name.partition(".")[0] for name in wanted}
    context = ocp.Context()
    context.pytree.loading.partial_load = True

    def load(step):
        found = {n: x for n, x in _metadata(directory / str(step)).items() if n.partition(".")[0] in collections}
        named_state.check_match(found, wanted, f"checkpoint {step} in {directory}")
        with context:
            return named_state.from_named(ocp.load(directory / str(step), wanted), abstract_state)

    state, step, _ = _first_whole(load, directory, _listed(directory), step)
    return state, step


def _first_whole(load, directory, steps, step):
    """What `load` gives for the newest of `steps` that loads, or for `step`; which it was; the damaged newer ones."""
    if step is not None and step not in steps:
        raise unknown("checkpoint step", step, steps)
    if not steps:
        raise InputError(f"no checkpoint in {directory}")
    orbax_errors.ignore_late_work()
    causes = {}
    for candidate in [step] if step is not None else sorted(steps, reverse=True):
        try:
            with orbax_errors.unsaid():
                loaded = load(candidate)
        except InputError:
            raise
        except Exception as error:
            causes[candidate] = orbax_errors.one_line(error)
        if not in_any(candidate in causes):
            return loaded, candidate, list(causes)
        causes.setdefault(candidate, "another process could not read it")
        logger.warning("checkpoint %d in %s cannot be read: %s", candidate, directory, causes[candidate])
    told = "; ".join(f"{candidate}: {cause}" for candidate, cause in causes.items())
    raise InputError(f"no checkpoint in {directory} can be read: {told}")


def _metadata(path):
    """Name -> something with shape and dtype, of what a checkpoint holds."""
    found = ocp.metadata(path).metadata
    if found is None:  # Orbax says no more than this
        raise OSError("the list of its arrays is damaged")
    return found


def _listed(directory):
    if not directory.exists():
        return []
    return sorted(int(path.name) for path in directory.iterdir() if path.name.isdecimal())


def _metrics_readable(path):
    """Orbax cannot open a directory in which one step's metrics are damaged."""
    try:
        json.loads((path / "metrics" / "metrics").read_text())
    except FileNotFoundError:
        return True
    except ValueError:
        return False
    return True
