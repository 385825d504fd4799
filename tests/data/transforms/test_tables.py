"""Numbers by the training split's mean and deviation: computed once, nulls left out, missing values 0."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmpipe.data import transforms
from mmpipe.data.transforms.tables import Standardise
from mmpipe.errors import ConfigError, DataError
from mmpipe.shards import Block, Field, write_snapshot


def read_all(rows, name):
    values, valid = rows.read(name)
    return values, valid


@pytest.mark.parametrize('name', ['weight', 'title', 'mel'])
@pytest.mark.parametrize('chunk', [1, 1 << 20])
def test_the_training_rows_come_out_with_mean_0_and_deviation_1(shop, name, chunk, monkeypatch):
    monkeypatch.setattr('mmpipe.data.transforms.tables.CHUNK_BYTES', chunk)
    rows = shop.split('train')
    values, valid = read_all(rows, name)
    made = transforms.standardise(rows, [name])[name]
    done = made(torch.from_numpy(values), mask=torch.from_numpy(valid))
    assert done.dtype == torch.float32
    assert valid.any()
    assert not valid.all()
    assert (done[~torch.from_numpy(valid)] == 0).all()
    present = done[torch.from_numpy(valid)].double()
    torch.testing.assert_close(present.mean(0), torch.zeros_like(present[0]), rtol=0, atol=1e-5)
    torch.testing.assert_close(present.std(0, correction=0), torch.ones_like(present[0]), rtol=0, atol=1e-4)


def test_other_splits_are_changed_by_the_training_splits_numbers(shop):
    train, _ = read_all(shop.split('train'), 'price')
    known = shop.split('train').read('price')[1]
    made = transforms.standardise(shop.split('train'))
    assert set(made) == {'weight', 'price'}
    values, _ = read_all(shop.split('val'), 'price')
    expected = (values - train[known].astype(np.float64).mean()) / train[known].astype(np.float64).std()
    np.testing.assert_allclose(made['price'](torch.from_numpy(values)).numpy(), expected, rtol=1e-4, atol=1e-4)


def test_the_padding_of_a_ragged_field_stays_0(shop):
    rows = shop.split('train')
    made = transforms.standardise(rows, ['frames'])['frames']
    values, valid = rows.read('frames')
    lengths = torch.tensor([len(value) for value in values])
    padded = torch.zeros(len(values), int(lengths.max()), 4)
    for row, value in zip(padded, values, strict=True):
        row[: len(value)] = torch.from_numpy(value.copy())
    batch = {'frames': padded, '_length': {'frames': lengths}, '_mask': {'frames': torch.from_numpy(valid)}}
    after = transforms.apply_all({'frames': made}, batch, transforms.Draw())
    joined = torch.cat([row[:length] for row, length in zip(after['frames'], lengths, strict=True)])
    torch.testing.assert_close(joined.mean(0), torch.zeros(4), rtol=0, atol=1e-5)
    torch.testing.assert_close(joined.std(0, correction=0), torch.ones(4), rtol=0, atol=1e-5)
    outside = torch.arange(padded.shape[1]) >= lengths[:, None]
    assert (after['frames'][outside] == 0).all()
    assert torch.equal(after['_length']['frames'], lengths)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 30), st.integers(0, 100), st.booleans())
def test_large_numbers_keep_their_small_differences(count, seed, whole):
    stored = np.random.default_rng(seed).integers(0, 50, count) + 1_700_000_000
    values = torch.from_numpy(stored if whole else stored.astype(np.float64))
    made = Standardise(stored.mean(), stored.std())
    expected = (stored - stored.mean()) / (stored.std() or 1)
    np.testing.assert_allclose(made(values).numpy(), expected, rtol=1e-4, atol=1e-5)


def test_a_feature_that_never_varies_becomes_0(tmp_path):
    fields = [Field(name='x', kind='scalar', dtype='float64')]
    rows = write_snapshot(tmp_path, fields, Block(keys=['a', 'b'], columns={'x': [4.0, 4.0]})).rows()
    assert transforms.standardise(rows)['x'](torch.tensor([4.0, 5.0])).tolist() == [0.0, 1.0]


@pytest.mark.parametrize('bad', [float('nan'), float('inf')])
def test_values_that_are_not_finite_are_named(tmp_path, bad):
    fields = [Field(name='x', kind='tensor', dtype='float32', shape=(1,))]
    columns = {'x': [np.ones(1, dtype=np.float32), np.full(1, bad, dtype=np.float32)]}
    rows = write_snapshot(tmp_path, fields, Block(keys=['a', 'b'], columns=columns)).rows()
    with pytest.raises(DataError, match=r"field 'x' .* NaN"):
        transforms.standardise(rows, ['x'])


def test_fields_without_numbers_and_batches_of_other_shapes_are_refused(shop):
    rows = shop.split('train')
    with pytest.raises(ConfigError, match='label'):
        transforms.standardise(rows, ['kind'])
    with pytest.raises(DataError, match="no field 'nothing'"):
        transforms.standardise(rows, ['nothing'])
    with pytest.raises(DataError, match=r'\[8\]'):
        transforms.standardise(rows, ['title'])['title'](torch.zeros(3, 7))


def test_nothing_is_asked_back_from_the_device():
    made = Standardise(np.zeros(4), np.ones(4), takes_lengths=True)
    away = torch.empty(2, 3, 4, device='meta')
    lengths = torch.empty(2, dtype=torch.int64, device='meta')
    done, _ = made(away, mask=torch.empty(2, dtype=torch.bool, device='meta'), lengths=lengths)
    assert done.shape == (2, 3, 4)
