"""Shards that coming batches read, fetched ahead: for rows of one snapshot or of several. Of directories nothing is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from mmpipe.data.many import ManyRows
from mmpipe.shards import Rows
from mmpipe.shards.ahead import FetchAhead
from mmpipe.shards.gather import by_group


class Fetching:
    """`FetchAhead` for positions in rows.

    Args:
        rows: what is loaded.
        fields: names of the fields that are read.

    Attributes:
        remote: whether anything has to be fetched.

    >>> from mmpipe.data.collate import example_rows
    >>> fetching = Fetching(example_rows(), ['price'])
    >>> fetching.want(np.array([0])); fetching.wait(np.array([0])); fetching.close(); fetching.remote
    False
    """

    def __init__(self, rows: Rows | ManyRows, fields: Iterable[str]) -> None:
        self._rows, names = rows, list(fields)
        parts = list(rows.parts.values()) if isinstance(rows, ManyRows) else [rows]
        self._parts = [
            FetchAhead(part.snapshot, [name for name in names if name in part.fields], selection=part.places)
            if part.snapshot.place.remote
            else None
            for part in parts
        ]
        self.remote = any(part is not None for part in self._parts)

    def want(self, positions: np.ndarray) -> None:
        """Say what a coming batch reads; returns at once."""
        for ahead, places in self._places(positions):
            ahead.want(places)

    def wait(self, positions: np.ndarray) -> None:
        """Wait until all that a batch reads is here.

        Raises:
            ShardError: a shard is missing or damaged, or the store fails or stalls.
        """
        for ahead, places in self._places(positions):
            ahead.wait(places)

    def close(self) -> None:
        """Fetch nothing more."""
        for ahead in self._parts:
            if ahead is not None:
                ahead.close()

    def _places(self, positions: np.ndarray) -> Iterator[tuple[FetchAhead, Any]]:
        rows = self._rows
        if not self.remote:
            return
        if not isinstance(rows, ManyRows):
            assert self._parts[0] is not None
            yield self._parts[0], rows.places[positions]
            return
        for number, where in by_group(rows.sources[positions]):
            ahead = self._parts[number]
            if ahead is not None:
                yield ahead, rows.parts[rows.names[number]].places[rows.local[positions[where]]]
