"""The order in which the TPU kernel takes a map's tiles: band by band, and in each by what the tiles see."""

import itertools

import numpy as np

# What the kernel is told about each tile:
FIELDS = (
    "row", "column",  # the tile, counted in tiles
    "key_row", "key_column",  # the first of its keys; columns in groups of 8
    "band", "band_row", "band_column",  # the band, and where in it the keys begin
    "row_pattern", "column_pattern",  # what is seen along each axis
    "slot",  # where the table of bias and mask lies that the tile shares with those of its patterns
    "opens_band", "opens_slot", "closes_slot",  # whether it is the first of the band; the first, the last in the slot
)  # fmt: skip


def places(axes, bands, slots, align):
    """int32 [FIELDS, tiles], in the order of the grid.

    Args:
      axes, bands: (rows, columns) as the layout has cut them.
      slots: tables held at once: one for all pairs of patterns, or 1.
      align: columns in a group.
    """
    (rows, columns), (down, across) = axes, bands

    def order(tile):
        i, j = tile
        return down.of_tile[i], across.of_tile[j], rows.pattern[i], columns.pattern[j], i, j

    tiles = sorted(itertools.product(range(len(rows.first)), range(len(columns.first))), key=order)
    i, j = np.array(tiles).T
    band = down.of_tile[i] * len(across.first) + across.of_tile[j]
    pattern = rows.pattern[i] * len(columns.distance) + columns.pattern[j]
    if slots == 1:
        changes = np.diff(pattern) != 0
        opens, closes = np.append(True, changes), np.append(changes, True)
    else:
        opens, closes = np.zeros(len(i), bool), np.zeros(len(i), bool)
        opens[np.unique(pattern, return_index=True)[1]] = True
        closes[len(i) - 1 - np.unique(pattern[::-1], return_index=True)[1]] = True
    key_row, key_column = rows.first[i], columns.first[j]
    fields = (
        i, j, key_row, key_column // align,
        band, key_row - down.first[down.of_tile[i]], (key_column - across.first[across.of_tile[j]]) // align,
        rows.pattern[i], columns.pattern[j],
        pattern if slots > 1 else 0 * pattern,
        np.append(True, np.diff(band) != 0), opens, closes,
    )  # fmt: skip
    return np.stack(fields).astype(np.int32)
