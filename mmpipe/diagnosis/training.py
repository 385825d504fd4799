"""What a function that trains would train, examined without training it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mmpipe.diagnosis.examine import doctor
from mmpipe.diagnosis.report import Diagnosis
from mmpipe.diagnosis.step import generators_kept
from mmpipe.shards import Snapshot
from mmpipe.train.intercept import asked_of_trainer


def doctor_training(
    train: Callable[..., Any], snapshot: Snapshot, *, with_model: bool = True, seconds: float = 10.0
) -> Diagnosis:
    """Examine the loader and the model that a function passes to `mm.Trainer.fit`; it ends there.

    Args:
        train: a pipeline's `training.train`; called with the snapshot, and with a folder for runs that is removed.
        snapshot: to train on.
        with_model: False to examine the loading alone.
        seconds: as in `doctor`.

    Returns:
        As `doctor`.

    Raises:
        ConfigError: the function does not call `mm.Trainer.fit`; and as `doctor`.

    >>> from mmpipe.data.collate import example_rows
    >>> import mmpipe as mm
    >>> def train(snapshot, *, runs):
    ...     model = mm.MultitaskModel(
    ...         encoders={'price': mm.encoders.vector(1, 4)}, tasks=[mm.classification('kind', ['cat', 'dog'])]
    ...     )
    ...     return mm.Trainer(runs=runs).fit(model, mm.DataLoader(snapshot.split('train'), batch_size=2, device='cpu'))
    >>> doctor_training(train, example_rows().snapshot, seconds=0.1).stages[-1].name
    'compute'
    """
    asked = asked_of_trainer(train, snapshot, instead='Call mm.doctor(loader, model) with what you train.')
    with generators_kept(asked.train.device):
        model = asked.model() if with_model else None
    return doctor(asked.train, model, tasks=asked.tasks, precision=asked.trainer.precision, seconds=seconds)
