"""A study as pictures, by Optuna: how each goal went on, what moved it, and what two goals cost each other."""

from __future__ import annotations

import io
import os
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmpipe.durable import write_bytes
from mmpipe.errors import ConfigError, require
from mmpipe.evaluation.fonts import families_for

if TYPE_CHECKING:
    import optuna

DOTS = 110  # per inch
FEWEST = 4  # trials with a value, below which an importance says nothing


def save_plots(study: optuna.Study, folder: str | os.PathLike[str]) -> list[Path]:
    """Write pictures of a study as PNG.

    Args:
        study: of `mm.tune`.
        folder: is made; pictures of an earlier call are removed.

    Returns:
        The files: `tuning-history-<goal>.png`; `tuning-importance-<goal>.png` from 4 trials with a value on, where the
        goal differs between them; `tuning-front.png` of two or three goals.

    Raises:
        MissingExtraError: matplotlib or Optuna is not installed.
        ConfigError: no trial has a value.

    >>> import tempfile, optuna
    >>> study = optuna.create_study()
    >>> study.optimize(lambda trial: trial.suggest_float('lr', 0, 1), n_trials=4)
    >>> [path.name for path in save_plots(study, tempfile.mkdtemp())]
    ['tuning-history-value.png', 'tuning-importance-value.png']
    """
    require('plots', 'matplotlib', why='drawing a study')
    require('tune', 'optuna', why='drawing a study')
    import matplotlib
    from matplotlib import pyplot
    from optuna.trial import TrialState

    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if not done:
        raise ConfigError(f'Study {study.study_name!r} has no trial with a value, so there is nothing to draw yet.')
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    for old in place.glob('tuning-*.png'):
        old.unlink()
    goals = study.user_attrs.get('goals') or ['value'] * len(study.directions)
    settings: Any = {'font.family': families_for([*goals, *done[0].params]), 'text.parse_math': False}
    files = []
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.simplefilter('ignore')  # Optuna calls its plots experimental
        for name, figure in _figures(study, done, goals, settings):
            path = place / f'tuning-{re.sub(r"[^0-9A-Za-z.]+", "-", name)}.png'
            with io.BytesIO() as content:
                figure.savefig(content, format='png', dpi=DOTS, bbox_inches='tight')
                write_bytes(path, content.getbuffer())
            pyplot.close(figure)
            files.append(path)
    return files


def _figures(study: optuna.Study, done: list[Any], goals: list[str], settings: Any) -> Iterator[tuple[str, Any]]:
    """(name, figure) one after the other."""
    from matplotlib import pyplot
    from optuna.importance import FanovaImportanceEvaluator
    from optuna.visualization import matplotlib as drawn

    def axes_of(draw: Callable[..., Any], *args: Any, title: str, **options: Any) -> Any:
        axes = draw(*args, **options)  # chooses a style for the whole process, which the caller's context undoes
        pyplot.rcParams.update(settings)
        axes.set_title('', loc='left')  # where Optuna puts the title of some plots, beside which ours would stand
        axes.set_title(title, family=settings['font.family'], fontsize=11)
        if axes.get_legend() is not None:
            axes.legend(loc='best')
        axes.figure.set_size_inches(7, 4)
        return axes

    for position, goal in enumerate(goals):
        what: dict[str, Any] = {'target_name': _with_unit(goal)}
        if len(goals) > 1 or goal == 'memory':
            what['target'] = _Value(position, scale=1e6 if goal == 'memory' else 1)
        count = f'{len(done)} of {len(study.trials)} trials have a value'
        title = f'{study.study_name}: {_with_unit(goal)} ({count})'
        axes = axes_of(drawn.plot_optimization_history, study, title=title, **what)
        yield f'history-{goal}', axes.figure
        differ = any(len({trial.params[name] for trial in done}) > 1 for name in done[0].params)
        if len(done) >= FEWEST and differ and len({trial.values[position] for trial in done}) > 1:
            axes = axes_of(
                drawn.plot_param_importances, study, title=f'{study.study_name}: what moves {goal} (fANOVA)',
                evaluator=FanovaImportanceEvaluator(seed=0), **what,
            )  # fmt: skip
            yield f'importance-{goal}', axes.figure
    if len(goals) in (2, 3):
        names = [_with_unit(goal) for goal in goals]
        axes = axes_of(drawn.plot_pareto_front, study, title=f'{study.study_name}: the front', target_names=names)
        if 'memory' in goals:  # Optuna draws values as they are
            axis = getattr(axes, 'xyz'[goals.index('memory')] + 'axis')
            axis.set_major_formatter(lambda value, _: f'{value / 1e6:,.6g}')
        yield 'front', axes.figure


class _Value:
    """One value of a trial, in other units."""

    def __init__(self, position: int, *, scale: float) -> None:
        self.position, self.scale = position, scale

    def __call__(self, trial: optuna.trial.FrozenTrial) -> float:
        return float(trial.values[self.position]) / self.scale


def _with_unit(goal: str) -> str:
    return {'memory': 'memory (MB)', 'seconds': 'seconds'}.get(goal, goal)
