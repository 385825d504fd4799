"""Draws from several sources of rows, each in passes of its own that go on over epochs, interleaved evenly.

source a, 3 draws an epoch of 2 rows     epoch 0: a1 a0 a0 | epoch 1: a1 a1 a0      passes of two
source b, 1 draw an epoch of 3 rows      epoch 0: b2       | epoch 1: b0
the sequence                             a1 b2 a0 a0       | a1 a1 a0 b0
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmpipe.data.order import mix, pass_order, splitmix64

SLOTS = 0x736C6F74  # keeps these numbers apart from those of orders


@dataclass(frozen=True)
class Source:
    """Some of the rows, and how often one is drawn.

    Args:
        salt: of its name, so that sources are drawn independently.
        positions: int64 `[N]` of its rows, at least one where any is drawn.
        draws: per epoch.
    """

    salt: int
    positions: np.ndarray
    draws: int


def drawn(hashes: np.ndarray, sources: Sequence[Source], *, seed: int, epoch: int) -> np.ndarray:
    """The sequence of an epoch. In draw k of a source, over all epochs, comes row `k % N` of its pass `k // N`.

    Args:
        hashes: uint64 of all rows.
        sources: in an order that does not depend on how they were given.
        seed: of the run.
        epoch: from 0.

    Returns:
        int64 positions, as many as there are draws.

    >>> sources = [Source(1, np.array([0, 1]), 4), Source(2, np.array([2]), 1)]
    >>> sorted(drawn(np.arange(3, dtype=np.uint64), sources, seed=0, epoch=0).tolist())
    [0, 0, 1, 1, 2]
    """
    slots = interleave([source.draws for source in sources], [source.salt for source in sources], seed, epoch)
    out = np.empty(len(slots), dtype=np.int64)
    for number, source in enumerate(sources):
        if source.draws:
            mine = hashes[source.positions]
            draws = pass_order(mine, mix(seed, source.salt), epoch * source.draws, source.draws)
            out[slots == number] = source.positions[draws]
    return out


def interleave(counts: Sequence[int], salts: Sequence[int], seed: int, epoch: int) -> np.ndarray:
    """Which source each slot of an epoch is of.

    Draw j of n lies at a random place of the j-th of n equal parts of the epoch. So any stretch of it holds the sources
    in their shares, to about one draw each, where a shuffle would be off by the square root of that number.

    Args:
        counts: draws of each source.
        salts: one per source.
        seed: of the run.
        epoch: from 0.

    Returns:
        int64 `[sum(counts)]`, numbers of sources.

    >>> np.bincount(interleave([6, 2], [1, 2], seed=0, epoch=0)[:4]).tolist()
    [3, 1]
    """
    places, numbers = [], []
    for number, (count, salt) in enumerate(zip(counts, salts, strict=True)):
        slots = np.arange(count, dtype=np.uint64)
        jitter = (splitmix64(slots ^ np.uint64(mix(SLOTS, seed, epoch, salt))) >> np.uint64(11)) * 2.0**-53
        places.append((slots + jitter) / max(count, 1))
        numbers.append(np.full(count, number))
    if not places:
        return np.zeros(0, dtype=np.int64)
    return np.concatenate(numbers)[np.argsort(np.concatenate(places), kind='stable')]


def shares(total: int, weights: Sequence[float]) -> list[int]:
    """Whole numbers in the proportion of weights, by largest remainder; the earlier one where two are equal.

    >>> shares(10, [1, 1, 1])
    [4, 3, 3]
    """
    whole = math.fsum(weights)
    exact = [total * (weight / whole) for weight in weights]
    found = [math.floor(value) for value in exact]
    rest = sorted(range(len(exact)), key=lambda i: found[i] - exact[i])
    for i in rest[: total - sum(found)]:
        found[i] += 1
    return found
