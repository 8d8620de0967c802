"""Bias and mask of whole tiles, made on the chip from those along the columns; for use inside the TPU kernel.

Tiles differ in what they see only at the map's borders. A table [slots, heads, queries, keys] holds one for each pair
of patterns, or, where these are too many, that of the tile at hand.
"""

import jax
import jax.numpy as jnp


def make(tiles, at, rows_of, columns, table):
    """Fills the slot of a tile.

    Args:
      tiles: the layout.
      at: reads a field of the tile.
      rows_of: `QueryTiles.rows_of`, in SMEM.
      columns: `QueryTiles.columns_table`, in VMEM.
      table: in VMEM.
    """
    queries, keys, Tw = tiles.rows_of_tile, tiles.rows_of_keys, tiles.tile[-1]

    def make_head(head, _):
        for query in range(queries):
            row = [columns[at("column_pattern"), head, _place(tiles, at, rows_of, query, key)] for key in range(keys)]
            row = jnp.concatenate(row, 1) if keys > 1 else row[0]
            table[at("slot"), head, query * Tw : (query + 1) * Tw] = row

    jax.lax.fori_loop(0, columns.shape[1], make_head, None)


def add(tiles, at, rows_of, d_table, d_columns):
    """The transpose of `make`: adds a slot's gradients to those of the columns."""
    queries, keys, Tw, Kw = tiles.rows_of_tile, tiles.rows_of_keys, tiles.tile[-1], tiles.keys[-1]

    def add_head(head, _):
        for query in range(queries):
            row = d_table[at("slot"), head, query * Tw : (query + 1) * Tw]
            for key in range(keys):
                place = _place(tiles, at, rows_of, query, key)
                d_columns[at("column_pattern"), head, place] += row[:, key * Kw : (key + 1) * Kw]

    jax.lax.fori_loop(0, d_columns.shape[1], add_head, None)


def _place(tiles, at, rows_of, query, key):
    """The row of the columns' table for a tile's row of queries and row of keys."""
    return rows_of[(at("row_pattern") * tiles.rows_of_tile + query) * tiles.rows_of_keys + key]
