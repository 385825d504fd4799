"""What is optimised: a metric of the validation rows, the seconds that a trial took, or its peak memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from mmpipe.errors import ConfigError, RunError
from mmpipe.runs import Run
from mmpipe.runs.keep import LOWER_IS_BETTER

SECONDS, MEMORY = 'seconds', 'memory'
COSTS = (SECONDS, MEMORY)
"""Goals that are no metric of a task; lower is better."""


def check_goals(metrics: str | Sequence[str]) -> tuple[str, ...]:
    """Goals as a tuple of names.

    Args:
        metrics: 'task.metric', with a `-` before it where less is better and the name does not tell; 'seconds';
            'memory' (see `mmpipe.tuning.memory`); or several of them.

    Raises:
        ConfigError: none, one twice, or a name without a task.

    >>> check_goals(['kind.accuracy', 'seconds'])
    ('kind.accuracy', 'seconds')
    """
    goals = (metrics,) if isinstance(metrics, str) else tuple(metrics)
    wrong = [goal for goal in goals if goal not in COSTS and not all(goal.removeprefix('-').rpartition('.'))]
    if wrong or not goals or len(set(goals)) < len(goals):
        raise ConfigError(
            f"metric={metrics!r}: 'task.metric', 'seconds' or 'memory' is meant, or several different ones."
        )
    return goals


def direction(goal: str) -> Literal['minimize', 'maximize']:
    """Optuna's name of the better direction.

    >>> direction('kind.accuracy'), direction('price.rmse'), direction('-kind.ece'), direction('seconds')
    ('maximize', 'minimize', 'minimize', 'minimize')
    """
    lower = goal in COSTS or goal.startswith('-') or goal.rpartition('.')[2] in LOWER_IS_BETTER
    return 'minimize' if lower else 'maximize'


def value_of(goal: str, run: Run, *, costs: Mapping[str, float]) -> float:
    """The value of a goal.

    Args:
        goal: as `check_goals` gives it.
        run: finished.
        costs: {'seconds': that the trial took, 'memory': bytes}.

    Raises:
        RunError: the run was not measured by it, or its value is not finite.
    """
    if goal in COSTS:
        return costs[goal]
    task, _, metric = goal.removeprefix('-').rpartition('.')
    value = run.metrics.get(task, {}).get(metric)
    if value is None:
        known = [
            f'{task}.{name}' for task, scores in run.metrics.items() for name, at in scores.items() if at is not None
        ]
        raise RunError(
            f'Run {run.id} has no value of {goal!r}; it has {", ".join(known) or "no metrics: give fit val rows"}.'
        )
    return float(value)
