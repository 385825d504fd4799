"""A study while it is searched: which trial comes next, with which values, and how each ended."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmpipe.errors import TrainError
from mmpipe.tuning.space import Space
from mmpipe.tuning.studies import left_behind
from mmpipe.tuning.trials import Job, Outcome

if TYPE_CHECKING:
    import optuna

_log = logging.getLogger(__name__)

LIVES = 2
"""So many processes may be lost over a trial: one can be bad luck, of two the trial is the likelier cause."""


class Search:
    """Asks a study for trials and tells it what came of them; the only thing that does, so it wants one thread.

    Args:
        study: whose folder this process holds.
        space: what to draw.
        folder: of the study; the runs of trial 3 are in `trials/0003` of it.
        count: how many trials the study is to have.
        place: as `place_of_trials` gives it.
        progress: called with ('tune', trials that ended, count, 'trials').
    """

    def __init__(
        self,
        study: optuna.Study,
        space: Space,
        *,
        folder: Path,
        count: int,
        place: str,
        progress: Callable[[str, int, int, str], None] | None = None,
    ) -> None:
        self.study = study
        self.space = space
        self.folder = folder
        self.count = count
        self.place = place
        self.progress = progress
        self.waiting = left_behind(study, place)
        self.enough = False
        self.ended = 0
        self.causes: list[str] = []

    def next(self) -> tuple[optuna.Trial, Job] | None:
        """The next trial and what it is to train: first those that were left behind, then new ones; None for no more.

        A new trial gets its values here, in the process that keeps the study: one sampler with one seed draws for all.
        """
        while not self.enough:
            if self.waiting:
                trial = self.waiting.pop(0)
            elif len(self.study.get_trials(deepcopy=False)) < self.count:
                trial = self.study.ask()
                trial.set_user_attr('place', self.place)
            else:
                return None
            values = {name: each.drawn(trial, name) for name, each in self.space.items()}
            if trial.user_attrs.get('pruned'):  # only the telling was missed
                self.finish(trial, Outcome(notes={}))
                continue
            costs = {name: float(trial.user_attrs.get(name, 0)) for name in ('seconds', 'memory')}
            folder = self.folder / 'trials' / f'{trial.number:04d}'
            return trial, Job(number=trial.number, folder=folder, values=values, costs=costs)
        return None

    def lost(self, trial: optuna.Trial, how: str) -> None:
        """The process of a trial has gone: another goes on with it, unless that happened before.

        Args:
            trial: running.
            how: it went, to end a sentence with.
        """
        import optuna

        times = trial.user_attrs.get('lost', 0) + 1
        trial.set_user_attr('lost', times)
        if times < LIVES:
            _log.warning('trial %d: its process %s; another one goes on with it', trial.number, how)
            self.waiting.append(optuna.Trial(self.study, trial._trial_id))
            return
        cause = f'its process {how}, and so did the {times - 1} before it'
        _log.warning('trial %d failed: %s', trial.number, cause)
        self.finish(trial, Outcome(notes={'error': cause}, cause=cause))

    def finish(self, trial: optuna.Trial, outcome: Outcome) -> None:
        """Keep what came of a trial, and tell the study."""
        from optuna.trial import TrialState

        for name, note in outcome.notes.items():
            trial.set_user_attr(name, note)
        if outcome.cause is not None:
            self.causes.append(outcome.cause)
            self._tell(trial, state=TrialState.FAIL)
        elif outcome.values is None:
            self._tell(trial, state=TrialState.PRUNED)
        else:
            self._tell(trial, list(outcome.values))
        self.ended += 1
        if self.progress is not None:
            done = sum(each.state.is_finished() for each in self.study.get_trials(deepcopy=False))
            self.progress('tune', done, max(self.count, done), 'trials')

    def check(self) -> None:
        """See whether any trial came to something.

        Raises:
            TrainError: all of this call failed.
        """
        if self.causes and len(self.causes) == self.ended:
            raise TrainError(
                f'All {self.ended} trials of study {self.study.study_name!r} failed; the first with {self.causes[0]}'
            )

    def _tell(self, trial: optuna.Trial, values: Sequence[float] | None = None, **state: Any) -> None:
        """Tell the study how a trial ended, and note whether the sampler asks to stop, as a grid does after its last
        point: outside of `Study.optimize`, which would record a trial that Ctrl-C ended as failed, Optuna raises then,
        with the trial told."""
        try:
            self.study.tell(trial, values, **state)
        except RuntimeError as error:
            if 'Study.stop' not in str(error) or not self.study._storage.get_trial(trial._trial_id).state.is_finished():
                raise
            self.enough = True
