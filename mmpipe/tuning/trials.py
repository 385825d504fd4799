"""One trial: what it is to train, the training, and what came of it. Knows no study, so any process can do it."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmpipe.errors import ConfigError
from mmpipe.runs import Run
from mmpipe.train.trainer import Trainer
from mmpipe.tuning.goals import COSTS, value_of
from mmpipe.tuning.pruning import Message, Reporting

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Job:
    """A trial to train.

    Args:
        number: of the trial.
        folder: of its runs.
        values: drawn, by name.
        costs: seconds and memory of processes that trained it before.
    """

    number: int
    folder: Path
    values: Mapping[str, Any]
    costs: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a trial.

    Args:
        notes: attributes to keep with it.
        values: of the goals; None where it was pruned or failed.
        cause: why it failed.
    """

    notes: Mapping[str, Any]
    values: tuple[float, ...] | None = None
    cause: str | None = None


def train_trial(
    job: Job, fit: Callable[..., Run], base: Trainer, goals: Sequence[str], tell: Callable[[Message], bool]
) -> Outcome:
    """Train a trial.

    Args:
        job: to do.
        fit: as for `mm.tune`.
        base: trainer that the values are put into.
        goals: what to measure.
        tell: as for `Reporting`.

    Returns:
        What came of it; an exception of `fit` is the cause, and only what ends a process is raised.
    """
    fields = {field.name for field in dataclasses.fields(Trainer)}
    goal = goals[0] if len(goals) == 1 and goals[0] not in COSTS else None
    reporting = Reporting(tell, goal, number=job.number, costs=job.costs)
    try:
        trainer = dataclasses.replace(
            base,
            runs=job.folder,
            callbacks=[*base.callbacks, reporting],
            **{name: value for name, value in job.values.items() if name in fields},
        )
        run = fit(trainer, **{name: value for name, value in job.values.items() if name not in fields})
        if not isinstance(run, Run):
            raise ConfigError(f'The function gave {run!r}: return the run of trainer.fit.')
        costs = reporting.costs
        notes = {**costs, 'run': str(run.path)}
        if reporting.pruned:
            return Outcome(notes={**notes, 'pruned': True})
        return Outcome(notes=notes, values=tuple(value_of(goal, run, costs=costs) for goal in goals))
    except Exception as error:  # noqa: BLE001  whatever it is, it is this trial's, and is kept with it
        cause = f'{type(error).__name__}: {error}'
        _log.warning('trial %d failed: %s', job.number, cause)
        return Outcome(notes={**reporting.costs, 'error': cause}, cause=cause)
