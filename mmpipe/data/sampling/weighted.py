"""Samplings in which rows come as often as their weights say: by a field, by an array, or the same for every class."""

from __future__ import annotations

import hashlib
import math
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal

import numpy as np

from mmpipe.data.order import mix, priorities, splitmix64
from mmpipe.data.sampling.contract import Selection, first_few
from mmpipe.errors import ConfigError, DataError

EXTRA = 0x65787472  # keeps the draw of who gets one more apart from orders


@dataclass(frozen=True, eq=False)
class Weighted:
    """Row i comes `n_i = samples * w_i / sum(w)` times an epoch, rounded up or down, and `samples` rows in all.

    Which rows are rounded up is drawn anew each epoch by systematic resampling, so that each comes `n_i` times on
    average and no row with `n_i >= 1` is ever left out, as draws with replacement would. Copies are shuffled.
    With equal weights it is `Shuffle`. Independent of where rows are stored.

    Args:
        weights: name of a number field, or an array with one per row, in the order of the rows.
        samples: in an epoch; as many as there are rows when None.

    Raises:
        ConfigError: fewer than one sample.
        DataError: (when used) weights that are missing, negative or not finite, none above zero, or too few.

    >>> from mmpipe.data.collate import example_rows
    >>> Weighted([3, 1], samples=8).sequence(example_rows(), seed=0, epoch=0).tolist().count(0)
    6
    """

    weights: str | np.ndarray | list[float]
    _: KW_ONLY
    samples: int | None = None

    def __post_init__(self) -> None:
        check_samples(self.samples, 'Weighted')

    def sequence(self, rows: Selection, *, seed: int, epoch: int) -> np.ndarray:
        """int64 `[samples]`."""
        return resample(rows.hashes, self._values(rows), self.length(rows), seed=seed, epoch=epoch)

    def length(self, rows: Selection) -> int:
        """`samples`, or all rows."""
        return len(rows) if self.samples is None else self.samples

    def identity(self) -> dict[str, Any]:
        """As JSON; of an array the digest of its sorted values, which does not depend on where rows are stored."""
        by = self.weights if isinstance(self.weights, str) else digest_of(self.weights)
        return {'sampling': 'weighted', 'weights': by, 'samples': self.samples}

    def _values(self, rows: Selection) -> np.ndarray:
        values = numbers_of(rows, self.weights, 'weights')
        wrong = np.flatnonzero(~(np.isfinite(values) & (values >= 0)))
        if len(wrong):
            raise DataError(
                f'{len(wrong):,} rows have a weight that is missing, negative or not finite: '
                f'{first_few(rows.keys[wrong[:3]], len(wrong))}. Weights are numbers from 0 up; correct them, or leave '
                f'these rows out with rows.take(...).'
            )
        if len(values) and not values.max() > 0:
            raise DataError('All weights are 0, so there is no row to draw. Give at least one row a weight above 0.')
        return values


@dataclass(frozen=True)
class Balanced:
    """The classes of a field come equally often, each row of a class as often as the others of it.

    Rounding is that of `Weighted`: each row comes floor(n) or ceil(n) times an epoch.

    Args:
        field: a label, string or whole-number field. A class is a value that some row has.
        samples: in an epoch; as many as there are rows when None.
        power: a class of c rows comes in proportion to `c ** power`: 0 for all equally often, 1 for as often as
            stored, 0.5 for the square root (Mahajan et al., "Exploring the limits of weakly supervised pretraining",
            ECCV 2018).
        missing: rows without a label: 'keep' leaves them their share of the epoch, as they may teach other tasks;
            'drop' visits none of them.

    Raises:
        ConfigError: an option that is not possible.
        DataError: (when used) a field of another kind, or no row with a label.

    >>> from mmpipe.data.collate import example_rows
    >>> rows = example_rows().take([0, 0, 0, 1])    # dog, dog, dog, cat
    >>> np.bincount(Balanced('kind', samples=12).sequence(rows, seed=0, epoch=0)).tolist()
    [2, 2, 2, 6]
    """

    field: str
    _: KW_ONLY
    samples: int | None = None
    power: float = 0.0
    missing: Literal['keep', 'drop'] = 'keep'

    def __post_init__(self) -> None:
        check_samples(self.samples, 'Balanced')
        if self.missing not in ('keep', 'drop') or not math.isfinite(self.power):
            raise ConfigError(
                f'Balanced(power={self.power}, missing={self.missing!r}): power is a number such as 0 or 0.5, and '
                f"missing one of 'keep' and 'drop'."
            )

    def sequence(self, rows: Selection, *, seed: int, epoch: int) -> np.ndarray:
        """int64 `[samples]`."""
        return resample(rows.hashes, self.weights(rows), self.length(rows), seed=seed, epoch=epoch)

    def length(self, rows: Selection) -> int:
        """`samples`, or all rows."""
        return len(rows) if self.samples is None else self.samples

    def identity(self) -> dict[str, Any]:
        """As JSON."""
        return {
            'sampling': 'balanced', 'field': self.field, 'samples': self.samples, 'power': self.power,
            'missing': self.missing,
        }  # fmt: skip

    def weights(self, rows: Selection) -> np.ndarray:
        """How often each row comes in an epoch of as many samples as rows, float64 `[N]`; unlabelled rows once."""
        field = rows.fields.get(self.field)
        if field is None or not (field.kind in ('label', 'string') or (field.kind, field.dtype) == ('scalar', 'int64')):
            what = 'there is no such field' if field is None else f'it is of kind {field.kind} ({field.dtype})'
            raise DataError(
                f'Balanced({self.field!r}) needs a label, string or whole-number field, and {what}; there are '
                f'{", ".join(rows.fields)}. Name another field, or give Weighted(...) weights of your own.'
            )
        values, valid = rows.read(self.field)
        if not valid.any():
            raise DataError(
                f'No row has a value of {self.field!r}, so there are no classes to balance. Check the view, or leave '
                f'the sampling out.'
            )
        labelled = np.asarray(values)[valid]
        _, code, counts = np.unique(labelled, return_inverse=True, return_counts=True)
        share = counts**self.power
        share = share / math.fsum(share) * len(labelled)
        weights = np.full(len(valid), float(self.missing == 'keep'))
        weights[valid] = (share / counts)[code]
        return weights


def resample(hashes: np.ndarray, weights: np.ndarray, samples: int, *, seed: int, epoch: int) -> np.ndarray:
    """Positions of rows, each floor(n) or ceil(n) times where n is its share of the samples, shuffled.

    Systematic resampling: rows in random order lie end to end, each as long as the fraction of its n; it comes once
    more where one of the points u, u + 1, u + 2, ... falls on it. Source: Madow, "On the theory of systematic sampling,
    II", Annals of Mathematical Statistics 20, 1949.

    Args:
        hashes: uint64 `[N]`.
        weights: float64 `[N]`, from 0 up, not all 0.
        samples: how many positions.
        seed: of the run.
        epoch: from 0.

    Returns:
        int64 `[samples]`.

    >>> resample(np.arange(3, dtype=np.uint64), np.array([0.0, 1.0, 1.0]), 4, seed=0, epoch=0).tolist().count(2)
    2
    """
    if not len(weights):
        return np.zeros(0, dtype=np.int64)
    first = priorities(hashes, seed, epoch)
    scaled = weights / weights.max()  # so that no sum overflows
    share = scaled / math.fsum(scaled) * samples  # exactly rounded, whatever the order of the rows
    near = np.rint(share)  # so that 3 is not 2.999
    share = np.where(np.abs(share - near) <= 1e-12 * np.maximum(near, 1), near, share)
    counts = np.floor(share).astype(np.int64)
    more = samples - int(counts.sum())
    order = np.argsort(splitmix64(first ^ np.uint64(EXTRA)), kind='stable')
    order = order[share[order] > counts[order]]
    ends = np.cumsum((share - counts)[order])
    point = (mix(EXTRA, seed, epoch) >> 40) * 2.0**-24  # few enough bits that adding it to a whole number is exact
    if len(ends):
        ends = np.minimum(ends * (more / ends[-1]), more)  # equal up to rounding
        ends[-1] = more
        counts[order] += np.diff(np.floor(ends + point), prepend=0.0).astype(np.int64)
    copies = np.repeat(np.arange(len(counts)), counts)
    starts = np.cumsum(counts) - counts
    number = (np.arange(len(copies)) - starts[copies]).astype(np.uint64)
    # The first copy of a row has the priority that `epoch_order` gives it, each further one a priority of its own.
    again = splitmix64(first[copies] + number * np.uint64(0x9E3779B97F4A7C15))
    return copies[np.argsort(np.where(number == 0, first[copies], again), kind='stable')]


def numbers_of(rows: Selection, given: Any, what: str) -> np.ndarray:
    """One number per row: values of a scalar field (nan where missing), or a given array of the right length.

    Raises:
        DataError: no such number field, or an array of another length.
    """
    if isinstance(given, str):
        field = rows.fields.get(given)
        if field is None or field.kind != 'scalar':
            has = ', '.join(name for name, each in rows.fields.items() if each.kind == 'scalar') or 'none'
            raise DataError(
                f'{what}={given!r} names no number field; number fields are: {has}. Name one of them, or pass an array.'
            )
        values, valid = rows.read(given)
        return np.where(valid, values.astype(np.float64), np.nan)
    values = np.asarray(given, dtype=np.float64)
    if values.shape != (len(rows),):
        raise DataError(
            f'{what} is an array of shape {list(values.shape)} for {len(rows):,} rows: give one number per row, in '
            f'their order.'
        )
    return values


def digest_of(values: Any) -> str:
    """Digest of some numbers whatever their order: 16 hexadecimal characters.

    >>> digest_of([1, 2]) == digest_of([2, 1]), digest_of([1, 2]) == digest_of([1, 3])
    (True, False)
    """
    return hashlib.blake2b(np.sort(np.asarray(values, dtype=np.float64)).tobytes(), digest_size=8).hexdigest()


def check_samples(samples: int | None, who: str) -> None:
    """Refuse an epoch without samples.

    Raises:
        ConfigError: it is one.
    """
    if samples is not None and samples < 1:
        raise ConfigError(f'{who}(samples={samples}): an epoch has at least 1 sample; None for one per row.')
