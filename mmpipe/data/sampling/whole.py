"""Samplings that visit every row once: shuffled, or as stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mmpipe.data.order import epoch_order
from mmpipe.data.sampling.contract import Selection


@dataclass(frozen=True)
class Sequential:
    """Every row once, in the order of the rows.

    >>> from mmpipe.data.collate import example_rows
    >>> Sequential().sequence(example_rows(), seed=0, epoch=0)
    array([0, 1])
    """

    def sequence(self, rows: Selection, *, seed: int, epoch: int) -> np.ndarray:
        """int64 `[N]`: 0..N-1."""
        return np.arange(len(rows), dtype=np.int64)

    def length(self, rows: Selection) -> int:
        """All rows."""
        return len(rows)

    def identity(self) -> dict[str, Any]:
        """As JSON."""
        return {'sampling': 'sequential'}


@dataclass(frozen=True)
class Shuffle:
    """Every row once, in a new order each epoch: `mmpipe.data.order.epoch_order`.

    Independent of where rows are stored; rows that are appended never reorder the old ones.

    >>> from mmpipe.data.collate import example_rows
    >>> rows = example_rows()
    >>> {tuple(Shuffle().sequence(rows, seed=0, epoch=epoch).tolist()) for epoch in range(9)} == {(0, 1), (1, 0)}
    True
    """

    def sequence(self, rows: Selection, *, seed: int, epoch: int) -> np.ndarray:
        """int64 `[N]`, a permutation."""
        return epoch_order(rows.hashes, seed, epoch)

    def length(self, rows: Selection) -> int:
        """All rows."""
        return len(rows)

    def identity(self) -> dict[str, Any]:
        """As JSON."""
        return {'sampling': 'shuffle'}
