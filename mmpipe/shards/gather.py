"""Values of rows that lie in many mapped arrays: each is found by its block and row, and copied once to its place."""

from __future__ import annotations

from bisect import bisect_right
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from mmpipe.shards.copying import copy_rows
from mmpipe.shards.field import Column

if TYPE_CHECKING:
    from mmpipe.shards.reader import Snapshot

ROW_BYTES = 512  # from which finding each row costs less than grouping rows by array


class BlockColumn:
    """A field of one block: its record batches, and behind them the patch, where there is one.

    Args:
        columns: the mapped arrays, in order.
        patched: rows whose values lie in the last of them, in rising order; None where there is no patch.
    """

    def __init__(self, columns: list[Column], patched: np.ndarray | None) -> None:
        self.columns = columns
        self.starts = np.cumsum([0, *(len(column.array) for column in columns)])
        self._bounds = self.starts.tolist()
        self.patched = patched
        self._patch = None if patched is None else {row: i for i, row in enumerate(patched.tolist())}
        # Most blocks are one array without a null: their rows need not be looked for.
        self.whole = len(columns) == 1 and columns[0].valid is None

    @cached_property
    def addresses(self) -> list[int]:
        """Of the first value of each array, in memory that lives as long as this object."""
        return [column.values.ctypes.data for column in self.columns]  # type: ignore[union-attr]

    def place(self, row: int) -> tuple[int, int]:
        """Which of the arrays holds a row, and where."""
        if self._patch is not None and row in self._patch:
            return len(self.columns) - 1, self._patch[row]
        number = bisect_right(self._bounds, row) - 1 if len(self.columns) > 1 else 0
        return number, row - self._bounds[number]

    def groups(self, rows: np.ndarray) -> list[tuple[Column, np.ndarray, np.ndarray]]:
        """For each array that holds some of the rows: itself, their places there, and their positions among them."""
        if len(self.columns) == 1:
            return [(self.columns[0], rows, np.arange(len(rows)))]
        if self.patched is not None:  # their values lie behind those of all rows
            at = np.minimum(np.searchsorted(self.patched, rows), len(self.patched) - 1)
            rows = np.where(self.patched[at] == rows, self.starts[-2] + at, rows)
        numbers = np.searchsorted(self.starts, rows, side='right') - 1
        return [
            (self.columns[number], rows[here] - self.starts[number], here) for number, here in by_group(numbers)
        ]  # fmt: skip


def fill(snapshot: Snapshot, name: str, places: np.ndarray, out: np.ndarray) -> np.ndarray:
    """Copy values of a dense field to `out`.

    Args:
        snapshot: where they lie.
        name: field name.
        places: int64 `[n, 2]` of block and row.
        out: `[n, *dense_shape]`.

    Returns:
        bool `[n]`, False for null; `out` holds zeros there.
    """
    valid = np.ones(len(places), dtype=bool)
    field = snapshot.fields[name]
    blocks = snapshot.few(name, places)
    if field.kind == 'tensor' and (field.bytes_per_row or 0) >= ROW_BYTES:
        size, found = field.bytes_per_row or 0, [0] * len(places)
        for i, (block, row) in enumerate(places.tolist()):
            held = blocks.get(block)
            if held is None:
                held = blocks[block] = snapshot.column(block, name)
            if held.whole:
                found[i] = held.addresses[0] + row * size
                continue
            number, at = held.place(row)
            found[i] = held.addresses[number] + at * size  # a null holds zeros
            there = held.columns[number].valid
            if there is not None:
                valid[i] = there[at]
        fits = out.flags.c_contiguous and out.dtype == field.dtype
        rows_out = out if fits else np.empty(out.shape, dtype=field.dtype)
        copy_rows(np.array(found, dtype=np.uint64), rows_out)
        if not fits:
            out[...] = rows_out
        return valid
    for block, where in by_group(places[:, 0]):
        for column, rows, here in (blocks.get(block) or snapshot.column(block, name)).groups(places[where, 1]):
            out[where[here]] = column.gather(rows)
            if column.valid is not None:
                valid[where[here]] = column.valid[rows]
    return valid


def values(snapshot: Snapshot, name: str, places: np.ndarray) -> tuple[list[Any], np.ndarray]:
    """Values of a field whose rows differ in size.

    Args:
        snapshot: where they lie.
        name: field name.
        places: int64 `[n, 2]` of block and row.

    Returns:
        (n values, bool `[n]`, False for null): ragged arrays are views of the map.
    """
    valid = np.ones(len(places), dtype=bool)
    out: list[Any] = [None] * len(places)
    blocks = snapshot.few(name, places)
    for block, where in by_group(places[:, 0]):
        for column, rows, here in (blocks.get(block) or snapshot.column(block, name)).groups(places[where, 1]):
            if column.valid is not None:
                valid[where[here]] = column.valid[rows]
            for i, value in zip(where[here].tolist(), column.gather(rows), strict=True):
                out[i] = value
    return out, valid


def by_group(groups: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """Each number that occurs, with the positions where it does, in their order.

    >>> by_group(np.array([7, 3, 7]))
    [(3, array([1])), (7, array([0, 2]))]
    """
    if not len(groups):
        return []
    order = np.argsort(groups, kind='stable')
    cuts = np.flatnonzero(np.diff(groups[order])) + 1
    return [(int(groups[part[0]]), part) for part in np.split(order, cuts)]
