"""The pictures that a finished evaluation leaves: test images with their predictions, and the confusion matrix."""

import jax
import numpy as np

from vision_jax.parallel.sharding import replicated
from vision_jax.train import pictures
from vision_jax.train.step import make_predict_step

SHOWN = 36


def report(run, variables, sums, directory):
    """Draws `predictions.png` and, for up to 1,000 classes, `confusion.png`; of several processes, the first one does.

    Args:
      run: see `vision_jax.train.run`.
      variables: the model's that was evaluated.
      sums: what `evaluate` gave.
      directory: where the pictures go.

    Returns:
      {name: uint8 [H, W, 3]}, empty in other processes.
    """
    rng = np.random.default_rng(0)
    picked = np.sort(rng.permutation(len(run.eval_source))[:SHOWN])
    examples = [run.eval_ops[0](run.eval_source[int(i)], rng) for i in picked]
    images = np.stack([example["image"] for example in examples])
    probabilities = predict(run, variables, images)
    if jax.process_index() != 0:
        return {}
    chosen = probabilities.argmax(-1)
    labels, names = np.array([example["label"] for example in examples]), run.task.class_names
    path = directory / "predictions.png"
    out = {"predictions": pictures.prediction_grid(images, labels, chosen, probabilities.max(-1), names, path=path)}
    if "confusion" in sums:
        counts = sums["confusion"].astype(int)
        out["confusion"] = pictures.confusion_matrix(counts, names, directory / "confusion.png")
    return out


def predict(run, variables, images):
    """uint8 images [N, H, W, C] -> probabilities [N, num_classes], in batches of the evaluation's size at most."""
    step = jax.jit(make_predict_step(run.static, run.task, run.eval_ops[1]), out_shardings=replicated(run.mesh))
    size = run.config.eval.batch_size
    parts = [np.stack(images[i : i + size]) for i in range(0, len(images), size)]
    return np.concatenate([np.asarray(step(variables, part)) for part in parts])
