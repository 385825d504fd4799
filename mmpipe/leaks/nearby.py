"""Pairs of 64-bit hashes that differ in few bits, found without comparing every pair.

Multi-index hashing (Norouzi, Punjani and Fleet, "Fast exact search in Hamming space with multi-index hashing", 2014):
of four bands of 16 bits, two hashes that differ in d bits differ in at most d / 4 in one, so only hashes that share
such a band, or one with few bits turned, are compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import numpy as np

BANDS, BITS = 4, 16
FARTHEST = 15
CHUNK_PAIRS = 1 << 21


def near_pairs(hashes: np.ndarray, splits: np.ndarray, near: int, *, most: int) -> tuple[np.ndarray, np.ndarray, bool]:
    """Pairs of hashes within a distance whose rows lie in more than one split.

    Args:
        hashes: different hashes, uint64 `[n]`.
        splits: the splits in which each occurs, as bits, uint64 `[n]`.
        near: largest Hamming distance, 0 to 15.
        most: how many pairs to find at most, so that images that are all alike end the search, not the memory.

    Returns:
        Pairs, int64 `[m, 2]` with the smaller index first, in order; their distances `[m]`; whether there may be more.

    >>> near_pairs(np.array([0, 1, 255], np.uint64), np.array([1, 2, 2], np.uint64), 2, most=10)
    (array([[0, 1]]), array([1], dtype=uint8), False)
    """
    found = [np.zeros(0, dtype=np.int64)]
    total, cut = 0, False
    for first, second in _candidates(hashes, near):
        both = splits[first] | splits[second]
        kept = (np.bitwise_count(hashes[first] ^ hashes[second]) <= near) & (both & (both - np.uint64(1)) != 0)
        first, second = first[kept], second[kept]
        found.append(np.minimum(first, second) * len(hashes) + np.maximum(first, second))
        total += len(found[-1])
        if total > most * BANDS:  # each pair is found in four bands at most
            cut = True
            break
    pairs = np.unique(np.concatenate(found))
    cut |= len(pairs) > most
    pairs = np.stack(np.divmod(pairs[:most], max(len(hashes), 1)), axis=1)
    return pairs, np.bitwise_count(hashes[pairs[:, 0]] ^ hashes[pairs[:, 1]]), cut


def _candidates(hashes: np.ndarray, near: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs with a band in common, or nearly: int64 arrays of at most about `CHUNK_PAIRS`."""
    for band in range(BANDS):
        values = ((hashes >> np.uint64(BITS * band)) & np.uint64((1 << BITS) - 1)).astype(np.int64)
        order = np.argsort(values, kind='stable')
        bounds = np.searchsorted(values[order], np.arange((1 << BITS) + 1))
        # Of d = 4 a + b bits, a band beyond the first b + 1 has at most a - 1 unless an earlier one has a or less.
        radius = near // BANDS - (band > near % BANDS)
        for turned in (bits for size in range(radius + 1) for bits in combinations(range(BITS), size)):
            flip = sum(1 << bit for bit in turned)
            # Each pair of buckets once: from the one whose highest turned bit is 0.
            asking = np.arange(len(hashes)) if not turned else np.flatnonzero(values >> turned[-1] & 1 == 0)
            bucket = values[asking] ^ flip
            counts = bounds[bucket + 1] - bounds[bucket]
            ends = np.cumsum(counts)
            start = 0
            while start < len(asking):
                before = ends[start - 1] if start else 0
                stop = max(start + 1, int(np.searchsorted(ends, before + CHUNK_PAIRS, side='right')))
                count = counts[start:stop]
                skipped = bounds[bucket[start:stop]] - (np.cumsum(count) - count)
                first = np.repeat(asking[start:stop], count)
                second = order[np.arange(len(first)) + np.repeat(skipped, count)]
                yield (first, second) if turned else (first[first < second], second[first < second])
                start = stop
