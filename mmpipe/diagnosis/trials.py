"""Settings tried: two loaders run in turns, each with the step, and the fastest turn of each counts.

present   ███───███───███───      samples per second of a turn: the batches that had been made ahead
other     ───███───███───███      before it began are taken first, and do not count
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from mmpipe.data.leases import Leases
from mmpipe.data.loader import DataLoader
from mmpipe.diagnosis.stages import wait_for

TURNS = 3  # of each loader; 2 where there is little time
FEWEST = 2  # batches of a turn that count

Train = Callable[[dict[str, Any]], None]


class Running:
    """A loader that runs in turns, from epoch to epoch without end.

    Args:
        loader: private to this.
        train: what is done with each batch; None for nothing.

    Attributes:
        waited: share of the time of the newest turn that was spent waiting for batches.
    """

    def __init__(self, loader: DataLoader, train: Train | None = None) -> None:
        self.loader, self.train = loader, train
        self.waited = self._waited_s = self._longest = 0.0
        self._samples = 0
        self._batches = self._endless()

    def _endless(self) -> Iterator[dict[str, Any]]:
        while True:
            yield from self.loader

    @property
    def shortest(self) -> int:
        """Batches that a turn takes, besides those that were there."""
        return FEWEST + 2 * self.loader.num_workers

    @property
    def ahead(self) -> int:
        """Batches that may have been made between two turns."""
        workers = self.loader.num_workers
        return workers * self.loader.prefetch_factor if self.loader.prefetch_factor else workers + 2 if workers else 1

    def rate(self, seconds: float) -> float:
        """Samples per second of a turn.

        Args:
            seconds: that it takes, about.
        """
        end, self._longest = time.perf_counter() + seconds, 0.0
        for _ in range(self.ahead):
            self._next(use=False)
        self._until_one_is_late()
        wait_for(self.loader.device)
        start, waited, samples, batches = time.perf_counter(), self._waited_s, self._samples, 0
        while batches < FEWEST or time.perf_counter() < end:
            self._next()
            batches += 1
        self._until_one_is_late()
        wait_for(self.loader.device)
        taken = time.perf_counter() - start
        self.waited = min(1.0, (self._waited_s - waited) / taken)
        return (self._samples - samples) / taken

    def _until_one_is_late(self) -> None:
        """Workers that begin together end together, so batches come in bursts: a turn lasts from one to another."""
        for _ in range(self.loader.num_workers):
            if self._next() >= self._longest / 2:
                return

    def _next(self, *, use: bool = True) -> float:
        """Take a batch; returns the seconds that were waited for it."""
        before = self.loader.waited_s
        batch = next(self._batches)
        waited = self.loader.waited_s
        waited -= before if waited >= before else 0.0  # it begins at 0 in each pass
        self._waited_s += waited
        self._samples += len(batch['_key'])
        self._longest = max(self._longest, waited)
        if use and self.train is not None and len(batch['_key']):
            self.train(batch)
        return waited

    def close(self) -> None:
        """Let its workers go."""
        self._batches.close()  # type: ignore[attr-defined]
        processes = self.loader._processes
        if processes is not None:
            processes.close()


def changed(loader: DataLoader, **settings: Any) -> DataLoader:
    """A loader at epoch 0 with other settings, which shares neither state nor memory with the given one.

    >>> from mmpipe.data.collate import example_rows
    >>> loader = DataLoader(example_rows(), batch_size=1, device='cpu', num_workers=0)
    >>> other = changed(loader, batch_size=2, num_workers=1)
    >>> len(other), other.num_workers, len(loader), loader.num_workers
    (1, 1, 2, 0)
    """
    other = loader.fresh()
    other.batches = copy.copy(loader.batches)
    other.on_transfer = None
    for name, value in settings.items():
        setattr(other.batches if name in ('batch_size', 'global_batch_size') else other, name, value)
    other.pool = Leases(limit_bytes=loader.pool.limit_bytes, pinned=other.pin_memory)
    return other


def gain(
    loader: DataLoader, settings: dict[str, Any], train: Train | None, *, seconds: float, turns: int = TURNS
) -> float:
    """What settings gain: samples per second with them over those without; 0 where memory runs out.

    Args:
        loader: as it is set now.
        settings: what to set otherwise.
        train: the step that uses batches.
        seconds: to take, about.
        turns: of each.
    """
    runs = [Running(changed(loader), train), Running(changed(loader, **settings), train)]
    best = [0.0, 0.0]
    try:
        for _ in range(turns):
            for i, run in enumerate(runs):
                best[i] = max(best[i], run.rate(seconds / (2 * turns)))
    except (torch.OutOfMemoryError, MemoryError):
        return 0.0
    finally:
        for run in runs:
            run.close()
    return best[1] / best[0]
