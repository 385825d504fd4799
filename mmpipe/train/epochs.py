"""Which steps each epoch of a training has, and which rows each step has."""

from __future__ import annotations

import bisect
import itertools
import math

from mmpipe.data.loader import DataLoader


class Epochs:
    """Steps counted over all epochs, which may differ in length.

    Args:
        loader: of the training.
        epochs: how often it passes over the rows.
        accumulate: batches of one step; the last step of an epoch may have fewer.
        max_steps: where the training ends at the latest; None for the end of the last epoch.

    Attributes:
        total: steps of the training.
    """

    def __init__(self, loader: DataLoader, *, epochs: int, accumulate: int, max_steps: int | None = None) -> None:
        self.loader, self.accumulate = loader, accumulate
        steps = (math.ceil(loader.batches.count(epoch) / accumulate) for epoch in range(epochs))
        self._begins = [0, *itertools.accumulate(steps)]
        every = self._begins[-1]
        self.total = every if max_steps is None else min(every, max_steps)

    def of(self, step: int) -> int:
        """The epoch that a step (from 0 on) belongs to; behind the last one, how many there are."""
        return bisect.bisect_right(self._begins, step) - 1

    def end(self, epoch: int) -> int:
        """The first step behind an epoch."""
        return self._begins[epoch + 1]

    def samples(self) -> int:
        """Rows that the whole training takes, those of several epochs several times."""
        rows, whole = self.loader.batches.end, self.of(self.total)
        if whole == len(self._begins) - 1:
            return whole * rows
        share = (self.total - self._begins[whole]) / (self.end(whole) - self._begins[whole])
        return whole * rows + math.ceil(share * rows)

    def keys(self, step: int) -> list[str]:
        """Of all rows of a step (from 0 on), on all ranks."""
        epoch = self.of(step)
        at = (step - self._begins[epoch]) * self.accumulate
        micro = itertools.islice(self.loader.batches.global_steps(epoch), at, at + self.accumulate)
        return [key for positions in micro for key in self.loader.rows.keys[positions].tolist()]
