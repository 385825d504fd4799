"""Batches as torch tensors, in the layout of `mmpipe.data.batch`; and samples, for loaders that collate themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import default_collate

from mmpipe.data.batch import pad
from mmpipe.shards import Rows


def as_tensors(batch: Any) -> Any:
    """The arrays of a batch as tensors over the same memory.

    >>> as_tensors({'price': np.array([1.5]), '_mask': {'price': np.array([True])}, '_key': ['a']})
    {'price': tensor([1.5000], dtype=torch.float64), '_mask': {'price': tensor([True])}, '_key': ['a']}
    """
    if isinstance(batch, np.ndarray):
        return torch.from_numpy(batch)
    return {name: as_tensors(value) for name, value in batch.items()} if isinstance(batch, dict) else batch


def split_batch(batch: dict[str, Any]) -> list[dict[str, Any]]:
    """The samples of a batch, each of which `torch.utils.data.default_collate` turns back into that batch.

    Ragged fields keep the padding of the batch they were read in, so that they stack.

    >>> from mmpipe.data.batch import BatchTask, Request
    >>> samples = split_batch(as_tensors(BatchTask(example_rows(), ['price'])(Request(np.array([0, 1])))))
    >>> samples[1]['_key'], samples[1]['_mask']
    ('b', {'price': tensor(False)})
    """
    count = len(batch['_key'])
    return [
        {
            name: {inner: values[i] for inner, values in value.items()} if isinstance(value, dict) else value[i]
            for name, value in batch.items()
            if name != '_failed'  # is not one per sample; the mask says it
        }
        for i in range(count)
    ]


def collate(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A `collate_fn` for samples that were not read together, such as those of a `ConcatDataset`.

    As torch's `default_collate`, but ragged fields are padded to the longest of the batch. A `DataLoader` straight over
    a `ShardDataset` does without it.

    Args:
        samples: as `ShardDataset` gives them.

    Returns:
        The batch.

    >>> from mmpipe.data.dataset import ShardDataset
    >>> dataset = ShardDataset(example_rows())
    >>> collate([dataset[0], dataset[1]])['price']
    tensor([1.5000, 0.0000])
    """
    ragged = samples[0].get('_length', {})
    padded = {}
    for name in ragged:
        arrays = [sample[name][: int(sample['_length'][name])].numpy() for sample in samples]
        padded[name] = torch.from_numpy(pad(arrays)[0])
    rest = [{key: value for key, value in sample.items() if key not in ragged} for sample in samples]
    batch = default_collate(rest)
    return {name: padded[name] if name in padded else batch[name] for name in samples[0]}


def example_rows() -> Rows:
    """Two rows for the examples in this package: a price that is missing once, and a kind.

    >>> len(example_rows())
    2
    """
    import tempfile

    from mmpipe.shards import Block, Field, write_snapshot

    fields = [
        Field(name='price', kind='scalar', dtype='float32'),
        Field(name='kind', kind='label', vocabulary=('cat', 'dog')),
    ]
    columns: dict[str, list[Any]] = {'price': [1.5, None], 'kind': ['dog', 'cat']}
    block = Block(keys=['a', 'b'], columns=columns, splits=['train', 'train'])
    return write_snapshot(tempfile.mkdtemp(), fields, block).split('train')
