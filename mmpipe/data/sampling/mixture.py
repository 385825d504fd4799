"""Several snapshots mixed by weights, so that every source goes through its rows pass after pass, over epochs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np

from mmpipe.data.many import ManyRows
from mmpipe.data.sampling.contract import Sampled
from mmpipe.data.sampling.draws import Source, drawn, shares
from mmpipe.data.sampling.weighted import check_samples
from mmpipe.errors import ConfigError, DataError
from mmpipe.shards import Rows, key_hash


def mixture(
    parts: Mapping[str, Rows],
    *,
    weights: Mapping[str, float] | None = None,
    samples: int | None = None,
    fields: Iterable[str] | None = None,
) -> Sampled:
    """Rows of several snapshots, and a sampling that mixes them; a loader takes both at once.

    Args:
        parts: rows by the names of their sources, such as `{'web': web.split('train'), 'books': ...}`.
        weights: share of each source in the samples, on any scale; by their sizes when None.
        samples: in an epoch; as many as all sources have rows when None.
        fields: names of the fields to have; those of all sources when None, missing where a source has not got one.

    Returns:
        `Sampled(rows, sampling)` of a `mmpipe.data.many.ManyRows` and a `Mixture`.

    Raises:
        ConfigError: weights for other names, or below 0, or all 0; names that cannot stand before a key.
        DataError: a source without rows, or fields that do not fit together.

    >>> from mmpipe.data.collate import example_rows
    >>> mixed = mixture({'web': example_rows(), 'books': example_rows()}, weights={'web': 3, 'books': 1}, samples=8)
    >>> keys = mixed.rows.keys[mixed.sampling.sequence(mixed.rows, seed=0, epoch=0)]
    >>> sorted(keys.tolist())    # six draws of web are three passes over its two rows
    ['books/a', 'books/b', 'web/a', 'web/a', 'web/a', 'web/b', 'web/b', 'web/b']
    """
    rows = ManyRows(parts, fields=fields)
    sampling = Mixture(weights=weights, samples=samples)
    sampling.draws(rows)
    return Sampled(rows, sampling)


@dataclass(frozen=True)
class Mixture:
    """Each source gets its share of an epoch by largest remainder, the same in every epoch, evenly interleaved.

    Draw k of a source, counted over all epochs, is row `k % N` of its pass `k // N`, and each pass is a full shuffle.
    So every row of a source comes once before any comes again, however small its share. Independent of where rows are
    stored and of the order in which the sources were named.

    Args:
        weights: as in `mixture`.
        samples: as in `mixture`.
    """

    _: KW_ONLY
    weights: Mapping[str, float] | None = None
    samples: int | None = None

    def __post_init__(self) -> None:
        check_samples(self.samples, 'mixture')
        if self.weights is not None:
            wrong = [name for name, weight in self.weights.items() if not (math.isfinite(weight) and weight >= 0)]
            if wrong or not any(self.weights.values()):
                raise ConfigError(
                    f'mixture(weights={dict(self.weights)}): weights are numbers from 0 up, at least one above 0.'
                )

    def sequence(self, rows: ManyRows, *, seed: int, epoch: int) -> np.ndarray:
        """int64 `[samples]`."""
        draws = self.draws(rows)
        sources = [
            Source(key_hash(name), np.flatnonzero(rows.sources == number), draws[name])
            for number, name in enumerate(rows.names)
        ]
        return drawn(rows.hashes, sources, seed=seed, epoch=epoch)

    def length(self, rows: ManyRows) -> int:
        """`samples`, or all rows."""
        return len(rows) if self.samples is None else self.samples

    def identity(self) -> dict[str, Any]:
        """As JSON."""
        weights = None if self.weights is None else {name: float(self.weights[name]) for name in sorted(self.weights)}
        return {'sampling': 'mixture', 'weights': weights, 'samples': self.samples}

    def draws(self, rows: ManyRows) -> dict[str, int]:
        """Samples of each source in an epoch.

        Raises:
            ConfigError: weights for other names than those of the sources.
            DataError: a source that is drawn from has no rows; rows that have no sources.
        """
        if not isinstance(rows, ManyRows):
            raise DataError(
                f'A Mixture draws from the sources of a ManyRows, and these are {type(rows).__name__} of one snapshot. '
                f'Make both together with mm.sampling.mixture.'
            )
        sizes = np.bincount(rows.sources, minlength=len(rows.names)).tolist()
        weights: Mapping[str, float] = self.weights or dict(zip(rows.names, sizes, strict=True))
        if set(weights) != set(rows.names):
            raise ConfigError(
                f'mixture: weights are given for {", ".join(sorted(weights))}, and the sources are '
                f'{", ".join(rows.names)}. Give each source a weight (0 to leave it out for now).'
            )
        if not any(sizes):
            raise DataError(f'None of {", ".join(rows.names)} has a row to draw. Check the split and the filter.')
        found = dict(zip(rows.names, shares(self.length(rows), [weights[name] for name in rows.names]), strict=True))
        for name, size in zip(rows.names, sizes, strict=True):
            if found[name] and not size:
                raise DataError(
                    f'{name!r} has no rows, and {found[name]:,} samples of each epoch are to come from it. Check its '
                    f'split and filter, or leave it out.'
                )
        return found
