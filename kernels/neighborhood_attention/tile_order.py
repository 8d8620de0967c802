"""The order in which the TPU kernel takes a map's tiles: band by band, and in each by what the tiles see."""

import itertools

import numpy as np

# What the kernel is told about each tile:
FIELDS = (
    "plane", "row", "column", "tile",  # the tile, counted in tiles, along the axes and over the map
    "key_plane", "key_row", "key_column",  # the first of its keys; columns in groups of 8
    "band", "band_plane", "band_row", "band_column",  # the band, and where in it the keys begin
    "row_pattern", "column_pattern",  # what is seen: of the rows of all planes, and along the columns
    "slot",  # where the table of bias and mask lies that the tile shares with those of its patterns
    "opens_band", "opens_slot", "closes_slot",  # whether it is the first of the band; the first, the last in the slot
)  # fmt: skip


def places(axes, bands, slots, align):
    """{field: int32 [tiles]}, in the order of the grid.

    Args:
      axes, bands: (planes, rows, columns) as the layout has cut them.
      slots: tables held at once: one for all pairs of patterns, or 1.
      align: columns in a group.
    """
    tiles, bands_of = [len(axis.first) for axis in axes], [len(cut.first) for cut in bands]
    patterns = [len(axis.distance) for axis in axes]

    def order(tile):
        return (
            *(cut.of_tile[i] for i, cut in zip(tile, bands, strict=True)),
            *(axis.pattern[i] for i, axis in zip(tile, axes, strict=True)),
            *tile,
        )

    places = np.array(sorted(itertools.product(*map(range, tiles)), key=order)).T
    band = [cut.of_tile[i] for i, cut in zip(places, bands, strict=True)]
    pattern = [axis.pattern[i] for i, axis in zip(places, axes, strict=True)]
    key = [axis.first[i] for i, axis in zip(places, axes, strict=True)]
    key_in_band = [k - cut.first[b] for k, b, cut in zip(key, band, bands, strict=True)]
    band, rows = np.ravel_multi_index(band, bands_of), np.ravel_multi_index(pattern[:-1], patterns[:-1])
    both = rows * patterns[-1] + pattern[-1]
    if slots == 1:
        changes = np.diff(both) != 0
        opens, closes = np.append(True, changes), np.append(changes, True)
    else:
        opens, closes = np.zeros(len(both), bool), np.zeros(len(both), bool)
        opens[np.unique(both, return_index=True)[1]] = True
        closes[len(both) - 1 - np.unique(both[::-1], return_index=True)[1]] = True
    fields = (
        *places, np.ravel_multi_index(places, tiles),
        *key[:-1], key[-1] // align,
        band, *key_in_band[:-1], key_in_band[-1] // align,
        rows, pattern[-1],
        both if slots > 1 else 0 * both,
        np.append(True, np.diff(band) != 0), opens, closes,
    )  # fmt: skip
    return dict(zip(FIELDS, np.stack(fields).astype(np.int32), strict=True))
