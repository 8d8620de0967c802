"""Evaluation of a whole split."""

import jax
import numpy as np

from vision_jax.data import eval_batches
from vision_jax.parallel.processes import in_any, local_rows, to_global
from vision_jax.parallel.sharding import batch_sharding

AGREEING = 20  # batches after which several processes ask each other whether to go on: they wait for it


def evaluate(run, eval_step, variables, stopped=()):
    """The task's sums over the whole evaluation split; examples that fill the last batch up do not count.

    Args:
      run: see `vision_jax.train.run`.
      eval_step: `run.eval_step()`, kept by the caller so that it is compiled once.
      variables: the model's, on the run's mesh.
      stopped: no longer empty once evaluation is to be given up; in one of several processes is enough.

    Returns:
      The sums, numpy arrays; None where it was given up.
    """
    config, total = run.config, None
    place = batch_sharding(run.mesh)
    agreeing = 1 if jax.process_count() == 1 else AGREEING
    batches = eval_batches(
        run.eval_source,
        run.eval_ops[0],
        batch_size=config.eval.batch_size,
        workers=config.data.workers,
        rows=local_rows(config.eval.batch_size, place),
    )
    with jax.set_mesh(run.mesh), batches:
        for number, batch in enumerate(batches):
            placed = to_global(batch, place)
            # The next batch is loaded meanwhile. More steps in flight hold memory, and deadlock two processes on CPUs
            jax.block_until_ready(total)
            if number % agreeing == 0 and in_any(bool(stopped)):
                return None
            sums = eval_step(variables, placed)
            total = sums if total is None else jax.tree.map(lambda a, b: a + b, total, sums)
    return jax.tree.map(np.asarray, total)
