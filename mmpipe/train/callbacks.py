"""What a program of its own can be told while a model trains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmpipe.runs import Run


class Callback:
    """Called by the trainer, on rank 0; derive from it, and write the methods that are wanted.

    A callback sees and does not change: what decides how a step goes belongs into the configuration, which the run
    records. What it raises ends the training as Ctrl-C does, with a checkpoint, but for `StopTraining`, which ends it
    as finished.

    >>> class Printing(Callback):
    ...     def on_epoch(self, run, epoch, metrics):
    ...         print(epoch, metrics)
    """

    def on_start(self, run: Run) -> None:
        """Training begins, or goes on.

        Args:
            run: what is trained.
        """

    def on_losses(self, run: Run, step: int, losses: Mapping[str, float]) -> None:
        """Losses were read from the device, which is every `log_every` steps.

        Args:
            run: what is trained.
            step: optimizer steps taken.
            losses: mean of each task over its labelled rows since the last time; tasks without any are left out.
        """

    def on_epoch(self, run: Run, epoch: int, metrics: Mapping[str, Any]) -> None:
        """An epoch has ended.

        Args:
            run: what is trained.
            epoch: from 0.
            metrics: of the validation rows as `mm.evaluate` gives them; empty where there was no evaluation.
        """

    def on_end(self, run: Run) -> None:
        """Training has ended as finished.

        Args:
            run: as it is recorded.
        """


class StopTraining(Exception):
    """Raised by a callback: enough. The running step ends and is saved, and the run counts as finished."""
