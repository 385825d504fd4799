"""Losses that still lie on the device, and the steps whose loss was not finite."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Read:
    """Losses of some steps in a row.

    Args:
        steps: their numbers.
        losses: of each whole step.
        bad: {step: names of the tasks} whose loss was not finite, or none where only the gradient was not; these steps
            changed nothing.
        by_task: {task: mean over its labelled rows}, of the others together.
    """

    steps: tuple[int, ...]
    losses: tuple[float, ...]
    bad: dict[int, list[str]]
    by_task: dict[str, float]

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
    >>> unread.add(1, torch.tensor([[3.0, 2.0], [1.5, 0.0]])); unread.add(2, torch.tensor([[1.0, 1.0], [1.0, 0.0]]))
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
        values = torch.stack([taken for _, taken in self._taken]).double().cpu()
        self._taken.clear()
        wrong = values[:, -1, 1] > 0
        totals = values[~wrong, :-1].sum(0).tolist()
        by_task = {name: total / count for name, (total, count) in zip(self.names, totals, strict=True) if count}
        finite = values[:, :-1, 0].isfinite().tolist()
        bad = {
            step: [name for name, fine in zip(self.names, finite[i], strict=True) if not fine]
            for i, step in enumerate(steps)
            if wrong[i]
        }
        return Read(steps, tuple(values[:, -1, 0].tolist()), bad, by_task)

    def state(self) -> list[list]:
        """As JSON, for a checkpoint; waits for the device. Of steps that were not finite only that is kept."""
        nothing = [[0.0, 0.0]] * len(self.names) + [[0.0, 1.0]]
        return [[step, nothing if taken[-1, 1] else taken.tolist()] for step, taken in self._taken]

    def load(self, state: list[list], device: torch.device) -> None:
        """What `state` gave."""
        self._taken = [(step, torch.tensor(taken, device=device)) for step, taken in state]
