"""Whether probabilities are what they say: of the rows that are given 80 %, are 80 % right?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from mmpipe.evaluation.outputs import Labelled
from mmpipe.train.tasks import Classification

BINS = 15  # as in Guo et al. 2017


@dataclass(frozen=True, kw_only=True)
class Bin:
    """Rows whose probability lies between two bounds.

    Args:
        low: lower bound, outside but for 0.
        high: upper bound, inside.
        n: how many there are.
        said: their mean probability; None without rows.
        found: share of them that are right; None without rows.
    """

    low: float
    high: float
    n: int
    said: float | None
    found: float | None


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """How far probabilities are from frequencies.

    Of a classification, the probability of the class with the highest one, and whether that class is right. Of several
    labels, the probability of each label of each row, and whether the row has it.

    Args:
        ece: expected calibration error, sum over 15 bins of equal width of (share of rows) |right - said| (Guo et al.:
            On Calibration of Modern Neural Networks, ICML 2017, equation 3).
        ece_mass: the same over 15 bins with as many rows each, which does not depend on where bounds fall (Nguyen,
            O'Connor: Posterior calibration and exploratory analysis, EMNLP 2015, section 4.1).
        brier: mean squared error of the probabilities; of a classification summed over its classes, 0 to 2 (Brier:
            Verification of Forecasts, 1950, equation 2), of several labels the mean over them, 0 to 1.
        bins: of equal width, for a reliability diagram.
    """

    ece: float
    ece_mass: float
    brier: float
    bins: tuple[Bin, ...]


def probabilities(found: Labelled) -> np.ndarray:
    """Probabilities of the classes, float64 `[n, classes]`."""
    logits = torch.tensor(found.output, dtype=torch.float64)
    return (logits.softmax(1) if isinstance(found.task, Classification) else logits.sigmoid()).numpy()


def calibration(found: Labelled, *, bins: int = BINS) -> Calibration:
    """Calibration of labelled rows of a classification or of several labels.

    Args:
        found: at least one row.
        bins: how many.

    >>> from mmpipe.train.tasks import classification
    >>> found = Labelled(task=classification('kind', 2), rows=np.arange(2), output=np.zeros((2, 2), np.float32),
    ...     target=np.int64([0, 1]), loss=np.zeros(2, np.float32))
    >>> measured = calibration(found)  # 50 % said, and one of two right
    >>> measured.ece, measured.brier
    (0.0, 0.5)
    """
    shares = probabilities(found)
    if isinstance(found.task, Classification):
        target = found.target.astype(np.int64)
        said = shares.max(axis=1)
        right = shares.argmax(axis=1) == target
        brier = ((shares - np.eye(shares.shape[1])[target]) ** 2).sum(axis=1).mean()
    else:
        said, right = shares.ravel(), found.target.ravel() > 0
        brier = ((said - right) ** 2).mean()
    table = reliability(said, right, np.linspace(0, 1, bins + 1))
    return Calibration(
        ece=_error(table), ece_mass=error_by_mass(said, right, bins=bins), brier=float(brier), bins=table
    )


def reliability(said: np.ndarray, right: np.ndarray, bounds: np.ndarray) -> tuple[Bin, ...]:
    """What was said and what was found, by bins of what was said.

    Args:
        said: probabilities `[n]`.
        right: bool `[n]`.
        bounds: rising `[bins + 1]`, from 0 to 1.

    >>> reliability(np.array([0.25, 0.5, 0.9]), np.array([False, True, True]), np.array([0, 0.5, 1]))[0]
    Bin(low=0.0, high=0.5, n=2, said=0.375, found=0.5)
    """
    where = np.clip(np.searchsorted(bounds, said, side='left') - 1, 0, len(bounds) - 2)
    count = np.bincount(where, minlength=len(bounds) - 1)
    sums = [np.bincount(where, weights, len(bounds) - 1) for weights in (said, right.astype(np.float64))]
    return tuple(
        Bin(
            low=float(bounds[i]),
            high=float(bounds[i + 1]),
            n=int(n),
            said=float(sums[0][i] / n) if n else None,
            found=float(sums[1][i] / n) if n else None,
        )
        for i, n in enumerate(count)
    )


def error_by_mass(said: np.ndarray, right: np.ndarray, *, bins: int = BINS) -> float:
    """Expected calibration error over bins of as many rows each; equal probabilities may fall into two of them.

    >>> error_by_mass(np.array([0.5, 0.5]), np.array([True, False]), bins=1)
    0.0
    """
    order = np.argsort(said, kind='stable')
    parts = np.array_split(order, min(bins, len(order)))
    return float(sum(len(part) * abs(right[part].mean() - said[part].mean()) for part in parts) / len(order))


def _error(table: tuple[Bin, ...]) -> float:
    rows = sum(each.n for each in table)
    return float(sum(each.n * abs((each.found or 0) - (each.said or 0)) for each in table) / rows)
