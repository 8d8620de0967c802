"""The pictures that a finished evaluation leaves: test images with their predictions, and the confusion matrix."""

import itertools

import jax
import numpy as np

from vision_jax.train import pictures
from vision_jax.train.step import make_predict_step

SHOWN = 36


def report(run, variables, sums, directory):
    """Draws `predictions.png` and, for up to 1,000 classes, `confusion.png`.

    Args:
      run: see `vision_jax.train.run`.
      variables: the model's that was evaluated.
      sums: what `evaluate` gave.
      directory: where the pictures go.

    Returns:
      {name: uint8 [H, W, 3]}.
    """
    rng = np.random.default_rng(0)
    picked = np.sort(rng.permutation(len(run.eval_source))[:SHOWN])
    examples = [run.eval_ops[0](run.eval_source[int(i)], rng) for i in picked]
    images = np.stack([example["image"] for example in examples])
    probabilities = predict(run, variables, images)
    chosen = probabilities.argmax(-1)
    out = {
        "predictions": pictures.prediction_grid(
            images,
            np.array([example["label"] for example in examples]),
            chosen,
            probabilities[np.arange(len(chosen)), chosen],
            run.task.class_names,
            path=directory / "predictions.png",
        )  # fmt: skip
    }
    if "confusion" in sums:
        out["confusion"] = pictures.confusion_matrix(
            sums["confusion"].astype(int), run.task.class_names, directory / "confusion.png"
        )
    return out


def predict(run, variables, images):
    """uint8 images [N, H, W, C] -> probabilities [N, num_classes], in batches of the evaluation's size, all devices whole."""
    step = jax.jit(make_predict_step(run.static, run.task, run.eval_ops[1]))
    out = []
    for part in itertools.batched(images, run.config.eval.batch_size) if hasattr(itertools, "batched") else [images]:
        out.append(np.asarray(step(variables, np.stack(part))))
    return np.concatenate(out)
