"""Two rows into one: pixels and targets by the same share, and rows that lack anything left alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmpipe.data import transforms
from mmpipe.data.transforms import Draw
from mmpipe.data.transforms.mixing import beta_quantile
from mmpipe.errors import ConfigError, DataError

TARGETS = {'kind': 3, 'tags': None, 'price': None}


def batch(count, seed=0, holes=0.0):
    rng = np.random.default_rng(seed)
    made = {
        'photo': torch.from_numpy(rng.normal(size=(count, 3, 7, 9)).astype(np.float32)),
        'kind': torch.from_numpy(rng.integers(0, 3, count)),
        'tags': torch.from_numpy(rng.integers(0, 2, (count, 4), dtype=np.uint8)),
        'price': torch.from_numpy(rng.normal(size=count)),
    }
    return {**made, '_mask': {name: torch.from_numpy(rng.random(count) >= holes) for name in made}}


def soft(values, name):
    return torch.nn.functional.one_hot(values, 3).float() if name == 'kind' else values.float()


def draw_of(count):
    return Draw(np.arange(count, dtype=np.uint64) * np.uint64(7919))


def alone(given, row):
    return not all(mask[row] and mask[row - 1] for mask in given['_mask'].values())


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 8), st.integers(0, 100), st.sampled_from([0.0, 0.2]), st.floats(0.1, 4))
def test_mixup_takes_the_same_share_of_pixels_and_targets(count, seed, holes, alpha):
    given = batch(count, seed, holes)
    mixed = transforms.mixup('photo', TARGETS, alpha=alpha)(batch(count, seed, holes), draw=draw_of(count))
    shares = beta_quantile(draw_of(count).numbers(0, 2, count)[1], alpha)
    for row in range(count):
        share = 1.0 if alone(given, row) else float(shares[row])
        for name in ('photo', *TARGETS):
            values = soft(given[name], name)
            expected = share * values[row] + (1 - share) * values[row - 1]
            torch.testing.assert_close(mixed[name][row], expected, rtol=1e-4, atol=1e-4)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 8), st.integers(0, 100), st.sampled_from([0.0, 0.2]), st.floats(0.1, 4))
def test_cutmix_weighs_targets_by_the_pixels_that_are_left(count, seed, holes, alpha):
    given = batch(count, seed, holes)
    mixed = transforms.cutmix('photo', TARGETS, alpha=alpha)(batch(count, seed, holes), draw=draw_of(count))
    shares = beta_quantile(draw_of(count).numbers(0, 2, count)[1], alpha)
    middles = draw_of(count).numbers(1, 2, count)
    for row in range(count):
        image = given['photo'][row].clone()
        if not alone(given, row):
            # As torchvision 0.29 `CutMix.make_params`, with these numbers instead of its own.
            x, y, half = int(middles[0, row] * 9), int(middles[1, row] * 7), 0.5 * (1 - shares[row]) ** 0.5
            left, right = max(x - int(half * 9), 0), min(x + int(half * 9), 9)
            top, bottom = max(y - int(half * 7), 0), min(y + int(half * 7), 7)
            image[:, top:bottom, left:right] = given['photo'][row - 1][:, top:bottom, left:right]
            share = 1 - (right - left) * (bottom - top) / 63
        else:
            share = 1.0
        assert torch.equal(mixed['photo'][row], image)
        for name in TARGETS:
            values = soft(given[name], name)
            expected = share * values[row] + (1 - share) * values[row - 1]
            torch.testing.assert_close(mixed[name][row], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('alpha', [0.05, 0.2, 0.5, 1.0, 3.0, 20.0])
def test_shares_are_distributed_as_beta(alpha):
    beta = pytest.importorskip('scipy.stats').beta
    numbers = np.linspace(0, 1, 1001)[:-1]
    np.testing.assert_allclose(beta_quantile(numbers, alpha), beta.ppf(numbers, alpha, alpha), rtol=0, atol=2e-4)


@pytest.mark.parametrize('make', [transforms.mixup, transforms.cutmix])
def test_a_probability_of_0_leaves_rows_alone_with_soft_targets(make):
    given = batch(5)
    after = make('photo', {'kind': 3}, probability=0.0)(batch(5), draw=draw_of(5))
    assert torch.equal(after['photo'], given['photo'])
    assert torch.equal(after['kind'], soft(given['kind'], 'kind'))


def test_mixing_can_be_repeated():
    both = [transforms.mixup('photo', {'kind': 3}, probability=0.5), transforms.cutmix('photo', {'kind': 3})]
    after = transforms.apply_all({'*': both}, batch(6), draw_of(6))
    torch.testing.assert_close(after['kind'].sum(1), torch.ones(6))


@pytest.mark.parametrize('make', [transforms.mixup, transforms.cutmix])
def test_nothing_is_asked_back_from_the_device(make):
    """A tensor without data has no number to give: asking for one would be an error."""
    given = batch(4)
    away = {name: value.to('meta') for name, value in given.items() if name != '_mask'}
    away['_mask'] = {name: mask.to('meta') for name, mask in given['_mask'].items()}
    after = make('photo', TARGETS)(away, draw=draw_of(4))
    assert after['kind'].shape == (4, 3)
    empty = {name: value[:0] for name, value in given.items() if name != '_mask'}
    assert make('photo', TARGETS)({**empty, '_mask': {}}, draw=draw_of(0))['kind'].shape == (0, 3)


def test_what_cannot_be_mixed_is_refused():
    given = batch(4)
    with pytest.raises(DataError, match=r'mm\.transforms\.image'):
        transforms.mixup('photo', {})({**given, 'photo': given['photo'].to(torch.uint8)}, draw=draw_of(4))
    with pytest.raises(DataError, match='several labels'):
        transforms.mixup('photo', {'tags': 4})(given, draw=draw_of(4))
    for options in ({'alpha': 0}, {'probability': 2}):
        with pytest.raises(ConfigError, match='alpha'):
            transforms.cutmix('photo', {}, **options)
    with pytest.raises(ConfigError, match='one class'):
        transforms.mixup('photo', {'kind': 0})
