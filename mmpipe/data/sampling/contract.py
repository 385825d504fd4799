"""What a sampling is: an epoch's rows as one flat sequence of positions, a pure function of (seed, epoch, row keys).

    sequence     [5 2 9 0 7 1 3 8 6 4]      of the whole epoch, for all ranks together
    cut          [5 2 9 0 | 7 1 3 8 | 6 4]  by the loader, for its batch size and world; or by the sampling's own cuts

Batch size, ranks and workers are not in it. So a state is an epoch and how many samples of its sequence are done, and
the rest is cut anew under any other world. Where a sampling does need a size (length buckets), it is a parameter of the
sampling itself and part of its `identity`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from mmpipe.shards.field import Field

if TYPE_CHECKING:
    from collections.abc import Sequence


class Selection(Protocol):
    """What a sampling reads of rows: `mmpipe.shards.Rows`, or `mmpipe.data.many.ManyRows`."""

    def __len__(self) -> int: ...

    @property
    def fields(self) -> Mapping[str, Field]: ...  # noqa: D102

    @property
    def hashes(self) -> np.ndarray: ...  # noqa: D102

    @property
    def keys(self) -> np.ndarray: ...  # noqa: D102

    @property
    def places(self) -> np.ndarray: ...  # noqa: D102

    def read(self, name: str, indices: Any = None) -> tuple[Any, np.ndarray]: ...  # noqa: D102


class Sampling(Protocol):
    """What an epoch visits. Anything with these three methods is one."""

    def sequence(self, rows: Any, *, seed: int, epoch: int) -> np.ndarray:
        """Positions in `rows`, in the order in which the epoch visits them: int64 `[length(rows)]`."""

    def length(self, rows: Any) -> int:
        """Samples in an epoch, the same for every epoch."""

    def identity(self) -> dict[str, Any]:
        """Everything that the sequence depends on besides rows, seed and epoch, as JSON: a state holds it."""


@runtime_checkable
class Cutting(Protocol):
    """A sampling that cuts its sequence itself, because its batches are not of one size."""

    def cuts(self, rows: Any, *, seed: int, epoch: int, start: int = 0, world_size: int = 1) -> np.ndarray:
        """Where the steps from sample `start` on are cut: int64 `[steps, world_size + 1]`.

        In step s, rank r takes `sequence[cuts[s, r]:cuts[s, r + 1]]`; `cuts[s, -1]` samples are done after it.
        """


@dataclass(frozen=True)
class Sampled:
    """Rows together with what an epoch visits of them, for samplings that belong to certain rows.

    Args:
        rows: what is loaded.
        sampling: of these rows.
    """

    rows: Any
    sampling: Sampling


def sequence_digest(rows: Any, sequence: np.ndarray) -> str:
    """Digest of the keys along a sequence: 16 hexadecimal characters.

    Kept in a state, it tells whether the epoch still has the same order: after rows were compacted it has, of every
    sampling but `BlockShuffle`.

    >>> from mmpipe.data.collate import example_rows
    >>> rows = example_rows()
    >>> sequence_digest(rows, np.array([0, 1])) == sequence_digest(rows.take([1, 0]), np.array([1, 0]))
    True
    """
    along = np.ascontiguousarray(rows.hashes[sequence], dtype='<u8')
    return hashlib.blake2b(along.tobytes(), digest_size=8).hexdigest()


def first_few(keys: Sequence[str] | np.ndarray, count: int | None = None) -> str:
    """A few keys for a message.

    Args:
        keys: at least the first three.
        count: how many there are; as many as given when None.

    >>> first_few(['a', 'b', 'c', 'd'])
    "'a', 'b', 'c' and 1 more"
    """
    more = (len(keys) if count is None else count) - 3
    return ', '.join(repr(str(key)) for key in keys[:3]) + (f' and {more:,} more' if more > 0 else '')
