"""Pictures of what a classifier does, for files and for TensorBoard.

What matters is told by signs and lightness, never by hue alone.
"""

import math

import numpy as np

from vision_jax.errors import InputError

_RIGHT, _WRONG = "#0072B2", "#D55E00"  # blue and vermilion: apart for every kind of colour vision (Okabe and Ito)


def prediction_grid(images, labels, predictions, probabilities, class_names, path=None):
    """A grid of images with what the model says of them.

    A right one is marked with a tick; a wrong one with a cross, a thick frame and the true class.

    Args:
      images: uint8 [N, H, W, C], C is 1 or 3; some tens of them.
      labels: the true classes, int [N], or None where they are not known.
      predictions: the predicted classes, int [N].
      probabilities: of the predicted classes, in 0..1, [N].
      class_names: names by class number.
      path: a PNG file to write, or None.

    Returns:
      The picture, uint8 [height, width, 3].

    Raises:
      InputError: if a shape or type does not fit.
    """
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or images.dtype != np.uint8 or not len(images):
        raise InputError(
            f"images are {images.dtype}{list(images.shape)}: should be uint8 [N, H, W, 1 or 3], N at least 1"
        )
    for name, values in (("labels", labels), ("predictions", predictions), ("probabilities", probabilities)):
        if values is not None and len(values) != len(images):
            raise InputError(f"{name} has {len(values)} entries for {len(images)} images")
    columns = math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    height = min(max(images.shape[1] / images.shape[2], 0.5), 2)
    figure = new_figure(1.7 * columns, (1.7 * height + 0.4) * rows)
    for i, image in enumerate(images):
        axes = figure.add_subplot(rows, columns, i + 1)
        axes.imshow(image.squeeze(-1) if image.shape[-1] == 1 else image, cmap="gray", vmin=0, vmax=255)
        axes.set_xticks([])
        axes.set_yticks([])
        said = f"{_short(class_names[int(predictions[i])])} {probabilities[i]:.0%}"
        right = labels is None or labels[i] == predictions[i]
        if labels is None:
            title = f"{said}\n"
        elif right:
            title = f"✓ {said}\n"
        else:
            title = f"✗ {said}\ntrue: {_short(class_names[int(labels[i])])}"
        colour = "black" if labels is None else _RIGHT if right else _WRONG
        axes.set_title(title, fontsize=8, color=colour, pad=4)
        for spine in axes.spines.values():
            spine.set(color=colour, linewidth=1 if right else 3)
    return rendered(figure, path)


def confusion_matrix(matrix, class_names=None, path=None):
    """What is taken for what, each true class as a row that sums to one.

    Up to 20 classes the cells show the counts; beyond, the commonest confusions are listed beside the matrix.

    Args:
      matrix: counts [K, K]: true class by predicted class.
      class_names: K names by class number, or None for the numbers.
      path: a PNG file to write, or None.

    Returns:
      The picture, uint8 [height, width, 3].

    Raises:
      InputError: if the matrix is not square or the number of names is another.
    """
    matrix = np.asarray(matrix)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.size:
        raise InputError(f"matrix has shape {list(matrix.shape)}: should be [classes, classes]")
    K = len(matrix)
    if class_names is not None and len(class_names) != K:
        raise InputError(f"class_names has {len(class_names)} names for a matrix of {K} classes")
    class_names = list(map(str, range(K))) if class_names is None else [_short(name) for name in class_names]
    of_class = matrix.sum(axis=1, keepdims=True)
    share = np.ma.masked_where((of_class == 0).repeat(K, 1), matrix / np.maximum(of_class, 1))
    if K <= 20:
        figure = new_figure(4.4 + 0.4 * K, 3.2 + 0.4 * K)
        axes = _draw_shares(figure, figure.add_subplot(), share)
        for i, j in np.argwhere(matrix):
            # White on the dark half of the scale, black on the bright half.
            colour = "black" if share[i, j] > 0.25 else "white"
            axes.text(j, i, f"{matrix[i, j]:,}", ha="center", va="center", color=colour, fontsize=8)
    else:
        # A pixel or more for each cell, lest single cells vanish.
        figure = new_figure(14, 8.5, dpi=max(100, math.ceil(K / 6)))
        left, right = figure.subplots(1, 2, width_ratios=(9, 5))
        axes = _draw_shares(figure, left, share)
        _list_confusions(axes, right, matrix, class_names)
    if K <= 50:
        size = 9 if K <= 20 else 7
        axes.set_xticks(range(K), class_names, rotation=90, fontsize=size)
        none = np.where(of_class[:, 0] == 0, " (no images)", "")
        axes.set_yticks(range(K), [name + mark for name, mark in zip(class_names, none, strict=True)], fontsize=size)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    total = int(matrix.sum())
    figure.suptitle(f"Confusion matrix: {np.trace(matrix) / max(total, 1):.1%} of {total:,} right")
    return rendered(figure, path)


def _draw_shares(figure, axes, share):
    from matplotlib import colormaps
    from matplotlib.colors import PowerNorm

    # The square root makes rare confusions visible.
    scale = colormaps["cividis"].with_extremes(bad="0.8")
    drawn = axes.imshow(share, cmap=scale, norm=PowerNorm(0.5, vmin=0, vmax=1), interpolation="nearest")
    figure.colorbar(drawn, ax=axes, label="share of the true class", fraction=0.046, pad=0.03)
    return axes


def _list_confusions(axes, beside, matrix, class_names, number=30):
    """Circles the commonest confusions in the matrix and lists them beside it."""
    wrong = matrix - np.diag(np.diag(matrix))
    order = np.argsort(-wrong, axis=None, kind="stable")[:number]
    pairs = [divmod(int(k), len(matrix)) for k in order if wrong.flat[k] > 0]
    numbered = [name if name == str(i) else f"{name} ({i})" for i, name in enumerate(class_names)]
    lines = [f"{wrong[i, j]:>6,}  {numbered[i]} → {numbered[j]}" for i, j in pairs]
    axes.scatter(
        [j for _, j in pairs], [i for i, _ in pairs], s=40, facecolors="none", edgecolors="white", linewidths=0.8
    )
    beside.axis("off")
    heading = "Commonest confusions (circled)\nimages  true → predicted\n\n"
    beside.text(0, 1, heading + "\n".join(lines), va="top", fontsize=8, family="monospace")


def new_figure(width, height, dpi=100):
    """A figure of its own canvas: no window system, no global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure((width, height), dpi=dpi, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def rendered(figure, path):
    """A figure's pixels, uint8 [height, width, 3]; `path`: a PNG file to write, or None."""
    from PIL import Image

    figure.canvas.draw()
    picture = np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()
    if path is not None:
        Image.fromarray(picture).save(path, format="png")
    return picture


def _short(name, most=15):
    """A class name that fits over its picture; ImageNet's are lists of synonyms."""
    name = str(name).partition(",")[0]
    return name if len(name) <= most else name[: most - 1] + "…"
