"""What a trial is told while its run trains, and how it ends a run that is not worth going on.

Reporting   a callback beside the training     ──  messages  ──►   Listening   beside the study
            stops it where the answer says so  ◄──  prune?  ──                 keeps them in the trial, asks the pruner

In one process the one calls the other; between two, a pipe carries the messages, so only one process writes the study.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from mmpipe.runs import Run
from mmpipe.runs.keep import score_of
from mmpipe.train.callbacks import Callback, StopTraining
from mmpipe.tuning.goals import COSTS, direction
from mmpipe.tuning.memory import begin_peak, peak_bytes

if TYPE_CHECKING:
    import optuna

COSTS_EVERY_S = 1.0  # each time is a write that waits for the disk; a killed process loses no more of them than this

Message = dict[str, Any]
"""Attributes of a trial by their names, and `epoch` with `score` where there is something to report."""


class Reporting(Callback):
    """Tells the metric of each evaluation, and stops the training where the answer says so.

    Args:
        tell: takes a message and says whether to prune.
        goal: what to report; None where Optuna cannot prune, as with several goals.
        number: of the trial.
        costs: seconds and memory of processes that trained it before.
    """

    def __init__(
        self, tell: Callable[[Message], bool], goal: str | None, *, number: int, costs: Mapping[str, float]
    ) -> None:
        self.tell = tell
        self.goal = goal
        self.number = number
        self.before = dict(costs)
        self.pruned = False
        begin_peak()
        self.began = time.monotonic()

    @property
    def costs(self) -> dict[str, float]:
        """Of the trial up to now: seconds over all processes, less what a killed one did after its last evaluation;
        and the most bytes."""
        seconds = self.before.get('seconds', 0.0) + time.monotonic() - self.began
        return {'seconds': seconds, 'memory': max(self.before.get('memory', 0), peak_bytes())}

    def on_start(self, run: Run) -> None:
        """See `Callback.on_start`."""
        self.tell({'run': str(run.path)})

    def on_epoch(self, run: Run, epoch: int, metrics: Mapping[str, Any]) -> None:
        """See `Callback.on_epoch`."""
        message: Message = self.costs
        score = None if self.goal is None else score_of(metrics, self.goal)
        if self.goal is not None and score is not None:
            message |= {'epoch': epoch, 'score': -score if direction(self.goal) == 'minimize' else score}
        if self.tell(message):
            self.pruned = True
            raise StopTraining(f'trial {self.number} is pruned after epoch {epoch}')


class Listening:
    """Keeps what is told of a trial, as attributes of it and as its intermediate values.

    Args:
        trial: running.
    """

    def __init__(self, trial: optuna.Trial) -> None:
        self.trial = trial
        self.known = set(trial.study._storage.get_trial(trial._trial_id).intermediate_values)
        self.costs_kept_at = -math.inf

    def __call__(self, message: Message) -> bool:
        """Take a message.

        Returns:
            Whether the trial is to end as pruned, which is then one of its attributes.
        """
        kept = message.keys() - {'epoch', 'score'}
        if not kept.isdisjoint(COSTS):
            if time.monotonic() - self.costs_kept_at < COSTS_EVERY_S:
                kept -= set(COSTS)
            else:
                self.costs_kept_at = time.monotonic()
        for name in kept:
            self.trial.set_user_attr(name, message[name])
        if 'epoch' not in message:
            return False
        epoch = message['epoch']
        if epoch not in self.known:  # else an earlier process told it, and was killed before its next checkpoint
            self.trial.report(message['score'], epoch)
            self.known.add(epoch)
        if not self.trial.should_prune():
            return False
        self.trial.set_user_attr('pruned', True)
        return True
