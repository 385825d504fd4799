"""What a function that trains would train, examined without training it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from mmpipe.data.loader import DataLoader
from mmpipe.diagnosis.examine import doctor
from mmpipe.diagnosis.report import Diagnosis
from mmpipe.diagnosis.step import generators_kept
from mmpipe.errors import ConfigError
from mmpipe.shards import Snapshot
from mmpipe.train.trainer import Trainer


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
    with tempfile.TemporaryDirectory() as runs, _stopped_at_fit():
        try:
            train(snapshot, runs=runs)
        except _Fit as asked:
            found = asked
        else:
            raise ConfigError(
                f'{getattr(train, "__name__", "The function")} ended without mm.Trainer.fit, so there is nothing to '
                f'examine. Call mm.doctor(loader, model) with what you train.'
            )
    with generators_kept(found.loader.device):
        model = found.model() if with_model else None
    return doctor(found.loader, model, tasks=found.tasks, precision=found.trainer.precision, seconds=seconds)


class _Fit(BaseException):
    """Ends a function where it would train; no `except Exception` in it takes it for a failure."""

    def __init__(self, trainer: Trainer, factory: Any, loader: DataLoader, options: Any, tasks: Any) -> None:
        super().__init__('examined instead of trained')
        self.trainer, self.factory, self.loader, self.options, self.tasks = trainer, factory, loader, options, tasks

    def model(self) -> nn.Module:
        """The model, from the factory where that is not one itself."""
        return self.factory if isinstance(self.factory, nn.Module) else self.factory(**(self.options or {}))


@contextmanager
def _stopped_at_fit() -> Iterator[None]:
    def stop(
        self: Trainer, factory: Any, train: DataLoader, *_: Any, args: Any = None, tasks: Any = None, **__: Any
    ) -> None:
        raise _Fit(self, factory, train, args, tasks)

    fit = Trainer.fit
    Trainer.fit = stop  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        Trainer.fit = fit  # type: ignore[method-assign]
