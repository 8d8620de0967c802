"""What a model's features know of the classes without training it: nearest neighbours, and few examples a class.

    python -m vision_jax.tools.features --config configs/linear_probe.py
    python -m vision_jax.tools.features --config configs/vit_i1k.py:S --weights runs/vit_s16 --few 1 5 10

The recipe tells the data, the images' size and the model; its training split is read with the operations of evaluation.
In one process, on all of its devices.
"""

import argparse
import dataclasses
import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np

from vision_jax.data import eval_batches, load_source
from vision_jax.errors import InputError
from vision_jax.functional import apply, split
from vision_jax.parallel.sharding import batch_sharding, replicated
from vision_jax.registry import create_model
from vision_jax.train.config import load_config
from vision_jax.train.run import build
from vision_jax.train.warm_start import load_variables

PART = 1024  # images whose distances to all training images are held at once


@functools.partial(jax.jit, static_argnames=("neighbours", "num_classes"))
def nearest(features, labels, queries, *, neighbours, num_classes, temperature=0.07):
    """Scores of the classes: each of the nearest training images votes exp(cosine / temperature) for its own.

    As DINO evaluates (Caron et al., 2021, arXiv:2104.14294, section 3.2, with 20 neighbours; Wu et al., 2018,
    arXiv:1805.01978, equation 9).

    Args:
      features, labels: of the training images, [N, C] and [N].
      queries: [M, C].
      neighbours: how many vote.
      num_classes: K.

    Returns:
      [M, K].
    """
    cosine, index = jax.lax.top_k(_unit(queries) @ _unit(features).T, neighbours)
    votes = jnp.exp((cosine - cosine[:, :1]) / temperature)  # the largest is 1: exp(1 / temperature) is 1.6e6
    return (votes[..., None] * jax.nn.one_hot(labels[index], num_classes)).sum(1)


def _unit(x):
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


@functools.partial(jax.jit, static_argnames=("num_classes",))
def ridge(features, labels, queries, *, num_classes, strength=2.0**10):
    """Scores of the classes by regularised least squares to targets of -1 and 1.

    As big_vision's fewshot_lsr and the ViT paper (Dosovitskiy et al., 2021, arXiv:2010.11929, section 4.1) evaluate;
    features are standardised by the training images'.

    Args:
      features, labels: of the training images, [N, C] and [N].
      queries: [M, C].
      num_classes: K.
      strength: of the regularisation.

    Returns:
      [M, K].
    """
    mean, std = features.mean(0), features.std(0) + 1e-5
    x, q = (jnp.pad((a - mean) / std, ((0, 0), (0, 1)), constant_values=1) for a in (features, queries))
    targets = 2 * jax.nn.one_hot(labels, num_classes) - 1
    # as many equations as there are fewer: images or features
    if len(x) < x.shape[1]:
        return q @ (x.T @ jnp.linalg.solve(x @ x.T + strength * jnp.eye(len(x)), targets))
    return q @ jnp.linalg.solve(x.T @ x + strength * jnp.eye(x.shape[1]), x.T @ targets)


def few_of(labels, shots, seed=0):
    """Indices of `shots` training images a class, drawn from a seed; all of a class that has fewer."""
    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    place = np.arange(len(order)) - np.searchsorted(labels[order], labels[order])
    return order[place < shots]


def extract(run, static, variables, source):
    """(features [N, C], labels [N]) of a source's images, numpy arrays."""
    step = jax.jit(lambda variables, batch: apply(static, variables, run.eval_ops[1](None, batch)["image"])[0])
    features, labels = [], []
    batches = eval_batches(
        source, run.eval_ops[0], batch_size=run.config.eval.batch_size, workers=run.config.data.workers
    )
    with jax.set_mesh(run.mesh), batches:
        for batch in batches:
            image = {"image": jax.device_put(batch["image"], batch_sharding(run.mesh))}
            features.append(np.asarray(step(variables, image), np.float32)[batch["mask"]])
            labels.append(batch["label"][batch["mask"]])
    return np.concatenate(features), np.concatenate(labels)


def evaluate(config, weights, neighbours=20, few=()):
    """Top-1 accuracies: {"nearest neighbours": 0.74, "5 a class": 0.6, ...}.

    Args:
      config: a recipe's.
      weights: a run's workdir, a weight file, or hf-hub:...
      neighbours: how many vote.
      few: numbers of examples a class, for `ridge`.

    Raises:
      InputError: weights that do not fit, or more neighbours than there are images.
    """
    run = build(config, evaluation=True)
    fields = {field.name: getattr(run.model.config, field.name) for field in dataclasses.fields(run.model.config)}
    static, _ = split(create_model(config.model.name, abstract=True, **(fields | {"num_classes": 0})))
    variables = jax.device_put(load_variables(static, weights, head="skip"), replicated(run.mesh))
    train = load_source(config.data.source, config.data.split, **config.data.options)
    if not 0 < neighbours <= len(train):
        raise InputError(f"--neighbours={neighbours}: 1 to {len(train)}, the images of {config.data.split!r}")
    (known, labels), (queries, truth) = (extract(run, static, variables, s) for s in (train, run.eval_source))

    known = jnp.asarray(known)  # once, not with every part of the queries

    def accuracy(score):
        parts = [score(queries[i : i + PART]).argmax(-1) for i in range(0, len(queries), PART)]
        return float((np.concatenate(parts) == truth).mean())

    classes = {"num_classes": len(run.task.class_names)}
    found = {
        "nearest neighbours": accuracy(functools.partial(nearest, known, labels, neighbours=neighbours, **classes))
    }
    for shots in few:
        some = few_of(labels, shots)
        found[f"{shots} a class"] = accuracy(functools.partial(ridge, known[some], labels[some], **classes))
    return found


def main(argv=None):
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m vision_jax.tools.features", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--config", required=True, help="a recipe")
    parser.add_argument("--weights", help="a run's workdir, a weight file, or hf-hub:...; what the recipe starts from")
    parser.add_argument("--neighbours", type=int, default=20)
    parser.add_argument("--few", type=int, nargs="*", default=(), help="examples a class")
    args = parser.parse_args(argv)
    try:
        config = load_config(args.config)
        weights = args.weights or config.init_from
        if not weights:
            raise InputError("--weights is needed: this recipe starts from none")
        for name, accuracy in evaluate(config, weights, args.neighbours, args.few).items():
            print(f"{name}: {accuracy:.2%}")
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
