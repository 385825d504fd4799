"""Losses that still lie on the device, and the steps whose loss was not finite."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Read:
    """Losses of some steps in a row.

    Args:
        steps: their numbers.
        losses: of each whole step.
        bad: {step: names of the tasks} whose loss was not finite, or none where only the gradient was not; these steps
            changed nothing.
        sums: {task: (sum of its losses, labelled rows)}, of the others together.
    """

    steps: tuple[int, ...]
    losses: tuple[float, ...]
    bad: dict[int, list[str]]
    sums: dict[str, tuple[float, float]]

    @property
    def by_task(self) -> dict[str, float]:
        """Mean over the labelled rows of each task, of the steps that counted."""
        return {name: total / count for name, (total, count) in self.sums.items() if count}

    @property
    def mean(self) -> float | None:
        """Mean loss of the steps that counted."""
        good = [loss for step, loss in zip(self.steps, self.losses, strict=True) if step not in self.bad]
        return sum(good) / len(good) if good else None


class Unread:
    """Collects what `Stepper` returns, until it is worth waiting for the device.

    Args:
        names: of the tasks.

    >>> unread = Unread(['price'])
    >>> unread.add(1, torch.tensor([3.0, 2.0, 1.5])); unread.add(2, torch.tensor([1.0, 1.0, 1.0]))
    >>> read = unread.read(); read.mean, read.by_task, len(unread)
    (1.25, {'price': 1.3333333333333333}, 0)
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)
        self._taken: list[tuple[int, torch.Tensor]] = []

    def __len__(self) -> int:
        return len(self._taken)

    def add(self, step: int, taken: torch.Tensor) -> None:
        """Keep what a step returned, where it is."""
        self._taken.append((step, taken))

    def read(self) -> Read:
        """All of it, and forget it; waits for the device."""
        if not self._taken:
            return Read((), (), {}, {})
        steps = tuple(step for step, _ in self._taken)
        values = torch.stack([taken for _, taken in self._taken]).cpu().numpy().astype(np.float64)
        self._taken.clear()
        whole, by_task = values[:, -1], values[:, :-1].reshape(len(values), -1, 2)
        fine = np.isfinite(whole)
        sums = by_task[fine].sum(axis=0).tolist()
        bad = {
            steps[i]: [name for name, loss in zip(self.names, by_task[i, :, 0], strict=True) if not np.isfinite(loss)]
            for i in np.flatnonzero(~fine).tolist()
        }
        return Read(
            steps, tuple(whole.tolist()), bad, {name: tuple(each) for name, each in zip(self.names, sums, strict=True)}
        )

    def state(self) -> list[list]:
        """As JSON, for a checkpoint; waits for the device. Of steps that were not finite only that is kept."""
        return [[step, taken.tolist() if torch.isfinite(taken[-1]) else None] for step, taken in self._taken]

    def load(self, state: list[list], device: torch.device) -> None:
        """What `state` gave."""
        bad = [0.0] * (2 * len(self.names)) + [math.nan]
        self._taken = [(step, torch.tensor(bad if taken is None else taken, device=device)) for step, taken in state]
