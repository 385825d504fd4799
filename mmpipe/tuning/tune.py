"""mm.tune: check what is asked, open the study, search it in this process or in several."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mmpipe.errors import ConfigError, require
from mmpipe.home import runs_dir
from mmpipe.runs import Run
from mmpipe.train.trainer import Progress, Trainer
from mmpipe.tuning.goals import MEMORY, check_goals, direction
from mmpipe.tuning.memory import check_memory
from mmpipe.tuning.processes import check_sent, train_in_processes
from mmpipe.tuning.pruning import Listening
from mmpipe.tuning.search import Search
from mmpipe.tuning.space import Space, check_space
from mmpipe.tuning.studies import check_study, held, journal, opening, place_of_trials, with_driver
from mmpipe.tuning.trials import train_trial

if TYPE_CHECKING:
    import optuna


def tune(
    fit: Callable[..., Run],
    *,
    space: Space,
    metric: str | Sequence[str],
    trials: int = 20,
    processes: int = 1,
    trainer: Trainer | None = None,
    name: str = 'tuning',
    storage: str | optuna.storages.BaseStorage | None = None,
    sampler: optuna.samplers.BaseSampler | None = None,
    pruner: optuna.pruners.BasePruner | None = None,
    study: optuna.Study | None = None,
    runs: str | os.PathLike[str] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> optuna.Study:
    """Search settings of a trainer and arguments of a function.

    Called again, it goes on: trials that ended stay, and one that a kill or Ctrl-C left goes on under its number, from
    its checkpoint where `fit` passes `resume='auto'`. A trial that raises is recorded as failed, with its cause in
    `trial.user_attrs['error']`, and the search goes on. A process of several that is killed costs its trial nothing
    but what it did since its last checkpoint, the first time; the second time that trial is recorded as failed.

    Args:
        fit: `fit(trainer, **arguments)` trains with that trainer and gives the run. The trainer has the values of its
            fields, the callbacks that report and prune, and a folder of runs of the trial's own.
        space: {field of `Trainer`, or argument of `fit`: `Float`, `Int` or `Choice` of mmpipe.tuning}.
        metric: 'task.metric' of the validation rows, 'seconds', 'memory' (the peak, in bytes, of the device or else of
            the process; see `mmpipe.tuning.memory`), or several. Losses, `mae`, `rmse`, seconds and memory are better
            where they are lower; any other with a `-` before it.
        trials: how many the study is to have at the end, whatever became of them. (Several machines that share a
            storage may come to a few more, as each looks before it begins one.)
        processes: so many trials train at once, each in a process with an equal share of the cores: one, where there
            are as many processes as cores. `fit` must then be at the top level of a module or script.
        trainer: what the values are put into.
        name: of the study, and of its folder.
        storage: URL or storage of Optuna, such as 'postgresql://host/studies' for several machines; a journal file in
            the study's folder when None.
        sampler: of Optuna, such as `optuna.samplers.GPSampler()`; TPE when None.
        pruner: of Optuna; its median pruner when None. With several metrics Optuna cannot prune.
        study: of Optuna, instead of `storage`, `sampler` and `pruner`; what is returned.
        runs: folder of the runs; the trainer's or the project's when None. Runs of trial 3 are in `<name>/trials/0003`
            of it.
        seed: of the default sampler.
        progress: called with ('tune', trials that ended, trials, 'trials').

    Returns:
        Optuna's study. `trial.user_attrs['run']` is the folder of a trial's run.

    Raises:
        ConfigError: a space, metric or study that does not fit; before the first trial.
        MissingExtraError: optuna is not installed.
        BusyError: another process tunes in the study's folder.
        TrainError: every trial of this call failed, or a process ended before it could take one.
        KeyboardInterrupt: Ctrl-C; the first after the running steps, with checkpoints.

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
    if trials < 1 or processes < 1:
        raise ConfigError(f'mm.tune(trials={trials}, processes={processes}): whole numbers from 1 on are meant.')
    if study is not None and (storage is not None or sampler is not None or pruner is not None):
        raise ConfigError('mm.tune(study=...) has its own storage, sampler and pruner: leave them out.')
    if MEMORY in goals:
        check_memory()
    if processes > 1:
        check_sent(fit, base)
    root = Path(runs if runs is not None else base.runs if base.runs is not None else runs_dir())
    folder = root / name
    with held(folder):
        place = place_of_trials(folder)
        at = journal(folder) if storage is None and study is None else with_driver(storage)
        with opening(at):
            if study is None:
                study = optuna.create_study(
                    study_name=name,
                    storage=at,
                    sampler=sampler,
                    pruner=pruner,
                    directions=[direction(goal) for goal in goals],
                    load_if_exists=True,
                )
                if sampler is None:
                    study.sampler = _sampler(seed, len(study.trials), '' if storage is None else place, processes)
            check_study(study, goals, space)
        search = Search(study, space, folder=folder, count=trials, place=place, progress=progress)
        if processes > 1:
            train_in_processes(search, fit, base, goals=goals, processes=processes)
        else:
            while (drawn := search.next()) is not None:
                trial, job = drawn
                search.finish(trial, train_trial(job, fit, base, goals, Listening(trial)))
        search.check()
    return study


def _sampler(seed: int, trials: int, place: str, processes: int) -> optuna.samplers.BaseSampler:
    """TPE with a seed of its own: a call that goes on must not draw again what the one before it drew, nor one machine
    what another one draws. Where trials run at once, those that still run count as bad, so that others are tried."""
    import optuna

    own = zlib.crc32(f'{seed}/{trials}{place and f"/{place}"}'.encode())
    return optuna.samplers.TPESampler(seed=own, constant_liar=processes > 1 or place != '')
