"""Pictures of which keys a query sees, made by asking the operators: values that are unit vectors give the weights."""

import io

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from vision_jax.kernels import neighborhood_attention, window_attention

matplotlib.use("Agg")
from matplotlib import pyplot as plt

QUERY, SEEN = "#d55e00", "#56b4e9"  # of Okabe and Ito's palette, which colour-blind readers tell apart


def seen_keys(operator, size, query, **options):
    """Bool [height, width]: the keys to which the query at (row, column) gives weight."""
    height, width = size
    q = jnp.zeros((1, *size, 1, 16))
    values = jnp.eye(height * width).reshape(1, *size, 1, height * width)
    out = operator(q, q, values, implementation="xla", **options)
    return np.asarray(out[0, query[0], query[1], 0] > 0).reshape(size)


def figure(operator, size, panels):
    """One SVG of several panels: (title, query, options) each."""
    jax.config.update("jax_platforms", "cpu")
    fig, axes = plt.subplots(1, len(panels), figsize=(2.4 * len(panels), 2.8), layout="constrained")
    for axis, (title, query, options) in zip(axes, panels, strict=True):
        seen = seen_keys(operator, size, query, **options)
        axis.set_title(title, fontsize=10)
        axis.set(xlim=(0, size[1]), ylim=(size[0], 0), aspect="equal", xticks=[], yticks=[])
        for row in range(size[0]):
            for column in range(size[1]):
                colour = QUERY if (row, column) == query else SEEN if seen[row, column] else "#f4f4f4"
                axis.add_patch(plt.Rectangle((column, row), 1, 1, facecolor=colour, edgecolor="#999999", linewidth=0.4))
    file = io.StringIO()
    fig.savefig(file, format="svg", metadata={"Date": None})
    plt.close(fig)
    return file.getvalue()


def all_figures():
    """{name: SVG}."""
    windows = [
        ("windows of 4", (5, 6), dict(window_size=4)),
        ("shifted by 2", (5, 6), dict(window_size=4, shift=2)),
        ("shifted, at the border", (0, 11), dict(window_size=4, shift=2)),
        ("grid: dilation 3", (5, 6), dict(window_size=4, dilation=3)),
        ("stripes: (2, 12)", (5, 6), dict(window_size=(2, 12))),
        ("halo of 2", (5, 6), dict(window_size=4, halo=2)),
    ]
    neighborhoods = [
        ("kernel of 5", (5, 6), dict(kernel_size=5)),
        ("at the border", (0, 11), dict(kernel_size=5)),
        ("border masked", (0, 11), dict(kernel_size=5, border="mask")),
        ("dilation 2", (5, 6), dict(kernel_size=5, dilation=2)),
        ("stride 2", (5, 6), dict(kernel_size=5, stride=2)),
        ("causal rows", (5, 6), dict(kernel_size=5, is_causal=(True, False))),
    ]
    return {
        "windows": figure(window_attention, (12, 12), windows),
        "neighborhoods": figure(neighborhood_attention, (12, 12), neighborhoods),
    }
