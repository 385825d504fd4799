"""A small shop: rows of every kind of field, with values to learn, and holes in most of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mmpipe.shards import Block, Field, Snapshot, write_snapshot

KINDS = ('cup', 'hat', 'map')
TAGS = ('old', 'red', 'soft', 'tall')
FIELDS = [
    Field(name='photo', kind='tensor', dtype='uint8', shape=(3, 16, 16)),
    Field(name='title', kind='tensor', dtype='float32', shape=(8,)),
    Field(name='frames', kind='ragged', dtype='float32', shape=(4,)),
    Field(name='mel', kind='tensor', dtype='float32', shape=(16, 20)),
    Field(name='weight', kind='scalar', dtype='float32'),
    Field(name='price', kind='scalar', dtype='float32'),
    Field(name='kind', kind='label', vocabulary=KINDS),
    Field(name='tags', kind='labels', vocabulary=TAGS),
    Field(name='note', kind='string'),
    Field(name='raw', kind='binary'),
]


def shop_block(count: int = 96, *, seed: int = 0, holes: float = 0.2, first: int = 0) -> Block:
    """`count` rows; the same key always holds the same values, whatever the count."""
    columns: dict[str, list] = {field.name: [] for field in FIELDS}
    keys, splits = [], []
    for number in range(first, first + count):
        draw = np.random.default_rng((seed, number))
        kind = int(draw.integers(3))
        title = draw.normal(size=8).astype(np.float32)
        title[kind] += 3
        values = {
            'photo': draw.integers(0, 100, size=(3, 16, 16), dtype=np.uint8) + np.uint8(50 * kind),
            'title': title,
            'frames': draw.normal(size=(int(draw.integers(1, 6)), 4)).astype(np.float32) + kind,
            'mel': draw.normal(size=(16, 20)).astype(np.float32),
            'weight': float(draw.normal(5, 2)),
            'price': float(100 + 10 * title[3] + draw.normal()),
            'kind': KINDS[kind],
            'tags': [tag for position, tag in enumerate(TAGS) if title[position] > 0.5],
            'note': f'note {number}',
            'raw': bytes([number % 256]),
        }
        for name, value in values.items():
            columns[name].append(None if draw.random() < holes else value)
        keys.append(f'sku-{number:04d}')
        splits.append('val' if number % 4 == 3 else 'train')
    return Block(keys=keys, columns=columns, splits=splits)


def write_shop(root: Path, count: int = 96, *, seed: int = 0, holes: float = 0.2) -> Snapshot:
    """The shop as a snapshot with 3/4 of the rows in 'train' and the others in 'val'."""
    return write_snapshot(root, FIELDS, shop_block(count, seed=seed, holes=holes))
