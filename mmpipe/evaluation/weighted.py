"""The metrics of a task when each row counts so many times: what resampling asks for, many resamples at once.

A resample is written as how often each row is in it: `counts` `[b, n]`. Sums over its rows are then a product of
matrices, and nothing is copied. Counts of 1 give the metrics of the rows; any counts give what `Task.metrics` gives for
the rows repeated so often (tested).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mmpipe.evaluation.outputs import Labelled
from mmpipe.train.own_metrics import OwnMetric, measure_own
from mmpipe.train.tasks import Classification, Multilabel, Regression, Task

Weighted = Callable[[np.ndarray], dict[str, np.ndarray]]
"""From counts, float64 `[b, n]`, to {metric: float64 `[b]`}; nan where a metric is not defined."""


def weighted(found: Labelled, own: dict[str, OwnMetric] | None = None) -> Weighted:
    """The metrics of some rows, as a function of how often each counts.

    Args:
        found: labelled rows, at least one.
        own: metrics of the user's; they are computed anew for each resample, with its rows repeated.

    >>> from mmpipe.train.tasks import classification
    >>> found = Labelled(task=classification('kind', 2), rows=np.arange(2), output=np.float32([[1, 0], [1, 0]]),
    ...     target=np.int64([0, 1]), loss=np.float32([0.5, 1.5]))
    >>> weighted(found)(np.array([[1.0, 1.0], [2.0, 0.0]]))['accuracy']
    array([0.5, 1. ])
    """
    task = found.task
    parts: list[Weighted] = [_mean('loss', found.loss.astype(np.float64))]
    kind = known_kind(task)
    if kind is Classification:
        parts.append(_classes(found.output.argmax(axis=1), found.target.astype(np.int64)))
    elif kind is Multilabel:
        parts.append(_labels(found.output, found.target > 0))
    elif kind is Regression:
        parts.append(_numbers(found.output.astype(np.float64), found.target.astype(np.float64)))
    else:
        parts.append(_repeated(found, lambda output, target: task.metrics(output, target)))
    if own:
        parts.append(_repeated(found, lambda output, target: measure_own(own, task, output, target)))
    return lambda counts: {name: values for part in parts for name, values in part(counts).items()}


def known_kind(task: Task) -> type[Task] | None:
    """The kind of task whose metrics a task has; None where it has others, though it be derived from one of these.

    >>> from mmpipe.train.tasks import regression
    >>> known_kind(regression('price')).kind
    'regression'
    """
    kinds = (Classification, Multilabel, Regression)
    return next((kind for kind in kinds if type(task).metrics is kind.metrics), None)


def _mean(name: str, values: np.ndarray) -> Weighted:
    return lambda counts: {name: counts @ values / counts.sum(axis=1)}


def _classes(predicted: np.ndarray, target: np.ndarray) -> Weighted:
    right = predicted == target
    classes = int(max(predicted.max(), target.max())) + 1
    hit = target[right]

    def measure(counts: np.ndarray) -> dict[str, np.ndarray]:
        f1 = np.empty(len(counts))
        for i, row in enumerate(counts):
            both = np.bincount(target, row, classes) + np.bincount(predicted, row, classes)
            there = both > 0
            f1[i] = (2 * np.bincount(hit, row[right], classes)[there] / both[there]).mean()
        return {'accuracy': counts @ right / counts.sum(axis=1), 'macro_f1': f1}

    return measure


def _labels(scores: np.ndarray, target: np.ndarray) -> Weighted:
    predicted = scores > 0
    right, total = (predicted & target).sum(axis=1), predicted.sum(axis=1) + target.sum(axis=1)
    ranked = [_Ranked(scores[:, c], target[:, c]) for c in np.flatnonzero(target.any(axis=0))]

    def measure(counts: np.ndarray) -> dict[str, np.ndarray]:
        all_of = counts @ total
        f1 = np.divide(2 * (counts @ right), all_of, out=np.zeros(len(counts)), where=all_of > 0)
        whole = counts.astype(np.int32)
        each = np.array([one.average_precision(whole) for one in ranked]).reshape(len(ranked), len(counts))
        occurring = ~np.isnan(each)
        several = occurring.sum(axis=0)
        mean = np.divide(
            np.where(occurring, each, 0).sum(axis=0), several, out=np.full(len(counts), np.nan), where=several > 0
        )
        return {'micro_f1': f1, 'map': mean}

    return measure


class _Ranked:
    """Rows of one class from the most to the least likely, for average precision.

    AP = sum over thresholds of (R_k - R_(k-1)) P_k, to which only thresholds add at which some row has the class.
    """

    def __init__(self, scores: np.ndarray, target: np.ndarray) -> None:
        self.order = np.argsort(-scores, kind='stable')
        ordered = target[self.order]
        ends = np.flatnonzero(np.append(np.diff(scores[self.order]) != 0, True))  # last row of each run of equal scores
        found = np.add.reduceat(ordered.astype(np.int64), np.append(0, ends[:-1] + 1))
        self.ends = ends[found > 0]
        self.positives = self.order[ordered]
        self.firsts = (np.cumsum(found) - found)[found > 0]  # of the positives at each threshold

    def average_precision(self, counts: np.ndarray) -> np.ndarray:
        """float64 `[b]` of int32 counts `[b, n]`; nan where no row of the class counts."""
        result = np.full(len(counts), np.nan)
        for i, row in enumerate(counts):
            seen = row.take(self.order).cumsum(dtype=np.int32)[self.ends]
            hits = np.add.reduceat(row.take(self.positives), self.firsts)
            so_far = hits.cumsum()
            if so_far[-1]:
                # Where none of the first rows counts, hits are 0 as well.
                result[i] = (hits * (so_far / np.maximum(seen, 1))).sum() / so_far[-1]
        return result


def _numbers(predicted: np.ndarray, target: np.ndarray) -> Weighted:
    error = predicted - target
    middle = target - target.mean()  # sums of squares far from 0 would lose digits
    columns = np.stack([np.abs(error), error**2, middle, middle**2], axis=1)

    def measure(counts: np.ndarray) -> dict[str, np.ndarray]:
        count = counts.sum(axis=1)
        absolute, squared, first, second = (counts @ columns).T
        total = second - first**2 / count
        spread = total > 1e-12 * second  # else the targets are all equal, up to rounding
        r2 = np.where(spread, 1 - squared / np.where(spread, total, 1), np.nan)
        return {'mae': absolute / count, 'rmse': np.sqrt(squared / count), 'r2': r2}

    return measure


def _repeated(found: Labelled, metrics: Callable[[np.ndarray, np.ndarray], dict[str, float | None]]) -> Weighted:
    def measure(counts: np.ndarray) -> dict[str, np.ndarray]:
        rows: list[dict[str, float | None]] = []
        for row in counts:
            which = np.repeat(np.arange(len(row)), row.astype(np.int64))
            rows.append(metrics(found.output[which], found.target[which]))
        # What is no single number, such as one per class, has no interval.
        names = [name for name in rows[0] if all(isinstance(row.get(name), int | float | None) for row in rows)]
        return {name: np.array([_number(row[name]) for row in rows]) for name in names}

    return measure


def _number(value: float | None) -> float:
    return np.nan if value is None else float(value)
