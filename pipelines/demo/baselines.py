"""What the model has to beat: the majority answer, and linear probes on each modality and on all of them together.

The same grouped splits for the model and for every baseline: all drawings of a series lie on one side.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmpipe.errors import require
from mmpipe.shards import Rows, Snapshot
from mmpipe.train import metrics
from pipelines.demo.training import EPOCHS, TASKS, fit

Summary = dict[str, float | None]
"""{'mean': ..., 'std': ...} over splits."""

NAME = 'demo-compare'  # of the runs, while a comparison goes on
SEEDS = 3
TEST_SHARE = 0.25
MODALITIES = {
    'photo': 'photo_vector',
    'caption': 'caption_vector',
    'speech': 'speech_mel',
    'clip': 'clip_vector',
    'document': 'document_vector',
    'facts': 'facts',
}


def grouped_splits(snapshot: Snapshot, seeds: int = SEEDS) -> Iterator[tuple[Rows, Rows]]:
    """Pairs of (training, test) rows; no group is on both sides (scikit-learn's GroupShuffleSplit)."""
    require('demo', 'sklearn', why='the demo')
    from sklearn.model_selection import GroupShuffleSplit

    rows = snapshot.rows()
    # Sorted by key, so that the splits depend on what is in the snapshot and not on when it was written.
    rows = rows.take(np.argsort(rows.keys))
    groups = np.array(rows.words('group'), dtype=object)
    for train, test in GroupShuffleSplit(seeds, test_size=TEST_SHARE, random_state=0).split(groups, groups=groups):
        yield rows.take(train), rows.take(test)


def compare(
    snapshot: Snapshot,
    *,
    runs: str | Path,
    seeds: int = SEEDS,
    epochs: int | None = None,
    progress: Callable[..., Any] | None = None,
) -> tuple[dict[str, Summary], dict[str, dict[str, Summary]]]:
    """The model and the baselines over several grouped splits.

    Args:
        snapshot: of `views.training_view`.
        runs: folder for the runs of this comparison while it goes on; once it has ended, none is left.
        seeds: how many splits.
        epochs: of the model's training; its own number when None.
        progress: called with ('compare', done, total, 'fits').

    Returns:
        ({task: {'mean', 'std'}} of the model, {task: {baseline: {'mean', 'std'}}}), in the metric of `TASKS`; over the
        splits where it is defined, and None where it is on none, as without a label.
    """
    model: dict[str, list[float | None]] = {task: [] for task in TASKS}
    probes: dict[str, dict[str, list[float | None]]] = {task: {} for task in TASKS}
    total = seeds * 2
    for seed, (train, test) in enumerate(grouped_splits(snapshot, seeds)):
        for task, by_name in baselines(train, test).items():
            for name, value in by_name.items():
                probes[task].setdefault(name, []).append(value)
        if progress is not None:
            progress('compare', 2 * seed + 1, total, 'fits')
        run = fit(train, test, seed=seed, epochs=epochs or EPOCHS, name=NAME, runs=runs)
        for task, metric in TASKS.items():
            model[task].append(run.metrics[task][metric])
        if progress is not None:
            progress('compare', 2 * seed + 2, total, 'fits')
    shutil.rmtree(Path(runs) / NAME)
    return (
        {task: _summary(values) for task, values in model.items()},
        {task: {name: _summary(values) for name, values in by_name.items()} for task, by_name in probes.items()},
    )


def baselines(train: Rows, test: Rows) -> dict[str, dict[str, float | None]]:
    """Scores of the majority answer and of the linear probes, {task: {baseline: value}}; None where not defined."""
    features = {name: (_features(train, field), _features(test, field)) for name, field in MODALITIES.items()}
    features['all'] = tuple(np.concatenate([pair[i] for pair in features.values()], axis=1) for i in (0, 1))  # type: ignore[assignment]
    return {
        task: {
            'majority': _majority(task, train, test),
            **{name: _probe(task, train, test, *pair) for name, pair in features.items()},
        }
        for task in TASKS
    }


def _features(rows: Rows, field: str) -> np.ndarray:
    """One modality as float vectors; a missing one is zeros with a 0 behind, a present one has a 1 there."""
    values, valid = rows.read(field)
    if values.ndim == 3:  # a spectrogram: mean and spread of each band over time
        values = np.concatenate([values.mean(axis=2), values.std(axis=2)], axis=1)
    return np.concatenate([values * valid[:, None], valid[:, None]], axis=1)


def _labelled(rows: Rows, task: str) -> tuple[np.ndarray, np.ndarray]:
    values, valid = rows.read(task)
    return np.flatnonzero(valid), values[valid]


def _majority(task: str, train: Rows, test: Rows) -> float | None:
    _, known = _labelled(train, task)
    _, wanted = _labelled(test, task)
    if not len(known) or not len(wanted):
        return None
    if task == 'category':
        return metrics.accuracy(np.full(len(wanted), np.bincount(known).argmax()), wanted)
    if task == 'words':
        return metrics.mean_average_precision(np.tile(known.mean(axis=0), (len(wanted), 1)), wanted.astype(bool))
    return metrics.r2(np.full(len(wanted), known.mean()), wanted)


def _probe(task: str, train: Rows, test: Rows, train_x: np.ndarray, test_x: np.ndarray) -> float | None:
    from sklearn.linear_model import LogisticRegression, RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    have, known = _labelled(train, task)
    want, wanted = _labelled(test, task)
    if not len(known) or not len(wanted):
        return None
    if task == 'category':
        if len(np.unique(known)) == 1:  # nothing to tell apart: the probe is the majority answer
            return metrics.accuracy(np.full(len(wanted), known[0]), wanted)
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=300))
        return metrics.accuracy(probe.fit(train_x[have], known).predict(test_x[want]), wanted)
    probe = make_pipeline(StandardScaler(), RidgeCV(alphas=np.logspace(1, 5, 9)))
    predicted = probe.fit(train_x[have], known).predict(test_x[want])
    if task == 'words':
        return metrics.mean_average_precision(predicted, wanted.astype(bool))
    return metrics.r2(predicted, wanted)


def _summary(values: Sequence[float | None]) -> Summary:
    defined = [value for value in values if value is not None]
    if not defined:
        return {'mean': None, 'std': None}
    return {'mean': float(np.mean(defined)), 'std': float(np.std(defined))}
