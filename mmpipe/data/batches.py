"""The steps of an epoch: a flat sequence of positions, cut into global batches, of which each rank takes its part.

    sequence        [5 2 9 0 | 7 1 3 8 | 6 4]          the same on every rank; no batch size in it
    rank 0 of 2      5 2       7 1       6
    rank 1               9 0       3 8     4           uneven where the world does not divide a batch
                                           4 5         with pad_last, whose fillers count as missing

A state is an epoch and how many samples of its sequence were consumed. So it loads under any other world, batch size or
number of workers: the rest of the sequence is cut anew.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from mmpipe.data.order import rank_slice, repeats_of
from mmpipe.data.ranks import world
from mmpipe.data.sampling import Cutting, Sampling, sequence_digest
from mmpipe.errors import ConfigError


@dataclass(frozen=True)
class Step:
    """One rank's part of one global batch.

    Args:
        positions: int64 `[B]` in the rows; empty when there are fewer rows than ranks.
        padded: how many of the last of them only fill the batch.
        consumed: samples of the epoch's sequence that are done after this step, on all ranks together.
        repeats: int64 `[B]`, how often each of them came before in the epoch; None where none comes twice.
    """

    positions: np.ndarray
    padded: int
    consumed: int
    repeats: np.ndarray | None = None


class EpochBatches:
    """Cuts epochs into steps.

    Args:
        rows: what is loaded, the same on every rank.
        sampling: gives the sequence of an epoch.
        batch_size: rows per batch on one rank; None where `global_batch_size` is given.
        global_batch_size: rows per step over all ranks.
        seed: of the order.
        drop_last: leave out a last global batch that is not full.
        pad_last: fill it with the first samples of the epoch.

    Raises:
        ConfigError: not exactly one batch size, one below 1, or both ways to treat the last batch.

    >>> from mmpipe.data.collate import example_rows
    >>> from mmpipe.data.sampling import Sequential
    >>> batches = EpochBatches(example_rows(), sampling=Sequential(), batch_size=1)
    >>> [(step.positions.tolist(), step.consumed) for step in batches.steps(0)]
    [([0], 1), ([1], 2)]
    """

    def __init__(
        self,
        rows: Any,
        *,
        sampling: Sampling,
        batch_size: int | None = None,
        global_batch_size: int | None = None,
        seed: int = 0,
        drop_last: bool = False,
        pad_last: bool = False,
    ) -> None:
        size = global_batch_size if batch_size is None else batch_size
        if isinstance(sampling, Cutting):
            if size is not None or drop_last or pad_last:
                raise ConfigError(
                    f'{type(sampling).__name__} cuts batches itself: leave out batch_size, global_batch_size, '
                    f'drop_last and pad_last.'
                )
        elif (batch_size is None) == (global_batch_size is None) or size is None or size < 1:
            raise ConfigError(
                f'DataLoader(batch_size={batch_size}, global_batch_size={global_batch_size}): give one of the two, '
                f'rows per rank or rows over all ranks, of at least 1.'
            )
        if drop_last and pad_last:
            raise ConfigError('drop_last and pad_last are two ways to treat the last batch: give one of them.')
        self.rows = rows
        self.sampling = sampling
        self.batch_size, self.global_batch_size = batch_size, global_batch_size
        self.seed = seed
        self.drop_last, self.pad_last = drop_last, pad_last
        self._kept: tuple[int, np.ndarray] | None = None
        self._digest: tuple[int, str] | None = None
        self._cuts: tuple[tuple[int, int], np.ndarray] | None = None

    def reseeded(self, seed: int) -> EpochBatches:
        """The same of another seed."""
        other = copy.copy(self)
        other.seed, other._kept, other._digest, other._cuts = seed, None, None, None
        return other

    @property
    def global_batch(self) -> int:
        """Rows that one step takes over all ranks; 0 where the sampling cuts batches of several sizes."""
        return self.global_batch_size or (self.batch_size or 0) * world()[1]

    @cached_property
    def samples(self) -> int:
        """Samples in the sequence of an epoch."""
        return self.sampling.length(self.rows)

    @property
    def end(self) -> int:
        """Samples of the sequence that an epoch visits: all, or those of full batches."""
        return self.samples - self.dropped

    @property
    def dropped(self) -> int:
        """Samples at the end of an epoch that `drop_last` leaves out."""
        return self.samples % self.global_batch if self.drop_last else 0

    @property
    def padded(self) -> int:
        """Samples that `pad_last` adds at the end of an epoch."""
        return -self.samples % self.global_batch if self.pad_last else 0

    def __len__(self) -> int:
        return self.count(0)

    def count(self, epoch: int) -> int:
        """Steps in an epoch; where the sampling cuts them, epochs can differ."""
        if isinstance(self.sampling, Cutting):
            return len(self._whole_cuts(self.sampling, epoch))
        return math.ceil(self.end / self.global_batch)

    def sequence(self, epoch: int) -> np.ndarray:
        """int64 positions of a whole epoch, in order, for all ranks."""
        if self._kept is None or self._kept[0] != epoch:
            self._kept = epoch, self.sampling.sequence(self.rows, seed=self.seed, epoch=epoch)
        return self._kept[1]

    def digest(self, epoch: int) -> str:
        """Of the keys of an epoch in their order: a state made in the middle of it fits no other."""
        if self._digest is None or self._digest[0] != epoch:
            self._digest = epoch, sequence_digest(self.rows, self.sequence(epoch))
        return self._digest[1]

    def _whole_cuts(self, sampling: Cutting, epoch: int) -> np.ndarray:
        what = epoch, world()[1]
        if self._cuts is None or self._cuts[0] != what:
            self._cuts = what, sampling.cuts(self.rows, seed=self.seed, epoch=epoch, world_size=what[1])
        return self._cuts[1]

    def steps(self, epoch: int, start: int = 0) -> Iterator[Step]:
        """The steps of this rank.

        Args:
            epoch: from 0.
            start: samples of its sequence that are done already.
        """
        rank, world_size = world()
        sequence, size = self.sequence(epoch), self.global_batch
        repeats = repeats_of(sequence)
        if isinstance(self.sampling, Cutting):
            cuts = self._whole_cuts(self.sampling, epoch)
            if start:
                cuts = self.sampling.cuts(self.rows, seed=self.seed, epoch=epoch, start=start, world_size=world_size)
            for bounds in cuts.tolist():
                part = slice(bounds[rank], bounds[rank + 1])
                yield Step(sequence[part], 0, bounds[-1], None if repeats is None else repeats[part])
            return
        for at in range(start, self.end, size):
            stop = min(at + size, self.end)
            step, fillers = sequence[at:stop], 0
            if self.pad_last and stop - at < size:
                fillers = size - (stop - at)
                step = np.concatenate([step, np.resize(sequence, fillers)])
            mine = rank_slice(len(step), rank, world_size)
            padded = max(0, min(mine.stop - (len(step) - fillers), mine.stop - mine.start))
            again = None if repeats is None else np.concatenate([repeats[at:stop], np.zeros(fillers, np.int64)])[mine]
            yield Step(step[mine], padded, stop, again)

    def least(self) -> int:
        """The fewest rows that a rank gets in a step of the first epoch: 0 where a step is too small for all ranks."""
        if isinstance(self.sampling, Cutting):
            return int(np.diff(self._whole_cuts(self.sampling, 0), axis=1).min(initial=self.samples))
        last = self.end % self.global_batch
        return (self.global_batch if self.pad_last or not last else last) // world()[1]

    def global_steps(self, epoch: int) -> Iterator[np.ndarray]:
        """Positions that each step of an epoch visits, on all ranks together, without what only fills the last one.

        Args:
            epoch: from 0.
        """
        sequence = self.sequence(epoch)
        if isinstance(self.sampling, Cutting):
            for bounds in self._whole_cuts(self.sampling, epoch).tolist():
                yield sequence[bounds[0] : bounds[-1]]
            return
        for at in range(0, self.end, self.global_batch):
            yield sequence[at : min(at + self.global_batch, self.end)]
