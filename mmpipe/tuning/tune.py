"""The search itself: ask Optuna for values, train, tell it what came of them."""

from __future__ import annotations

import dataclasses
import logging
import os
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmpipe.errors import ConfigError, TrainError, require
from mmpipe.home import runs_dir
from mmpipe.runs import Run
from mmpipe.train.trainer import Trainer
from mmpipe.tuning.goals import check_goals, direction, value_of
from mmpipe.tuning.pruning import Reporting
from mmpipe.tuning.space import Space, check_space
from mmpipe.tuning.studies import check_study, held, journal, left_behind, place_of_trials

if TYPE_CHECKING:
    import optuna

_log = logging.getLogger(__name__)


def tune(
    fit: Callable[..., Run],
    *,
    space: Space,
    metric: str | Sequence[str],
    trials: int = 20,
    trainer: Trainer | None = None,
    name: str = 'tuning',
    storage: str | optuna.storages.BaseStorage | None = None,
    sampler: optuna.samplers.BaseSampler | None = None,
    pruner: optuna.pruners.BasePruner | None = None,
    study: optuna.Study | None = None,
    runs: str | os.PathLike[str] | None = None,
    seed: int = 0,
) -> optuna.Study:
    """Search settings of a trainer and arguments of a function, one trial after another.

    Called again, it goes on: trials that ended stay, and one that a kill or Ctrl-C left goes on under its number, from
    its checkpoint where `fit` passes `resume='auto'`. A trial that raises is recorded as failed, with its cause in
    `trial.user_attrs['error']`, and the search goes on.

    Args:
        fit: `fit(trainer, **arguments)` trains with that trainer and gives the run. The trainer has the values of its
            fields, the callbacks that report and prune, and a folder of runs of the trial's own.
        space: {field of `Trainer`, or argument of `fit`: `Float`, `Int` or `Choice` of mmpipe.tuning}.
        metric: 'task.metric' of the validation rows, or 'seconds', or several. Losses, `mae`, `rmse` and seconds are
            better where they are lower; any other with a `-` before it.
        trials: how many the study is to have at the end, whatever became of them.
        trainer: what the values are put into.
        name: of the study, and of its folder.
        storage: URL or storage of Optuna; a journal file in the study's folder when None.
        sampler: of Optuna, such as `optuna.samplers.GPSampler()`; TPE when None.
        pruner: of Optuna; its median pruner when None. With several metrics Optuna cannot prune.
        study: of Optuna, instead of `storage`, `sampler` and `pruner`; what is returned.
        runs: folder of the runs; the trainer's or the project's when None. Runs of trial 3 are in `<name>/trials/0003`
            of it.
        seed: of the default sampler.

    Returns:
        Optuna's study. `trial.user_attrs['run']` is the folder of a trial's run.

    Raises:
        ConfigError: a space, metric or study that does not fit; before the first trial.
        MissingExtraError: optuna is not installed.
        BusyError: another process tunes in the study's folder.
        TrainError: every trial of this call failed.

    >>> import tempfile
    >>> import mmpipe as mm
    >>> from mmpipe.data.collate import example_rows
    >>> from mmpipe.train.example import example_model
    >>> from mmpipe.tuning import Float
    >>> def fit(trainer):
    ...     rows = mm.DataLoader(example_rows(), batch_size=2, device='cpu')
    ...     return trainer.fit(example_model, rows, rows, resume='auto')
    >>> space = {'lr': Float(1e-4, 1e-1, log=True)}
    >>> study = tune(fit, space=space, metric='kind.loss', trials=2, runs=tempfile.mkdtemp())
    >>> len(study.trials), sorted(study.best_params)
    (2, ['lr'])
    """
    require('tune', 'optuna', why='mm.tune')
    import optuna

    base = trainer or Trainer()
    goals = check_goals(metric)
    check_space(space, base, fit)
    if trials < 1:
        raise ConfigError(f'mm.tune(trials={trials}): a whole number from 1 on is meant.')
    if study is not None and (storage is not None or sampler is not None or pruner is not None):
        raise ConfigError('mm.tune(study=...) has its own storage, sampler and pruner: leave them out.')
    root = Path(runs if runs is not None else base.runs if base.runs is not None else runs_dir())
    folder = root / name
    with held(folder):
        if study is None:
            study = optuna.create_study(
                study_name=name,
                storage=journal(folder) if storage is None else storage,
                sampler=sampler,
                pruner=pruner,
                directions=[direction(goal) for goal in goals],
                load_if_exists=True,
            )
            if sampler is None:
                # A process that goes on must not draw again what the one before it drew.
                study.sampler = optuna.samplers.TPESampler(seed=zlib.crc32(f'{seed}/{len(study.trials)}'.encode()))
        check_study(study, goals, space)
        place = place_of_trials(folder)
        failed: list[str] = []
        ended = 0
        for trial in _trials(study, trials, place):
            cause, enough = _take(study, trial, fit, base, space=space, goals=goals, folder=folder)
            ended += 1
            failed += [] if cause is None else [cause]
            if enough:
                break
        if failed and len(failed) == ended:
            raise TrainError(f'All {ended} trials of study {name!r} failed; the first with {failed[0]}')
    return study


def _trials(study: optuna.Study, count: int, place: str) -> Any:
    """Trials to take: first those that were left behind, then new ones."""
    yield from left_behind(study, place)
    while len(study.get_trials(deepcopy=False)) < count:
        trial = study.ask()
        trial.set_user_attr('place', place)
        yield trial


def _take(
    study: optuna.Study,
    trial: optuna.Trial,
    fit: Callable[..., Run],
    base: Trainer,
    *,
    space: Space,
    goals: Sequence[str],
    folder: Path,
) -> tuple[str | None, bool]:
    """Train a trial and tell the study.

    Returns:
        Why it failed, or None; and whether the sampler has nothing more to try.
    """
    from optuna.trial import TrialState

    values = {name: each.drawn(trial, name) for name, each in space.items()}
    fields = {field.name for field in dataclasses.fields(Trainer)}
    reporting = Reporting(trial, goals[0] if len(goals) == 1 else None)
    try:
        if not trial.user_attrs.get('pruned'):  # else only the telling was missed
            trainer = dataclasses.replace(
                base,
                runs=folder / 'trials' / f'{trial.number:04d}',
                callbacks=[*base.callbacks, reporting],
                **{name: value for name, value in values.items() if name in fields},
            )
            run = fit(trainer, **{name: value for name, value in values.items() if name not in fields})
            if not isinstance(run, Run):
                raise ConfigError(f'The function gave {run!r}: return the run of trainer.fit.')
            trial.set_user_attr('run', str(run.path))
        seconds = reporting.seconds
        trial.set_user_attr('seconds', seconds)
        if trial.user_attrs.get('pruned'):
            return None, _tell(study, trial, state=TrialState.PRUNED)
        found = [value_of(goal, run, seconds=seconds) for goal in goals]
    except Exception as error:  # noqa: BLE001  whatever it is, it is this trial's, and is kept with it
        cause = f'{type(error).__name__}: {error}'
        _log.warning('trial %d failed: %s', trial.number, cause)
        trial.set_user_attr('error', cause)
        return cause, _tell(study, trial, state=TrialState.FAIL)
    return None, _tell(study, trial, found)


def _tell(study: optuna.Study, trial: optuna.Trial, *what: Any, **state: Any) -> bool:
    """Tell the study how a trial ended.

    Returns:
        Whether the sampler asks to stop, as a grid does after its last point: outside of `Study.optimize`, which would
        record a trial that Ctrl-C ended as failed, Optuna raises then, with the trial told.
    """
    try:
        study.tell(trial, *what, **state)
    except RuntimeError as error:
        if 'Study.stop' not in str(error) or not study._storage.get_trial(trial._trial_id).state.is_finished():
            raise
        return True
    return False
