"""Metrics of labelled rows, on numpy arrays.

Definitions follow scikit-learn's documentation (https://scikit-learn.org/stable/modules/model_evaluation.html), with
which the tests compare them where it is installed. Every function takes n >= 1 rows.
"""

from __future__ import annotations

import numpy as np


def accuracy(predicted: np.ndarray, target: np.ndarray) -> float:
    """Share of rows whose class is right.

    Args:
        predicted: classes `[n]`.
        target: classes `[n]`.

    >>> accuracy(np.array([0, 1, 1, 2]), np.array([0, 1, 2, 2]))
    0.75
    """
    return float((predicted == target).mean())


def macro_f1(predicted: np.ndarray, target: np.ndarray) -> float:
    """Mean over classes of F1 = 2 TP / (2 TP + FP + FN); classes that neither occur nor are predicted do not count.

    Args:
        predicted: classes `[n]`.
        target: classes `[n]`.

    >>> macro_f1(np.array([0, 1, 1]), np.array([0, 1, 0]))
    0.6666666666666666
    """
    classes = int(max(predicted.max(), target.max())) + 1
    right = np.bincount(target[predicted == target], minlength=classes)
    both = np.bincount(target, minlength=classes) + np.bincount(predicted, minlength=classes)
    return float((2 * right[both > 0] / both[both > 0]).mean())


def micro_f1(predicted: np.ndarray, target: np.ndarray) -> float:
    """F1 = 2 TP / (2 TP + FP + FN) with the counts summed over all classes; 0 when nothing is there or predicted.

    Args:
        predicted: bool `[n, classes]`.
        target: bool `[n, classes]`.

    >>> micro_f1(np.array([[True, True]]), np.array([[True, False]]))
    0.6666666666666666
    """
    total = int(predicted.sum()) + int(target.sum())
    return float(2 * (predicted & target).sum() / total) if total else 0.0


def average_precision(scores: np.ndarray, target: np.ndarray) -> float:
    """AP = sum over thresholds of (R_k - R_(k-1)) P_k, equal scores being one threshold.

    Args:
        scores: higher means more likely, `[n]`.
        target: bool `[n]`, true at least once.

    >>> average_precision(np.array([0.9, 0.8, 0.1]), np.array([True, False, True]))
    0.8333333333333333
    """
    order = np.argsort(-scores, kind='stable')
    found = np.cumsum(target[order])
    last = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))  # last row of each run of equal scores
    precision = found[last] / (last + 1)
    recall = found[last] / found[-1]
    return float((np.diff(recall, prepend=0.0) * precision).sum())


def mean_average_precision(scores: np.ndarray, target: np.ndarray) -> float | None:
    """Mean of `average_precision` over the classes that occur; None when none does.

    Args:
        scores: `[n, classes]`.
        target: bool `[n, classes]`.

    >>> mean_average_precision(np.array([[0.9, 0.1], [0.2, 0.3]]), np.array([[True, False], [False, False]]))
    1.0
    """
    occurring = np.flatnonzero(target.any(axis=0))
    if len(occurring) == 0:
        return None
    return float(np.mean([average_precision(scores[:, c], target[:, c]) for c in occurring]))


def mae(predicted: np.ndarray, target: np.ndarray) -> float:
    """Mean absolute error, in the unit of the target.

    >>> mae(np.array([1.0, 2.0]), np.array([1.0, 4.0]))
    1.0
    """
    return float(np.abs(predicted - target).mean())


def rmse(predicted: np.ndarray, target: np.ndarray) -> float:
    """Square root of the mean squared error, in the unit of the target.

    >>> rmse(np.array([1.0, 2.0]), np.array([1.0, 4.0]))
    1.4142135623730951
    """
    return float(np.sqrt(((predicted - target) ** 2).mean()))


def r2(predicted: np.ndarray, target: np.ndarray) -> float | None:
    """Coefficient of determination, 1 - SS_residual / SS_total; None when the targets are all equal.

    >>> r2(np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.0, 3.0]))
    1.0
    """
    total = float(((target - target.mean()) ** 2).sum())
    return 1.0 - float(((target - predicted) ** 2).sum()) / total if total > 0 else None
