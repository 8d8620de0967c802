"""Source and host ops -> batches of NumPy arrays, through Grain.

The stream of training examples is a function of position: position p lies in epoch p // N, where the epoch's shuffle
says which example it is, and what the ops draw depends on (seed, epoch, index) alone. Batch s of the whole run holds
positions s * batch_size onwards; each process loads the rows of it that its devices hold. So the position in the data
is one integer, the number of batches consumed, whatever the number of workers and processes before and after. With
repeated augmentation (Hoffer et al., 2020, arXiv:1901.09335) an epoch shows a part of the examples, several times each.
"""

import multiprocessing
import os
import signal
import sys
import threading
import weakref

import grain
import numpy as np
from absl import flags

from vision_jax.data.decode import ImageError
from vision_jax.errors import InputError, unknown

ON_ERROR = ("stop", "replace")
TYPES = {"image": np.uint8, "label": np.int32, "index": np.int64, "mask": np.bool_, "replaced": np.bool_}
REPLACEMENTS = 10  # tried in turn; that many damaged images in a row are no accident


def train_batches(
    source,
    host_ops,
    *,
    batch_size,
    seed,
    start=0,
    workers=0,
    rows=None,
    on_error="stop",
    repeats=1,
):
    """Endless shuffled batches; each example comes exactly once an epoch, and batches straddle epochs.

    Args:
      source: see `vision_jax.data.sources`.
      host_ops: `fn(example, rng) -> example`, from `split_ops`; all images must leave it with one shape.
      batch_size: examples a step, over all processes.
      seed: non-negative; of the order and of what the ops draw.
      start: batches already consumed; costs the same at any value.
      workers: processes that decode; 0 decodes in threads of this one. A script that asks for workers needs
        `if __name__ == "__main__":`.
      rows: those of each batch that this process loads, ascending; all of them by default.
      on_error: "stop" raises at an image that cannot be read; "replace" puts another one in its place, always the same.
      repeats: how often in a row each example comes, put through the ops anew; an epoch is as long as with 1, so it
        holds the first 1 / repeats of its order (as DeiT's sampler has it, with 3).

    Returns:
      An iterator, to be closed with `.close()` or used in `with`, over {"image": uint8 [b, H, W, C], "label": int32
      [b], "index": int64 [b] in the source, "replaced": bool [b]}, with b = batch_size, or the number of `rows`.

    Raises:
      InputError: wrong arguments; while iterating, an image that cannot be read, by name, or images of several shapes.
    """
    rows = _rows(source, batch_size, rows)
    if on_error not in ON_ERROR:
        raise unknown("on_error", on_error, ON_ERROR)
    for name, value in (("seed", seed), ("start", start), ("workers", workers)):
        if value < 0:
            raise InputError(f"{name} is not negative: given {value}")
    if repeats < 1:
        raise InputError(f"repeats is at least 1: given {repeats}")
    # Grain adds the epoch to its seed: spread the seeds, or seed 1 would begin with the second epoch of seed 0
    order = grain.MapDataset.range(len(source)).shuffle(seed=int(np.random.SeedSequence(seed).generate_state(1)[0]))
    load = _Load(source, host_ops, seed, order.repeat(), replace=on_error == "replace", repeats=repeats)
    batches = grain.MapDataset.range(sys.maxsize // batch_size * rows.each).map(rows).map(load)
    return Batches(batches.batch(rows.each, batch_fn=_Collate(source))[start:], workers)


def eval_batches(source, host_ops, *, batch_size, workers=0, rows=None):
    """Every example once, in order, in batches of one size; every process gets equally many.

    Arguments, errors and result are those of `train_batches`, with "mask" [b] bool in place of "replaced": False in the
    rows that fill the last batch up, which are copies of examples and must not count.
    """
    rows = _rows(source, batch_size, rows)
    if workers < 0:
        raise InputError(f"workers is not negative: given {workers}")
    steps = -(-len(source) // batch_size)
    load = _Load(source, host_ops, 0, grain.MapDataset.range(len(source)).repeat(), mask=True)
    batches = grain.MapDataset.range(steps * rows.each).map(rows).map(load)
    return Batches(batches.batch(rows.each, batch_fn=_Collate(source)), workers)


def _rows(source, batch_size, rows):
    if batch_size < 1:
        raise InputError(f"batch_size is at least 1: given {batch_size}")
    rows = np.arange(batch_size) if rows is None else np.asarray(rows)
    if not rows.size or rows.min() < 0 or rows.max() >= batch_size or (np.diff(rows) < 1).any():
        raise InputError(f"rows are some of the {batch_size} of a batch, ascending: given {rows.tolist()}")
    if not len(source):
        raise InputError("the source is empty")
    return _Rows(batch_size, rows)


class _Rows:
    """This process's n-th example -> its position in the stream of all processes."""

    def __init__(self, batch_size, rows):
        self.batch_size, self.rows, self.each = batch_size, rows, len(rows)

    def __call__(self, n):
        step, row = divmod(n, self.each)
        return step * self.batch_size + int(self.rows[row])


class _Load:
    """Position in the stream -> the example there, read and put through the host ops."""

    def __init__(self, source, host_ops, seed, order, replace=False, mask=False, repeats=1):
        self.source, self.host_ops, self.seed, self.order = source, host_ops, seed, order
        self.replace, self.mask, self.repeats = replace, mask, repeats

    def __call__(self, position):
        position = int(position)
        epoch, place = divmod(position, len(self.source))
        place, copy = divmod(place, self.repeats)
        index = int(self.order[epoch * len(self.source) + place])
        if self.mask:
            return {**self.example(epoch, index), "mask": position < len(self.source)}
        try:
            return {**self.example(epoch, index, copy), "replaced": False}
        except ImageError:
            if not self.replace:
                raise
        for other in np.random.default_rng(index).integers(len(self.source), size=REPLACEMENTS):
            try:
                return {**self.example(epoch, int(other), copy), "replaced": True}
            except ImageError:
                continue
        raise InputError(
            f"{self.source.name(index)} cannot be read, nor could {REPLACEMENTS} others in its place: damaged data"
        )

    def example(self, epoch, index, copy=0):
        rng = np.random.default_rng((self.seed, epoch, index, *([copy] if copy else [])))
        try:
            example = self.host_ops(self.source[index], rng)
        except (InputError, OSError) as error:
            kind = InputError if isinstance(error, InputError) and not isinstance(error, ImageError) else ImageError
            raise kind(f"{self.source.name(index)}: {error}") from error
        return {**example, "index": index}


class _Collate:
    """Examples -> a batch of arrays."""

    def __init__(self, source):
        self.source = source

    def __call__(self, examples):
        first = examples[0]
        for other in examples:
            if other["image"].shape != first["image"].shape:
                raise InputError(
                    f"images of one batch differ in shape: {list(first['image'].shape)} of"
                    f" {self.source.name(first['index'])}, {list(other['image'].shape)} of"
                    f" {self.source.name(other['index'])}: crop or resize to one (height, width) in the ops"
                )
        return {key: np.array([e[key] for e in examples], TYPES[key]) for key in first}


class Batches:
    """Iterator over batches, read ahead by threads or by worker processes, which end with `close()`, or with us."""

    def __init__(self, batches, workers):
        # Batches are large: read a few ahead, not Grain's 500
        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1) if workers else grain.ReadOptions(4, 4)
        dataset = batches.to_iter_dataset(options)
        if workers:
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()  # Grain reads its own flags, also outside of absl's app.run
            dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(workers, 2), worker_init_fn=_start_worker)
        self._iterator = iter(dataset)
        self._close = weakref.finalize(self, self._iterator.close)

    def __iter__(self):
        return self

    def __next__(self):
        try:
            return next(self._iterator)
        except StopIteration:
            self.close()
            raise
        except BaseException as error:
            self.close()
            if isinstance(error, RuntimeError) and "terminated unexpectedly" in str(error):
                error.add_note(
                    'Usual causes: no `if __name__ == "__main__":` in the script, no memory left (exit code -9), or a'
                    " /dev/shm too small for a few batches (exit code -7; containers: --shm-size)."
                )
            raise

    def close(self):
        """Ends the threads and worker processes. May be called again."""
        self._close()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()


def _start_worker(index, count):
    """Runs first in every worker process."""
    os.environ["JAX_PLATFORMS"] = "cpu"  # an accelerator belongs to the trainer
    if "jax" in sys.modules:
        sys.modules["jax"].config.update("jax_platforms", "cpu")
    # Ctrl-C and a scheduler's SIGTERM go to the whole process group; the trainer, still saving, needs its data till it
    # closes us
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent():
    """A parent killed with SIGKILL cannot close its workers; the pipe this waits on, the system closes for it.

    PR_SET_PDEATHSIG would watch the thread that started us, one of Grain's, not the parent itself.
    """
    multiprocessing.parent_process().join()
    os._exit(1)
