"""Arrays of a run of one or many processes."""

import jax
import numpy as np


def to_global(batch, sharding):
    """This process's part of a batch, numpy arrays [b, ...] -> global arrays [B, ...] on the mesh."""
    return {k: jax.make_array_from_process_local_data(sharding, np.asarray(v)) for k, v in batch.items()}
