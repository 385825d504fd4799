"""Losses and metrics in TensorBoard."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmpipe.errors import require
from mmpipe.runs import Run
from mmpipe.runs.table import measured
from mmpipe.train.callbacks import Callback


@dataclass
class TensorBoard(Callback):
    """Writes event files that `tensorboard --logdir` shows: `loss/<task>` by step, `val/<task>/<metric>` by epoch.

    A run that goes on from a checkpoint replaces what was written after it.

    Args:
        folder: of the event files, one folder per run in it; `tensorboard` in the run's own folder when None.

    Raises:
        MissingExtraError: tensorboard is not installed.

    >>> TensorBoard().folder is None
    True
    """

    folder: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        require('track', 'tensorboard', why='mmpipe.train.TensorBoard')
        if self.folder is not None:
            self.folder = os.fspath(self.folder)  # so that a run can say how it was made
        self._writer: Any = None
        self._step = 0

    def on_start(self, run: Run) -> None:
        """See `Callback.on_start`."""
        from torch.utils.tensorboard import SummaryWriter

        folder = run.path / 'tensorboard' if self.folder is None else Path(self.folder) / run.id
        checkpoint = run.newest_checkpoint()
        self._step = 0 if checkpoint is None else int(checkpoint.name)
        # TensorBoard leaves out what older files say from this step on.
        self._writer = SummaryWriter(folder, purge_step=self._step + 1)

    def on_losses(self, run: Run, step: int, losses: Mapping[str, float]) -> None:
        """See `Callback.on_losses`."""
        self._step = step
        for task, loss in losses.items():
            self._writer.add_scalar(f'loss/{task}', loss, step)

    def on_epoch(self, run: Run, epoch: int, metrics: Mapping[str, Any]) -> None:
        """See `Callback.on_epoch`; by step as losses are, so that both lie on one axis."""
        for task, scores in metrics.items():
            for name, value in measured(scores).items():
                self._writer.add_scalar(f'val/{task}/{name}', value, self._step)
        self._writer.flush()

    def on_end(self, run: Run) -> None:
        """See `Callback.on_end`."""
        self._writer.close()
