"""A search for settings of a pipeline: what `mmpipe tune` does.

training.py of the pipeline says what is searched: `tuning(snapshot)` gives arguments of `mm.tune` by their names, at
least `fit`, `space` and `metric`. A `fit` for several processes is at the top level of training.py, with the snapshot
put in by `functools.partial`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmpipe.errors import ConfigError
from mmpipe.shards import Snapshot, open_snapshot
from mmpipe.shards.root import place_of
from mmpipe.tuning.tune import tune
from mmpipe.wording import how_many

if TYPE_CHECKING:
    import optuna

    from mmpipe.pipeline import Pipeline

NEEDED = ('fit', 'space', 'metric')
SHOWN = 5  # trials of a front that are printed


def tune_pipeline(
    pipeline: Pipeline, *, root: str | Path | None = None, name: str | None = None, **given: Any
) -> optuna.Study:
    """Search settings of a pipeline's training on its current snapshot.

    Args:
        pipeline: of `mmpipe.pipeline.find_pipeline`.
        root: of its shards; the pipeline's when None.
        name: of the study; of the root and the snapshot when None, so that another snapshot is another study.
        given: arguments of `mm.tune` that count instead of the pipeline's; those that are None are left out.

    Raises:
        ConfigError: training.py has no `tuning`, or it gives something else.
        and as `mm.tune`.
    """
    snapshot = open_snapshot(pipeline.root if root is None else root)
    file = f'pipelines/{pipeline.name}/training.py'
    declared = getattr(pipeline.module('training'), 'tuning', None)
    if declared is None:
        raise ConfigError(
            f'{file} defines no `tuning(snapshot)`: let it give {{"fit": ..., "space": ..., "metric": ...}}.'
        )
    arguments = declared(snapshot)
    lacking = [each for each in NEEDED if each not in arguments] if isinstance(arguments, dict) else list(NEEDED)
    if lacking:
        raise ConfigError(
            f'tuning(snapshot) of {file} gave no {", ".join(lacking)}: let it give arguments of mm.tune by their names.'
        )
    chosen = {key: value for key, value in {'name': name, **given}.items() if value is not None}
    return tune(**{'name': study_name(snapshot), **arguments, **chosen})


def study_name(snapshot: Snapshot) -> str:
    """Of the studies of a snapshot, unless they are given one.

    >>> from mmpipe.data.collate import example_rows
    >>> '-tuning-' in study_name(example_rows().snapshot)
    True
    """
    return f'{Path(place_of(snapshot.root)).name}-tuning-{snapshot.id[:8]}'


def summary(study: optuna.Study) -> dict[str, Any]:
    """A study as JSON: how many trials ended how, and the best, or those of the front of several goals.

    >>> import optuna
    >>> study = optuna.create_study(study_name='shop')
    >>> study.optimize(lambda trial: trial.suggest_float('lr', 1, 2), n_trials=2)
    >>> summary(study)['trials'], len(summary(study)['best'])
    ({'complete': 2}, 1)
    """
    from optuna.trial import TrialState

    trials = study.get_trials(deepcopy=False)
    counts: dict[str, int] = {}
    for trial in trials:
        counts[trial.state.name.lower()] = counts.get(trial.state.name.lower(), 0) + 1
    done = any(trial.state is TrialState.COMPLETE for trial in trials)
    goals = study.user_attrs.get('goals') or ['value'] * len(study.directions)
    best = (study.best_trials if len(study.directions) > 1 else [study.best_trial]) if done else []
    return {
        'study': study.study_name,
        'trials': counts,
        'best': [
            {
                'number': trial.number,
                'values': dict(zip(goals, trial.values, strict=True)),
                'params': trial.params,
                'run': trial.user_attrs.get('run'),
            }
            for trial in best
        ],
    }


def lines_of(found: dict[str, Any]) -> str:
    """A summary as text."""
    counts = ', '.join(f'{count} {state}' for state, count in found['trials'].items())
    lines = [f'study {found["study"]}: {how_many(sum(found["trials"].values()), "trial")} ({counts})']
    best = found['best']
    if len(best) > 1:
        lines.append(f'{len(best)} of them are no worse than any other in every goal' + _cut(len(best)))
    for trial in best[:SHOWN]:
        values = ', '.join(f'{goal} {_shown(goal, value)}' for goal, value in trial['values'].items())
        params = ', '.join(
            f'{name}={value:.4g}' if isinstance(value, float) else f'{name}={value}'
            for name, value in sorted(trial['params'].items())
        )
        lines += [f'  trial {trial["number"]}: {values}', f'    {params}', f'    {trial["run"]}']
    return '\n'.join(lines)


def _cut(count: int) -> str:
    return f'; the first {SHOWN}:' if count > SHOWN else ':'


def _shown(goal: str, value: float) -> str:
    return f'{value / 1e6:,.0f} MB' if goal == 'memory' else f'{value:.4g}'
