"""The index finds the pairs that comparing every pair finds."""

from __future__ import annotations

import numpy as np
import pytest

from mmpipe.leaks import nearby
from mmpipe.leaks.nearby import near_pairs


def by_hand(hashes, splits, near):
    found = {}
    for i in range(len(hashes)):
        for j in range(i + 1, len(hashes)):
            distance = (int(hashes[i]) ^ int(hashes[j])).bit_count()
            if distance <= near and (int(splits[i]) | int(splits[j])).bit_count() > 1:
                found[i, j] = distance
    return found


@pytest.mark.parametrize('near', range(16))
def test_pairs_are_those_of_all_comparisons(near, monkeypatch):
    monkeypatch.setattr(nearby, 'CHUNK_PAIRS', 50)  # so that many chunks are cut
    rng = np.random.default_rng(near)
    centres = rng.integers(0, 2**64, 12, dtype=np.uint64)
    turned = np.array([sum(1 << int(b) for b in rng.choice(64, rng.integers(0, near + 2), False)) for _ in range(120)],
                      dtype=np.uint64)  # fmt: skip
    hashes = np.unique(centres[rng.integers(0, 12, 120)] ^ turned)
    splits = np.uint64(1) << rng.integers(0, 2, len(hashes)).astype(np.uint64)
    pairs, distances, cut = near_pairs(hashes, splits, near, most=10_000)
    assert dict(zip(map(tuple, pairs.tolist()), distances.tolist(), strict=True)) == by_hand(hashes, splits, near)
    assert not cut


def test_few_pairs_are_looked_at_where_hashes_are_spread():
    rng = np.random.default_rng(0)
    hashes = np.unique(rng.integers(0, 2**64, 20_000, dtype=np.uint64))
    looked = sum(len(first) for first, _ in nearby._candidates(hashes, 8))
    assert looked < len(hashes) ** 2 / 2 / 300


def test_a_search_that_finds_too_much_ends():
    hashes = np.arange(1 << 12, dtype=np.uint64)  # all within 12 bits of each other
    splits = np.uint64(1) << (hashes % np.uint64(2))
    pairs, _, cut = near_pairs(hashes, splits, 12, most=1000)
    assert len(pairs) == 1000
    assert cut


def test_no_hashes_have_no_pairs():
    none = np.zeros(0, dtype=np.uint64)
    pairs, distances, cut = near_pairs(none, none, 8, most=10)
    assert (pairs.shape, distances.shape, cut) == ((0, 2), (0,), False)
