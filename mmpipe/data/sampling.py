"""What an epoch visits: pure functions of (seed, epoch, row keys)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from mmpipe.data.order import epoch_order
from mmpipe.shards import Rows


class Sampling(Protocol):
    """Gives the flat sequence of positions of an epoch; the same on every rank, with no batch size in it."""

    def sequence(self, rows: Rows, *, seed: int, epoch: int) -> np.ndarray: ...  # noqa: D102

    def length(self, rows: Rows) -> int: ...  # noqa: D102

    def identity(self) -> dict[str, Any]: ...  # noqa: D102


@dataclass(frozen=True)
class Shuffle:
    """All rows, in another order each epoch."""

    def sequence(self, rows: Rows, *, seed: int, epoch: int) -> np.ndarray:  # noqa: D102
        return epoch_order(rows.hashes, seed, epoch)

    def length(self, rows: Rows) -> int:  # noqa: D102
        return len(rows)

    def identity(self) -> dict[str, Any]:  # noqa: D102
        return {'sampling': 'shuffle'}


@dataclass(frozen=True)
class Sequential:
    """All rows, as they are stored."""

    def sequence(self, rows: Rows, *, seed: int, epoch: int) -> np.ndarray:  # noqa: D102
        return np.arange(len(rows))

    def length(self, rows: Rows) -> int:  # noqa: D102
        return len(rows)

    def identity(self) -> dict[str, Any]:  # noqa: D102
        return {'sampling': 'sequential'}
