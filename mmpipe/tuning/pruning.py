"""What a trial is told while its run trains, and how it ends a run that is not worth going on."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mmpipe.runs import Run
from mmpipe.runs.keep import score_of
from mmpipe.train.callbacks import Callback, StopTraining
from mmpipe.tuning.goals import direction

if TYPE_CHECKING:
    import optuna


class Reporting(Callback):
    """Reports the metric of each evaluation to a trial, and stops the training where its pruner says so.

    The trial keeps, as attributes of its own: `run`, the folder; `seconds`, over all processes that trained it, less
    what they did between an evaluation and their end; `pruned`, that it is to end as such.

    Args:
        trial: running.
        goal: what to report; None where Optuna cannot prune, as with several goals.
    """

    def __init__(self, trial: optuna.Trial, goal: str | None) -> None:
        self.trial = trial
        self.goal = goal
        self.known = set(trial.study._storage.get_trial(trial._trial_id).intermediate_values)
        self.before = float(trial.user_attrs.get('seconds', 0.0))
        self.began = time.monotonic()

    @property
    def seconds(self) -> float:
        """Of the trial up to now."""
        return self.before + time.monotonic() - self.began

    def on_start(self, run: Run) -> None:
        """See `Callback.on_start`."""
        self.trial.set_user_attr('run', str(run.path))

    def on_epoch(self, run: Run, epoch: int, metrics: Mapping[str, Any]) -> None:
        """See `Callback.on_epoch`."""
        self.trial.set_user_attr('seconds', self.seconds)
        score = None if self.goal is None else score_of(metrics, self.goal)
        if self.goal is None or score is None:
            return
        if epoch not in self.known:  # else an earlier process reported it, and was killed before its next checkpoint
            worse = direction(self.goal) == 'minimize'
            self.trial.report(-score if worse else score, epoch)
            self.known.add(epoch)
        if self.trial.should_prune():
            self.trial.set_user_attr('pruned', True)
            raise StopTraining(f'trial {self.trial.number} is pruned after epoch {epoch}')
