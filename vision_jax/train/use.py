"""A trained model in use: evaluating a checkpoint, classifying image files."""

import glob
import json
import logging
import pathlib

import jax
import numpy as np

from vision_jax.data.sources.folder import EXTENSIONS
from vision_jax.errors import InputError
from vision_jax.parallel.processes import agree
from vision_jax.train import checkpoint, pictures
from vision_jax.train.config import flat
from vision_jax.train.evaluate import evaluate
from vision_jax.train.report import predict, report
from vision_jax.train.run import build

logger = logging.getLogger(__name__)

TOP = 5  # classes told for each image
SHOWN = 100  # images in the picture


def _restored(run, workdir, step=None):
    """(variables, step) of a run's checkpoint: the average where it keeps one, placed as the run's rules say."""
    directory = pathlib.Path(workdir) / "checkpoints"
    average = bool(run.config.ema)
    shapes = run.with_shardings(run.static.shapes)
    found, step = checkpoint.restore_part(directory, {"ema": shapes} if average else shapes, step)
    return (found["ema"] if average else found), step


def evaluate_checkpoint(config, workdir, step=None):
    """Evaluates a checkpoint on the whole evaluation split; prints the metrics, draws the pictures.

    Args:
      config: the run's, as a rule read from its workdir.
      workdir: the run's directory.
      step: which checkpoint; the newest by default.

    Returns:
      The metrics.
    """
    agree({"--step": step, **flat(config)})
    run = build(config, evaluation=True)
    with jax.set_mesh(run.mesh):
        variables, step = _restored(run, workdir, step)
        sums = evaluate(run, run.eval_step(), variables)
        metrics = run.task.metrics(sums)
        if jax.process_index() == 0:
            print(f"step {step}, {int(sums['count'])} images: " + ", ".join(f"{k} {v:.4f}" for k, v in metrics.items()))
            target = pathlib.Path(workdir) / f"eval_{step}.json"
            target.write_text(json.dumps({"step": step, "images": int(sums["count"]), **metrics}, indent=2) + "\n")
        report(run, variables, sums, pathlib.Path(workdir))
    return metrics


def predict_files(config, workdir, patterns, step=None):
    """Classifies image files with a checkpoint.

    Prints a table; writes `predict.json` and `predict.png` in the workdir.

    Args:
      config, workdir, step: as above.
      patterns: files, patterns or directories.

    Returns:
      For each file its name and its classes with their probabilities, likeliest first.

    Raises:
      InputError: a pattern that finds nothing, a file that is no image.
    """
    run = build(config)
    files = _files(patterns)
    rng = np.random.default_rng(0)
    images = []
    for file in files:
        try:
            images.append(run.eval_ops[0]({"image": file.read_bytes()}, rng)["image"])
        except InputError as error:
            raise InputError(f"{file}: {error}") from error
    if len({image.shape for image in images}) > 1:
        raise InputError(
            "eval.ops leave images of several sizes: end the host operations with center_crop(...) or resize((h, w))"
        )
    with jax.set_mesh(run.mesh):
        variables, step = _restored(run, workdir, step)
        probabilities = predict(run, variables, images)
    names, rows = run.task.class_names, []
    for file, p in zip(files, probabilities, strict=True):
        order = p.argsort()[::-1][:TOP]
        rows.append(
            {"file": str(file), "classes": [{"class": names[i], "probability": round(float(p[i]), 6)} for i in order]}
        )
    width = max(len(row["file"]) for row in rows)
    for row in rows:
        print(
            f"{row['file']:<{width}}  "
            + "  ".join(f"{c['class']} {100 * c['probability']:.1f} %" for c in row["classes"][:3])
        )
    workdir = pathlib.Path(workdir)
    (workdir / "predict.json").write_text(json.dumps({"step": step, "predictions": rows}, indent=2) + "\n")
    shown = probabilities[:SHOWN]
    path = workdir / "predict.png"
    pictures.prediction_grid(images[:SHOWN], None, shown.argmax(-1), shown.max(-1), names, path=path)
    logger.info("wrote %s and %s", workdir / "predict.json", path)
    return rows


def _files(patterns):
    files = []
    for pattern in patterns:
        path = pathlib.Path(pattern)
        if path.is_dir():
            found = [p for p in path.rglob("*") if p.suffix.lower() in EXTENSIONS]
        else:
            found = [path] if path.is_file() else [pathlib.Path(name) for name in glob.glob(pattern, recursive=True)]
        if not found:
            raise InputError(f"--images={pattern}: no image file there (one of {', '.join(sorted(EXTENSIONS))})")
        files += sorted(found)
    return files
