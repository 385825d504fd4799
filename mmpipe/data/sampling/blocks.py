"""Shuffling with reads from a few shards at a time, for object stores; and how well an order is mixed."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np

from mmpipe.data.order import epoch_order, mix, priorities, splitmix64
from mmpipe.data.sampling.contract import Selection
from mmpipe.errors import ConfigError

BLOCKS = 0x626C6F63  # keeps the order of blocks apart from that of rows


@dataclass(frozen=True)
class BlockShuffle:
    """Blocks in a new order each epoch, a few at a time, and their rows shuffled together.

        blocks, shuffled     4 1 | 0 3 | 2        window=2
        rows                 4c 1a 4a 1b | 3b 0a 0c 3a 0b | 2b 2a

    A block is what was written at one time (up to 64 MB of values, `mmpipe.shards.writer.BLOCK_BYTES`), or what
    compaction made of many. So the order depends on where rows are stored: after `compact` an epoch has another one,
    and a state does not fit any more. How well it mixes is measured by `mixing`: rows of one batch come from `window`
    blocks. Where the rows were stored in no particular order of their labels, that is as good as a full shuffle.

    Args:
        window: blocks that are read at a time; a local cache of so many shards per field fetches each once.

    Raises:
        ConfigError: a window below 1.

    >>> from mmpipe.data.collate import example_rows
    >>> sorted(BlockShuffle(window=4).sequence(example_rows(), seed=0, epoch=0).tolist())
    [0, 1]
    """

    _: KW_ONLY
    window: int = 16

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ConfigError(f'BlockShuffle(window={self.window}): at least 1 block is read at a time.')

    def sequence(self, rows: Selection, *, seed: int, epoch: int) -> np.ndarray:
        """int64 `[N]`, a permutation."""
        blocks, number = np.unique(rows.places[:, 0], return_inverse=True)
        place = np.empty(len(blocks), dtype=np.int64)
        hashes = splitmix64(blocks.astype(np.uint64))
        place[epoch_order(hashes, mix(BLOCKS, seed), epoch)] = np.arange(len(blocks))
        return np.lexsort((priorities(rows.hashes, seed, epoch), place[number] // self.window))

    def length(self, rows: Selection) -> int:
        """All rows."""
        return len(rows)

    def identity(self) -> dict[str, Any]:
        """As JSON; the places of the rows are not in it."""
        return {'sampling': 'block_shuffle', 'window': self.window}


@dataclass(frozen=True)
class Mixing:
    """How often two rows of one batch are of one group.

    Args:
        same: the share of pairs within batches that are.
        same_if_shuffled: what it is expected to be after a full shuffle.
    """

    same: float
    same_if_shuffled: float

    @property
    def quality(self) -> float:
        """1 for a full shuffle (a little more or less by chance), 0 where each batch holds one group alone."""
        return (1 - self.same) / (1 - self.same_if_shuffled) if self.same_if_shuffled < 1 else 1.0


def mixing(groups: np.ndarray, sequence: np.ndarray, *, batch_size: int) -> Mixing:
    """How well batches mix rows of different groups, such as blocks (`rows.places[:, 0]`) or labels.

    The measure is Simpson's: the chance that two different rows of a batch are of one group. Its expectation after a
    full shuffle is the same of all rows, exactly, so nothing has to be simulated. Source: Simpson, "Measurement of
    diversity", Nature 163, 1949.

    Args:
        groups: `[N]`, the group of each row.
        sequence: positions in the order visited; a last batch that is not full is left out.
        batch_size: rows per batch, at least 2.

    Returns:
        The shares; `Mixing.quality` sets them in relation.

    >>> labels = np.repeat([0, 1], 500)
    >>> round(mixing(labels, np.arange(1000), batch_size=50).quality, 2)    # as stored
    0.0
    >>> hashes = np.arange(1000, dtype=np.uint64)
    >>> round(mixing(labels, epoch_order(hashes, 0, 0), batch_size=50).quality, 1)
    1.0
    """
    if batch_size < 2 or len(sequence) < batch_size:
        raise ConfigError(
            f'mixing(batch_size={batch_size}) of {len(sequence)} samples: pairs within full batches are counted, so '
            f'give a size of at least 2, and at most the samples.'
        )
    names, number = np.unique(groups, return_inverse=True)
    count = len(sequence) // batch_size
    batch = np.repeat(np.arange(count), batch_size)
    _, inside = np.unique(batch * len(names) + number[sequence[: len(batch)]], return_counts=True)
    overall = np.bincount(number[sequence])
    return Mixing(
        same=float((inside * (inside - 1)).sum() / (count * batch_size * (batch_size - 1))),
        same_if_shuffled=float((overall * (overall - 1)).sum() / (len(sequence) * (len(sequence) - 1))),
    )
