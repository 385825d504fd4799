"""What is taken for what: a confusion matrix, counts per label, or quantiles of residuals; and the worst rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmpipe.evaluation.calibration import probabilities
from mmpipe.evaluation.outputs import Labelled
from mmpipe.train.tasks import Classification, Multilabel, Regression

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """Rows by true and predicted class, of the classes that occur as either.

    Args:
        classes: words.
        counts: of rows; `counts[i][j]` are of class i and were taken for class j.
        unseen: words of the classes that no row has.
    """

    classes: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    unseen: tuple[str, ...]

    def pairs(self) -> list[tuple[int, str, str]]:
        """(rows, class, what it was taken for) of all mistakes, the most frequent first.

        >>> Confusion(classes=('cat', 'dog'), counts=((5, 2), (0, 5)), unseen=()).pairs()
        [(2, 'cat', 'dog')]
        """
        named = enumerate(self.classes)
        found = [(self.counts[i][j], a, b) for i, a in named for j, b in enumerate(self.classes) if i != j]
        return sorted((pair for pair in found if pair[0]), key=lambda pair: -pair[0])


@dataclass(frozen=True, kw_only=True)
class LabelCounts:
    """Rows of one of several labels: it is predicted where its probability is above 1/2.

    Args:
        label: word.
        tp: have it, and it is predicted.
        fp: do not have it, and it is predicted.
        fn: have it, and it is not predicted.
        tn: neither.
    """

    label: str
    tp: int
    fp: int
    fn: int
    tn: int


@dataclass(frozen=True, kw_only=True)
class Residuals:
    """Prediction less truth, in the unit of the target.

    Args:
        mean: 0 where neither too much nor too little is predicted.
        quantiles: (share, residual) from the smallest to the largest.
    """

    mean: float
    quantiles: tuple[tuple[float, float], ...]


@dataclass(frozen=True, kw_only=True)
class Worst:
    """A row with a high loss.

    Args:
        key: of the row.
        loss: of this row.
        truth: word, list of words, or number; None for a task of another kind.
        predicted: the same.
        probability: of the class predicted; of several labels, of each one predicted; None for numbers.
    """

    key: str
    loss: float
    truth: Any
    predicted: Any
    probability: Any


def mistakes(found: Labelled, words: Sequence[str]) -> Confusion | tuple[LabelCounts, ...] | Residuals | None:
    """What a task takes for what; None for a task of another kind.

    Args:
        found: at least one labelled row.
        words: of the classes.

    >>> from mmpipe.train.tasks import classification
    >>> found = Labelled(task=classification('kind', 3), rows=np.arange(2), output=np.float32([[0, 1, 0], [0, 1, 0]]),
    ...     target=np.int64([0, 1]), loss=np.zeros(2, np.float32))
    >>> mistakes(found, ['cat', 'dog', 'emu'])
    Confusion(classes=('cat', 'dog'), counts=((0, 1), (0, 1)), unseen=('emu',))
    """
    if isinstance(found.task, Classification):
        return _confusion(found.target.astype(np.int64), found.output.argmax(axis=1), words)
    if isinstance(found.task, Multilabel):
        target, predicted = found.target > 0, found.output > 0
        pairs = [(target & predicted), (~target & predicted), (target & ~predicted), (~target & ~predicted)]
        counts = np.stack([pair.sum(axis=0) for pair in pairs], axis=1).tolist()
        return tuple(
            LabelCounts(label=word, tp=tp, fp=fp, fn=fn, tn=tn)
            for word, (tp, fp, fn, tn) in zip(words, counts, strict=True)
        )
    if isinstance(found.task, Regression):
        residual = found.output.astype(np.float64) - found.target.astype(np.float64)
        values = np.quantile(residual, QUANTILES).tolist()
        return Residuals(mean=float(residual.mean()), quantiles=tuple(zip(QUANTILES, values, strict=True)))
    return None


def worst_rows(found: Labelled, keys: np.ndarray, words: Sequence[str], count: int) -> tuple[Worst, ...]:
    """The rows with the highest loss, the highest first; of a row that came several times, one.

    Args:
        found: labelled rows.
        keys: of all rows.
        words: of the classes.
        count: how many.

    >>> from mmpipe.train.tasks import regression
    >>> found = Labelled(task=regression('price'), rows=np.arange(2), output=np.float32([1, 2]),
    ...     target=np.float32([1, 4]), loss=np.float32([0, 4]))
    >>> worst_rows(found, np.array(['a', 'b'], dtype=object), [], 1)
    (Worst(key='b', loss=4.0, truth=4.0, predicted=2.0, probability=None),)
    """
    order = np.argsort(-found.loss, kind='stable')
    _, first = np.unique(found.rows[order], return_index=True)
    some = found.take(order[np.sort(first)[:count]])
    named = zip(keys[some.rows].tolist(), some.loss.tolist(), _said(some, words), strict=True)
    return tuple(
        Worst(key=key, loss=loss, truth=truth, predicted=predicted, probability=probability)
        for key, loss, (truth, predicted, probability) in named
    )


def _confusion(target: np.ndarray, predicted: np.ndarray, words: Sequence[str]) -> Confusion:
    there = np.union1d(target, predicted)
    row, column = np.searchsorted(there, target), np.searchsorted(there, predicted)
    size = len(there)
    counts = np.bincount(row * size + column, minlength=size * size).reshape(size, size)
    unseen = np.setdiff1d(np.arange(len(words)), target)
    return Confusion(
        classes=tuple(words[c] for c in there),
        counts=tuple(tuple(line) for line in counts.tolist()),
        unseen=tuple(words[c] for c in unseen),
    )


def _said(some: Labelled, words: Sequence[str]) -> list[tuple[Any, Any, Any]]:
    """(truth, prediction, probability) of each row."""
    if len(some) == 0:
        return []
    if isinstance(some.task, Classification):
        shares = probabilities(some)
        truths = some.target.astype(np.int64).tolist()
        named = zip(truths, shares.argmax(axis=1).tolist(), shares.max(axis=1).tolist(), strict=True)
        return [(words[truth], words[predicted], share) for truth, predicted, share in named]
    if isinstance(some.task, Multilabel):
        shares = probabilities(some)
        lines = []
        for target, share, logit in zip(some.target, shares, some.output, strict=True):
            said = np.flatnonzero(logit > 0).tolist()
            there = np.flatnonzero(target).tolist()
            lines.append(([words[c] for c in there], [words[c] for c in said], share[said].tolist()))
        return lines
    if isinstance(some.task, Regression):
        return [(t, p, None) for t, p in zip(some.target.tolist(), some.output.tolist(), strict=True)]
    return [(None, None, None)] * len(some)
