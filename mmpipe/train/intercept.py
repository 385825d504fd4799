"""What a function passes to `mm.Trainer.fit`, found without training it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from mmpipe.data.loader import DataLoader
from mmpipe.errors import ConfigError
from mmpipe.shards import Snapshot
from mmpipe.train.trainer import Trainer


class Fit(BaseException):
    """What was asked of a trainer; ends the function there, and no `except Exception` in it takes it for a failure.

    Args:
        trainer: whose `fit` was called.
        factory: of the model, or the model.
        train: batches to train on.
        val: batches to evaluate on, if any.
        options: arguments of the factory.
        tasks: for a model that has none of its own.
    """

    def __init__(
        self, trainer: Trainer, factory: Any, train: DataLoader, val: DataLoader | None, options: Any, tasks: Any
    ) -> None:
        super().__init__('examined instead of trained')
        self.trainer, self.factory, self.options, self.tasks = trainer, factory, options, tasks
        self.train, self.val = train, val

    def model(self) -> nn.Module:
        """The model, from the factory where that is not one itself."""
        return self.factory if isinstance(self.factory, nn.Module) else self.factory(**(self.options or {}))


def asked_of_trainer(train: Callable[..., Any], snapshot: Snapshot, *, instead: str) -> Fit:
    """Call a function that trains, up to where it would.

    Args:
        train: a pipeline's `training.train`; called with the snapshot, and with a folder for runs that is removed.
        snapshot: to train on.
        instead: what to do where the function does not train, for the message.

    Raises:
        ConfigError: the function does not call `mm.Trainer.fit`.

    >>> from mmpipe.data.collate import example_rows
    >>> from mmpipe.train.example import example_model
    >>> def train(snapshot, *, runs):
    ...     loader = DataLoader(snapshot.split('train'), batch_size=2, device='cpu')
    ...     return Trainer(runs=runs).fit(example_model, loader)
    >>> asked_of_trainer(train, example_rows().snapshot, instead='').train.batch_size
    2
    """
    with tempfile.TemporaryDirectory() as runs, _stopped_at_fit():
        try:
            train(snapshot, runs=runs)
        except Fit as asked:
            return asked
    name = getattr(train, '__name__', 'The function')
    raise ConfigError(f'{name} ended without mm.Trainer.fit, so there is nothing to examine. {instead}')


@contextmanager
def _stopped_at_fit() -> Iterator[None]:
    def stop(
        self: Trainer, factory: Any, train: DataLoader, val: DataLoader | None = None, *_: Any, args: Any = None,
        tasks: Any = None, **__: Any,
    ) -> None:  # fmt: skip
        raise Fit(self, factory, train, val, args, tasks)

    fit = Trainer.fit
    Trainer.fit = stop  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        Trainer.fit = fit  # type: ignore[method-assign]
