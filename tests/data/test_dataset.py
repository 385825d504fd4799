"""One batch layout, out of every loader."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, ConcatDataset, SequentialSampler, Subset
from torch.utils.data import DataLoader as TorchDataLoader

from mmpipe.data import DataLoader, ShardDataset
from mmpipe.data.collate import collate
from mmpipe.errors import DataError


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name, value in a.items():
        if isinstance(value, dict):
            assert_same(value, b[name])
        elif isinstance(value, torch.Tensor):
            assert value.dtype == b[name].dtype
            assert torch.equal(value, b[name]), name
        else:
            assert list(value) == list(b[name])


def test_every_kind_of_field_has_its_place_in_the_batch(shop):
    batch = ShardDataset(shop.split('train'))[np.arange(10)]
    assert batch['photo'].shape == (10, 3, 16, 16)
    assert batch['photo'].dtype == torch.uint8
    assert batch['title'].shape == (10, 8)
    assert batch['frames'].shape == (10, int(batch['_length']['frames'].max()), 4)
    assert batch['price'].dtype == torch.float32
    assert batch['kind'].dtype == torch.int64
    assert batch['tags'].shape == (10, 4)
    assert len(batch['note']) == len(batch['raw']) == len(batch['_key']) == 10
    assert set(batch['_mask']) == set(shop.fields)


def test_what_is_missing_is_zeros_with_a_false_mask(shop):
    rows = shop.split('train')
    batch = ShardDataset(rows)[np.arange(len(rows))]
    for name in ('photo', 'title', 'frames', 'price', 'kind', 'tags'):
        mask = batch['_mask'][name]
        assert 0 < mask.sum() < len(rows)
        assert (batch[name][~mask] == 0).all()
    assert (batch['_length']['frames'][~batch['_mask']['frames']] == 0).all()


def test_torch_loaders_of_both_styles_give_the_batches_of_ours(shop):
    rows = shop.split('train')
    dataset = ShardDataset(rows)
    ours = list(DataLoader(rows, batch_size=32, device='cpu'))
    for batch in ours:
        present = batch.pop('_present')
        assert {name: index.tolist() for name, index in present.items()} == {
            name: mask.nonzero().flatten().tolist() for name, mask in batch['_mask'].items()
        }
    plain = list(TorchDataLoader(dataset, batch_size=32))
    batched = list(
        TorchDataLoader(dataset, sampler=BatchSampler(SequentialSampler(dataset), 32, False), batch_size=None)
    )
    for one, two, three in zip(ours, plain, batched, strict=True):
        assert_same(one, two)
        assert_same(one, three)


def test_samples_read_one_by_one_collate_too(shop):
    dataset = ShardDataset(shop.split('train'), fields=['frames', 'kind', 'note'])
    joined = ConcatDataset([dataset, Subset(dataset, [3, 1])])
    batch = next(iter(TorchDataLoader(joined, batch_size=len(joined), collate_fn=collate)))
    again = ShardDataset(shop.split('train'), fields=['frames', 'kind', 'note'])[[*range(len(dataset)), 3, 1]]
    assert_same(batch, again)


@pytest.mark.filterwarnings('error')
def test_a_dataset_survives_pickling_and_negative_positions(shop):
    dataset = pickle.loads(pickle.dumps(ShardDataset(shop.split('val'))))
    assert dataset[-1]['_key'] == dataset[len(dataset) - 1]['_key']
    assert [sample['_key'] for sample in dataset] == list(shop.split('val').keys)
    with pytest.raises(IndexError):
        dataset[len(dataset)]


def test_a_field_that_is_not_there_is_named_with_those_that_are(shop):
    with pytest.raises(DataError, match=r"no field 'foto'.*photo"):
        ShardDataset(shop.rows(), fields=['foto'])


def test_no_rows_is_an_error_that_names_snapshot_and_splits(shop):
    with pytest.raises(DataError, match=r'no rows to load.*train'):
        ShardDataset(shop.rows().take([]))
    with pytest.raises(DataError, match='test'):
        shop.split('test')
