"""Continued training: all rows that are new since a snapshot, and a share of the old ones against forgetting."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np

from mmpipe.data.sampling.contract import Sampled, Selection
from mmpipe.data.sampling.draws import Source, drawn
from mmpipe.errors import ConfigError, DataError
from mmpipe.shards import Rows, Snapshot

NEW, OLD = 0x6E6577, 0x6F6C64  # salts of the two sources


def since(rows: Rows, *, before: Snapshot, replay: float = 0.2, fields: Iterable[str] | None = None) -> Sampled:
    """The rows, and a sampling that visits those that are new and replays some of the others.

    A row is new when the earlier snapshot has no row of its key, or has it in another split, or when a field that both
    have differs. A field that only the later snapshot has makes no row new.

    Args:
        rows: what is trained on now, such as `snapshot.split('train')`.
        before: the snapshot that was trained on before.
        replay: share of old rows in each epoch, from 0 to below 1.
        fields: only a change in one of these makes a row new; any field when None.

    Returns:
        `Sampled(rows, sampling)`, which a loader takes as it takes rows.

    Raises:
        ConfigError: a share that is not possible.
        DataError: no row is new, or a field that the rows do not have.

    >>> import tempfile
    >>> from mmpipe.shards import Block, Field, write_snapshot
    >>> fields, root = [Field(name='price', kind='scalar', dtype='float32')], tempfile.mkdtemp()
    >>> old = write_snapshot(root, fields, Block(keys=['a', 'b', 'c'], columns={'price': [1.0, 2.0, 3.0]}))
    >>> new = write_snapshot(root, fields, Block(keys=list('abcd'), columns={'price': [1.0, 2.0, 4.0, 5.0]}))
    >>> sampled = since(new.rows(), before=old, replay=1 / 3)
    >>> [sorted(new.rows().keys[sampled.sampling.sequence(new.rows(), seed=0, epoch=epoch)]) for epoch in (0, 1)]
    [['a', 'c', 'd'], ['b', 'c', 'd']]
    """
    chosen = None if fields is None else set(fields)
    unknown = sorted((chosen or set()) - set(rows.fields))
    if unknown:
        raise DataError(
            f'since(fields=...) names {unknown[0]!r}, which snapshot {rows.snapshot.id} has not; it has '
            f'{", ".join(rows.fields)}. Correct the name.'
        )
    found = rows.snapshot.diff(before)
    changed = [keys for name, keys in found.changed.items() if chosen is None or name in chosen]
    new = rows.among('_key', sorted({key for keys in (found.added, found.resplit, *changed) for key in keys}))
    if not new.any():
        raise DataError(
            f'None of the {len(rows):,} rows is new or changed since snapshot {before.id}: there is nothing to '
            f'continue training on. Take a snapshot after new rows have come in, or train on all rows.'
        )
    return Sampled(rows, Since(np.sort(rows.hashes[new]), before=before.id, replay=replay))


@dataclass(frozen=True, eq=False)
class Since:
    """Every new row once, and old ones for a share of the epoch, evenly interleaved.

    Old rows come in passes that go on over epochs, as in `Mixture`, so that each gets its turn. Independent of where
    rows are stored.

    Args:
        new: hashes of the rows that are new, sorted.
        before: id of the earlier snapshot.
        replay: share of the old rows; no old row comes where there is none.
    """

    new: np.ndarray
    _: KW_ONLY
    before: str
    replay: float = 0.2

    def __post_init__(self) -> None:
        if not 0 <= self.replay < 1:
            raise ConfigError(
                f'since(replay={self.replay}): the share of old rows in an epoch is from 0 to below 1, as new rows '
                f'come too.'
            )

    def sequence(self, rows: Selection, *, seed: int, epoch: int) -> np.ndarray:
        """int64 `[length]`."""
        new = self._is_new(rows)
        count, replayed = self._counts(new)
        sources = [Source(NEW, np.flatnonzero(new), count), Source(OLD, np.flatnonzero(~new), replayed)]
        return drawn(rows.hashes, sources, seed=seed, epoch=epoch)

    def length(self, rows: Selection) -> int:
        """New rows, and those replayed."""
        return sum(self._counts(self._is_new(rows)))

    def identity(self) -> dict[str, Any]:
        """As JSON."""
        digest = hashlib.blake2b(np.asarray(self.new, dtype=np.uint64).tobytes(), digest_size=8).hexdigest()
        return {'sampling': 'since', 'before': self.before, 'new': digest, 'replay': self.replay}

    def _is_new(self, rows: Selection) -> np.ndarray:
        at = np.minimum(np.searchsorted(self.new, rows.hashes), max(len(self.new) - 1, 0))
        return self.new[at] == rows.hashes if len(self.new) else np.zeros(len(rows), dtype=bool)

    def _counts(self, new: np.ndarray) -> tuple[int, int]:
        count = int(new.sum())
        return count, round(count * self.replay / (1 - self.replay)) if count < len(new) else 0
