from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mmpipe.functions import split_of

split = split_of.py_fn
shares = st.floats(0, 0.5)


@given(st.text(), shares, shares, st.integers())
def test_a_key_has_one_split(key, val, test, seed):
    assert split(key, val=val, test=test, seed=seed) in ('train', 'val', 'test')
    assert split(key, val=val, test=test, seed=seed) == split(key, val=val, test=test, seed=seed)


@given(st.text(), shares, shares, shares)
def test_a_larger_val_never_takes_from_test(key, val, more, test):
    before, after = split(key, val=min(val, more), test=test), split(key, val=max(val, more), test=test)
    assert (before, after) in {('train', 'train'), ('train', 'val'), ('val', 'val'), ('test', 'test')}


@given(st.text())
def test_shares_of_nothing_and_everything(key):
    assert split(key, val=0.0, test=0.0) == 'train'
    assert split(key, val=1.0, test=0.0) == 'val'
    assert split(key, val=0.0, test=1.0) == 'test'


def test_shares_hold_over_many_keys_and_seeds_are_independent():
    found = [[split(f'key-{n}', val=0.2, test=0.1, seed=seed) for n in range(5000)] for seed in (0, 1)]
    for splits in found:
        assert abs(splits.count('val') / 5000 - 0.2) < 0.02
        assert abs(splits.count('test') / 5000 - 0.1) < 0.02
    both = sum(a == b == 'test' for a, b in zip(*found, strict=True))
    assert abs(both / 5000 - 0.01) < 0.006


def test_splits_never_change():
    # Moving a stored row to another split would leak test data into training.
    assert [split(key) for key in ('sku-0', 'sku-1', 'Zoë', '')] == ['val', 'train', 'test', 'train']
