"""The batch layout: rows of a snapshot as one flat dict of tensors.

batch['photo']      uint8 [B, 3, H, W]        tensor field, in its stored dtype
batch['frames']     float32 [B, L, 1280]      ragged field, zeros behind each row's length
batch['category']   int64 [B]                 label: index into the vocabulary
batch['tags']       uint8 [B, words]          several labels: 1 where present
batch['price']      float32 [B]               scalar
batch['title']      list of B str             string (bytes for binary)
batch['_mask']      {field: bool [B]}         True where the value is there; a missing one is zeros
batch['_length']    {ragged field: int64 [B]}
batch['_key']       list of B str
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import default_collate

from mmpipe.errors import DataError
from mmpipe.shards import Rows


def read_batch(rows: Rows, fields: Iterable[str], indices: np.ndarray) -> dict[str, Any]:
    """Gather rows of a snapshot as one batch, one vectorised read per field.

    Args:
        rows: where to read.
        fields: names to read.
        indices: int64 positions in `rows`, length B.

    Returns:
        The batch on the CPU, in the layout above. Its tensors are the caller's own.

    >>> rows = example_rows()
    >>> batch = read_batch(rows, ['price', 'kind'], np.array([1, 0]))
    >>> batch['price'], batch['_mask']['price'], batch['kind'], batch['_key']
    (tensor([0.0000, 1.5000]), tensor([False,  True]), tensor([0, 1]), ['b', 'a'])
    """
    batch: dict[str, Any] = {}
    masks: dict[str, torch.Tensor] = {}
    lengths: dict[str, torch.Tensor] = {}
    for name in fields:
        values, valid = rows.read(name, indices)
        masks[name] = torch.from_numpy(valid)
        kind = rows.fields[name].kind
        if kind == 'ragged':
            batch[name], lengths[name] = pad(values)
        elif kind in ('string', 'binary'):
            batch[name] = values
        else:
            # A read may be a view of the read-only map; torch tensors are writable, so they need their own memory.
            batch[name] = torch.from_numpy(values if values.flags.writeable else values.copy())
    batch['_mask'] = masks
    if lengths:
        batch['_length'] = lengths
    batch['_key'] = rows.keys[indices].tolist()
    return batch


def pad(arrays: Sequence[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """Arrays that differ in their first dimension as one tensor, zeros behind the shorter ones.

    Args:
        arrays: B arrays `[length_i, *shape]` of one dtype.

    Returns:
        (values `[B, L, *shape]`, lengths int64 `[B]`) with L the longest, and at least 1 so that no kernel sees an
        empty dimension.

    Raises:
        DataError: arrays of different shapes behind the first dimension.

    >>> pad([np.array([1.0, 2.0]), np.array([3.0])])
    (tensor([[1., 2.],
            [3., 0.]], dtype=torch.float64), tensor([2, 1]))
    """
    lengths = [len(array) for array in arrays]
    rest = {array.shape[1:] for array in arrays}
    if len(rest) > 1:
        raise DataError(
            f'arrays of shapes {sorted(rest)} behind the first dimension cannot be padded into one batch: '
            f'make them one shape where the field is computed.'
        )
    dtype = arrays[0].dtype if len(arrays) else np.dtype(np.float32)
    out = np.zeros((len(arrays), max(lengths, default=0) or 1, *(rest.pop() if rest else ())), dtype=dtype)
    for row, array in zip(out, arrays, strict=True):
        row[: len(array)] = array
    return torch.from_numpy(out), torch.tensor(lengths, dtype=torch.int64)


def split_batch(batch: dict[str, Any]) -> list[dict[str, Any]]:
    """The samples of a batch, each of which `torch.utils.data.default_collate` turns back into that batch.

    Ragged fields keep the padding of the batch they were read in, so that they stack.

    >>> samples = split_batch(read_batch(example_rows(), ['price'], np.array([0, 1])))
    >>> samples[1]['_key'], samples[1]['_mask']
    ('b', {'price': tensor(False)})
    """
    count = len(batch['_key'])
    return [
        {
            name: {inner: values[i] for inner, values in value.items()} if isinstance(value, dict) else value[i]
            for name, value in batch.items()
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

    >>> dataset_samples = split_batch(read_batch(example_rows(), ['price'], np.array([0, 1])))
    >>> collate(dataset_samples)['price']
    tensor([1.5000, 0.0000])
    """
    ragged = samples[0].get('_length', {})
    padded = {}
    for name in ragged:
        padded[name], _ = pad([sample[name][: int(sample['_length'][name])].numpy() for sample in samples])
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
