"""What the model has to beat: the majority answer, and linear probes on each modality and on all of them together.

The same grouped splits for the model and for every baseline: all drawings of a series lie on one side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from mmpipe.errors import require
from mmpipe.shards import Rows, Snapshot
from mmpipe.train import metrics
from pipelines.demo.training import EPOCHS, TASKS, fit

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
    runs: str,
    seeds: int = SEEDS,
    epochs: int | None = None,
    progress: Callable[..., Any] | None = None,
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, dict[str, float]]]]:
    """The model and the baselines over several grouped splits.

    Args:
        snapshot: of `views.training_view`.
        runs: folder for the runs of this comparison.
        seeds: how many splits.
        epochs: of the model's training; its own number when None.
        progress: called with ('compare', done, total, 'fits').

    Returns:
        ({task: {'mean', 'std'}} of the model, {task: {baseline: {'mean', 'std'}}}), in the metric of `TASKS`.
    """
    model: dict[str, list[float]] = {task: [] for task in TASKS}
    probes: dict[str, dict[str, list[float]]] = {task: {} for task in TASKS}
    total = seeds * 2
    for seed, (train, test) in enumerate(grouped_splits(snapshot, seeds)):
        for task, by_name in baselines(train, test).items():
            for name, value in by_name.items():
                probes[task].setdefault(name, []).append(value)
        if progress is not None:
            progress('compare', 2 * seed + 1, total, 'fits')
        run = fit(train, test, seed=seed, epochs=epochs or EPOCHS, name='demo-compare', runs=runs)
        for task, metric in TASKS.items():
            model[task].append(run.metrics[task][metric])
        if progress is not None:
            progress('compare', 2 * seed + 2, total, 'fits')
    return (
        {task: _summary(values) for task, values in model.items()},
        {task: {name: _summary(values) for name, values in by_name.items()} for task, by_name in probes.items()},
    )


def baselines(train: Rows, test: Rows) -> dict[str, dict[str, float]]:
    """Scores of the majority answer and of the linear probes, {task: {baseline: value}}."""
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


def _majority(task: str, train: Rows, test: Rows) -> float:
    _, known = _labelled(train, task)
    _, wanted = _labelled(test, task)
    if task == 'category':
        return metrics.accuracy(np.full(len(wanted), np.bincount(known).argmax()), wanted)
    if task == 'words':
        return metrics.mean_average_precision(np.tile(known.mean(axis=0), (len(wanted), 1)), wanted.astype(bool)) or 0.0
    return metrics.r2(np.full(len(wanted), known.mean()), wanted) or 0.0


def _probe(task: str, train: Rows, test: Rows, train_x: np.ndarray, test_x: np.ndarray) -> float:
    from sklearn.linear_model import LogisticRegression, RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    have, known = _labelled(train, task)
    want, wanted = _labelled(test, task)
    if task == 'category':
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=300))
        return metrics.accuracy(probe.fit(train_x[have], known).predict(test_x[want]), wanted)
    probe = make_pipeline(StandardScaler(), RidgeCV(alphas=np.logspace(1, 5, 9)))
    predicted = probe.fit(train_x[have], known).predict(test_x[want])
    if task == 'words':
        return metrics.mean_average_precision(predicted, wanted.astype(bool)) or 0.0
    return metrics.r2(predicted, wanted) or 0.0


def _summary(values: list[float]) -> dict[str, float]:
    return {'mean': float(np.mean(values)), 'std': float(np.std(values))}
