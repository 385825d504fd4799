"""Random numbers: functions of seed, epoch, key and who asks, whatever else is in the batch."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmpipe.data.transforms import Draw

HASHES = st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=20).map(lambda each: np.array(each, dtype=np.uint64))


@settings(deadline=None, max_examples=60)
@given(HASHES, st.integers(0, 2**63), st.integers(0, 1000), st.randoms(use_true_random=False))
def test_a_sample_gets_the_same_numbers_in_any_batch_and_place(hashes, seed, epoch, random):
    order = np.array(random.sample(range(len(hashes)), random.randint(1, len(hashes))))
    whole = Draw(hashes, seed, epoch).fork('photo', 1).numbers(3, 5, len(hashes))
    part = Draw(hashes[order], seed, epoch).fork('photo', 1).numbers(3, 5, len(order))
    np.testing.assert_array_equal(part, whole[:, order])


@settings(deadline=None, max_examples=60)
@given(HASHES, st.integers(1, 30), st.integers(0, 29))
def test_asking_for_more_numbers_does_not_change_the_first(hashes, width, fewer):
    numbers = Draw(hashes).numbers(0, width, len(hashes))
    np.testing.assert_array_equal(numbers[:fewer], Draw(hashes).numbers(0, min(fewer, width), len(hashes)))
    assert ((numbers >= 0) & (numbers < 1)).all()


def test_seed_epoch_stream_name_and_place_give_other_numbers_without_correlation():
    hashes = np.arange(4000, dtype=np.uint64)
    draws = [
        Draw(hashes).numbers(0, 2, 4000),
        Draw(hashes, seed=1).numbers(0, 1, 4000),
        Draw(hashes, epoch=1).numbers(0, 1, 4000),
        Draw(hashes).numbers(1, 1, 4000),
        *(Draw(hashes).fork(*names).numbers(0, 1, 4000) for names in (('a',), ('b',), ('a', 0), ('a', 1))),
    ]
    numbers = np.concatenate(draws)
    # 4.5 standard deviations of the correlation, and of the mean, of 4,000 independent uniform numbers.
    correlation = np.corrcoef(numbers) - np.eye(len(numbers))
    assert np.abs(correlation).max() < 4.5 / 4000**0.5
    assert np.abs(numbers.mean(axis=1) - 0.5).max() < 4.5 * (1 / 12) ** 0.5 / 4000**0.5
    assert np.histogram(numbers, bins=16, range=(0, 1))[0].min() > 0.9 * numbers.size / 16


def test_without_keys_the_numbers_come_from_the_global_generator():
    torch.manual_seed(5)
    first = Draw().numbers(0, 2, 3)
    torch.manual_seed(5)
    np.testing.assert_array_equal(first, Draw().numbers(0, 2, 3))
    assert (first != Draw().numbers(0, 2, 3)).all()


def test_numbers_for_transforms_of_ones_own_lie_on_the_device():
    draw = Draw(np.arange(3, dtype=np.uint64))
    assert draw.uniform(0, 3, torch.device('meta')).device.type == 'meta'
    assert draw.uniform(0, 3, torch.device('cpu')).dtype == torch.float32
