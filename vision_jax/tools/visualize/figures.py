"""The pictures: arrays in, a `PIL.Image` 900 pixels wide out, which a notebook shows and `.save(path)` writes.

Lightness tells the values, in scales that every kind of colour vision reads: viridis, and PuOr for what has a sign.
"""

import functools

import numpy as np
from PIL import Image

from vision_jax.tools.visualize.grids import bilinear, cell, nearest
from vision_jax.train.pictures import new_figure, rendered

WIDTH = 9.0  # inches of 100 pixels


def evenly(items, most):
    """At most so many of a list, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[i] for i in np.linspace(0, len(items) - 1, most).round().astype(int)]


def attention(pixels, layers, query=None, image=0, title="", heads=5, rows=4):
    """Where one query looks: a row for each of some layers, a column for each of the first heads.

    Args:
      pixels: the image, uint8 [H, W, 3].
      layers: `AttentionMap`s, of which some are shown.
      query: "class", or (down, right) in 0..1 on the image; the class token by default, else the image's middle.
      image: which one of the layers' batch it is.
      title: of the figure.
      heads, rows: at most so many.
    """
    layers = evenly(layers, rows)
    most = min(heads, max(layer.weights.shape[1] for layer in layers))
    figure = new_figure(WIDTH, (WIDTH - 1) / (most + 2) * len(layers) + 0.75)
    grid = figure.subplots(len(layers), most + 2, squeeze=False)
    for layer, row in zip(layers, grid, strict=True):
        where = _cell(layer, query)
        seen = layer.seen_from(where, image)
        panels = {f"mean of {len(seen)} heads": seen.mean(axis=0)}
        panels |= {f"head {head}": one for head, one in enumerate(seen[:most])}
        _show(row[0], pixels)
        row[0].set_ylabel("{}\n{} x {} tokens".format(layer.name.removesuffix(".attn"), *layer.grid), fontsize=8)
        low, high = 0, np.nanmax([np.nanmax(panel) for panel in panels.values()])
        for axes in row[1 + len(panels) :]:
            axes.axis("off")
        for axes, (name, panel) in zip(row[1:], panels.items(), strict=False):
            drawn = _show(axes, nearest(panel, pixels.shape[:2]), cmap=_scale("viridis"), vmin=low, vmax=high)
            axes.set_title(name, fontsize=8)
        _mark(row[: 1 + len(panels)], where, layer.grid, pixels.shape)
        bar = figure.colorbar(drawn, ax=list(row), fraction=0.02, pad=0.01)
        bar.ax.tick_params(labelsize=7)
        bar.set_label("attention weight", fontsize=8)
    asks = "the class token" if _cell(layers[0], query) == "class" else "the marked token"
    figure.suptitle(_titled(f"What {asks} attends to (grey: out of its reach)", title), fontsize=10)
    return _image(figure)


def overlay(pixels, maps, names, label, title="", share=False):
    """Maps over their images: a row each of the image, the map and both.

    Args:
      pixels: uint8 [B, H, W, 3].
      maps: [B, rows, columns], at least 0.
      names: a title for each row.
      label: what the values are, with their unit.
      title: of the figure.
      share: whether each map is told as percentages of its sum, else of its largest value.
    """
    width = (WIDTH - 0.6) / 3
    figure = new_figure(WIDTH, (width * pixels.shape[1] / pixels.shape[2] + 0.25) * len(maps) + 0.5)
    grid = figure.subplots(len(maps), 3, squeeze=False)
    for picture, values, name, row in zip(pixels, maps, names, grid, strict=True):
        values = 100 * values / ((values.sum() if share else values.max()) or 1)
        # shares differ by little from one another; where there is no evidence at all, it is 0 of 100
        low, high = (values.min(), values.max()) if share else (0, 100)
        size, scale = picture.shape[:2], dict(cmap="viridis", vmin=low, vmax=high)
        _show(row[0], picture)
        row[0].set_ylabel(name, fontsize=8)
        drawn = _show(row[1], nearest(values, size), **scale)
        row[1].set_title("{} x {} tokens".format(*values.shape), fontsize=8)
        _show(row[2], picture.mean(axis=2), cmap="gray", vmin=0, vmax=255)
        _show(row[2], bilinear(values, size), alpha=0.6, **scale)
        row[2].set_title("over the image", fontsize=8)
        bar = figure.colorbar(drawn, ax=list(row), fraction=0.02, pad=0.01)
        bar.ax.tick_params(labelsize=7)
        bar.set_label(label, fontsize=8)
    figure.suptitle(title, fontsize=10)
    return _image(figure)


def relative_bias(biases, title="", heads=6, rows=4):
    """What a key's place adds to its score: a row for each of some layers, a column for each of the first heads.

    Args:
      biases: `BiasMap`s, of which some are shown.
      title: of the figure.
      heads, rows: at most so many.
    """
    biases = evenly(biases, rows)
    most = min(heads, max(len(one.bias) for one in biases))
    figure = new_figure(WIDTH, (WIDTH - 1.2) / most * len(biases) + 1)
    grid = figure.subplots(len(biases), most, squeeze=False)
    for one, row in zip(biases, grid, strict=True):
        shown = one.bias[:most] - one.bias[:most].mean(axis=(1, 2), keepdims=True)
        down, right = (side // 2 * step for side, step in zip(shown.shape[1:], one.step, strict=True))
        limit = abs(shown).max() or 1
        extent = (-right - one.step[1] / 2, right + one.step[1] / 2, down + one.step[0] / 2, -down - one.step[0] / 2)
        for axes in row[len(shown) :]:
            axes.axis("off")
        for head, (axes, values) in enumerate(zip(row, shown, strict=False)):
            drawn = axes.imshow(values, cmap="PuOr", vmin=-limit, vmax=limit, extent=extent, interpolation="nearest")
            axes.plot(0, 0, "k+", markersize=6)
            axes.set_title(f"head {head} of {len(one.bias)}", fontsize=8)
            axes.tick_params(labelsize=7)
            axes.set_xticks([-right, 0, right])
            axes.set_yticks([-down, 0, down] if head == 0 else [])
        row[0].set_ylabel(one.name.removesuffix(".cpb_mlp").removesuffix(".attn") + "\ntokens below", fontsize=8)
        bar = figure.colorbar(drawn, ax=list(row), fraction=0.02, pad=0.01)
        bar.ax.tick_params(labelsize=7)
        bar.set_label("bias less its mean\n(added to the score)", fontsize=8)
    for axes in grid[-1]:
        axes.set_xlabel("tokens to the right", fontsize=8)
    figure.suptitle(_titled("Relative-position bias of keys around the query (+)", title), fontsize=10)
    return _image(figure)


def colours(pixels, maps, names, title=""):
    """Feature colours beside their images: a row for each image, a column for each map.

    Args:
      pixels: uint8 [B, H, W, 3].
      maps: of each layer (colours [B, rows, columns, 3], the components' shares of the variance [3]).
      names: of the layers.
      title: of the figure.
    """
    width = WIDTH / (len(maps) + 1)
    figure = new_figure(WIDTH, width * pixels.shape[1] / pixels.shape[2] * len(pixels) + 0.9)
    grid = figure.subplots(len(pixels), len(maps) + 1, squeeze=False)
    for i, row in enumerate(grid):
        _show(row[0], pixels[i])
        for axes, (values, shares), name in zip(row[1:], maps, names, strict=True):
            _show(axes, nearest(values[i], pixels.shape[1:3]))
            if i == 0:
                told = f"{name}, {values.shape[1]} x {values.shape[2]}\n{shares.sum():.0%} of the variance"
                axes.set_title(told, fontsize=8)
    about = "Features' first three principal components as red, green, blue: like colours, like features"
    figure.suptitle(_titled(about, title), fontsize=10)
    return _image(figure)


def receptive_field(fields, names, sides, title=""):
    """Effective receptive fields side by side, on a logarithmic scale.

    Args:
      fields: list of [H, W], the largest 1.
      names: of the maps.
      sides: their effective sides, in pixels.
      title: of the figure.
    """
    from matplotlib.colors import LogNorm

    figure = new_figure(WIDTH, (WIDTH - 0.8) / max(len(fields), 3) + 1)
    row = figure.subplots(1, len(fields), squeeze=False)[0]
    for axes, field, name, side in zip(row, fields, names, sides, strict=True):
        drawn = axes.imshow(np.maximum(field, 1e-4), cmap="viridis", norm=LogNorm(1e-3, 1), interpolation="nearest")
        axes.set_title(f"{name}\neffective side {side:.0f} pixels", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.set_xlabel("pixels", fontsize=8)
    row[0].set_ylabel("pixels", fontsize=8)
    bar = figure.colorbar(drawn, ax=list(row), fraction=0.02, pad=0.01, extend="min")
    bar.ax.tick_params(labelsize=7)
    bar.set_label("gradient, relative to the largest", fontsize=8)
    figure.suptitle(_titled("Effective receptive field of the middle of the map", title), fontsize=10)
    return _image(figure)


@functools.cache
def _scale(name):
    from matplotlib import colormaps

    return colormaps[name].with_extremes(bad="0.85")


def _show(axes, picture, **how):
    axes.set_xticks([])
    axes.set_yticks([])
    return axes.imshow(picture, interpolation="nearest", **how)


def _cell(layer, query):
    """A query as `AttentionMap.seen_from` takes it."""
    if query == "class" or (query is None and layer.prefix):
        return "class"
    return cell((0.5, 0.5) if query is None else query, layer.grid)


def _mark(row, where, grid, size):
    from matplotlib.patches import Rectangle

    if where == "class":
        return
    height, width = (pixels / cells for pixels, cells in zip(size, grid, strict=False))
    for axes in row:
        corner = (where[1] * width - 0.5, where[0] * height - 0.5)
        for colour, line in (("white", 2.5), ("#D55E00", 1.2)):  # seen on bright and on dark
            axes.add_patch(Rectangle(corner, width, height, fill=False, edgecolor=colour, linewidth=line))


def _titled(about, title):
    return f"{title}: {about[0].lower()}{about[1:]}" if title else about


def _image(figure):
    return Image.fromarray(rendered(figure, None))
