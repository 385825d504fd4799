"""Shards in PyTorch's own DataLoader: any loop that takes a Dataset takes a snapshot.

`mm.ShardDataset` is a `torch.utils.data.Dataset`. Spawned workers open the shards themselves and no database; images
stay uint8 until you normalise them; what is missing comes as zeros with a mask. The loop below is plain PyTorch.

    python examples/04_plain_torch_dataloader.py [--quick]
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler

import mmpipe as mm
from mmpipe.shards import Block, Field, Snapshot, write_snapshot

DATA = Path(__file__).parent / 'data'
SIZE = 48


def pixels(path: Path) -> np.ndarray:
    """uint8 [3, SIZE, SIZE], transparent parts white."""
    image = Image.open(path).convert('RGBA').resize((SIZE, SIZE))
    white = Image.new('RGBA', image.size, 'white')
    return np.asarray(Image.alpha_composite(white, image).convert('RGB')).transpose(2, 0, 1)


def write(root: Path, count: int) -> Snapshot:
    """Some of the bundled drawings; those without a category have a null there."""
    with (DATA / 'items.csv').open(encoding='utf-8') as file:
        rows = [row for row in csv.DictReader(file) if row['photo']]
    rows = rows[:: max(1, len(rows) // count)]
    words = sorted({row['category'] for row in rows if row['category']})
    fields = [
        Field(name='photo', kind='tensor', dtype='uint8', shape=(3, SIZE, SIZE)),
        Field(name='category', kind='label', vocabulary=words),
    ]
    columns = {
        'photo': [pixels(DATA / row['photo']) for row in rows],
        'category': [row['category'] or None for row in rows],
    }
    return write_snapshot(root, fields, Block(keys=[row['key'] for row in rows], columns=columns))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--quick', action='store_true', help='fewer drawings and epochs, one worker')
    quick = parser.parse_args().quick
    with tempfile.TemporaryDirectory() as folder:
        snapshot = write(Path(folder), 64 if quick else 400)
        dataset = mm.ShardDataset(snapshot.rows())
        sample = {name: getattr(value, 'dtype', value) for name, value in dataset[0].items()}
        print(f'{len(dataset)} drawings; one sample: {sample}')

        # The usual way: torch collates the samples that workers read. Spawned, since this process has threads.
        workers = {'num_workers': 1 if quick else 2, 'multiprocessing_context': 'spawn', 'persistent_workers': True}
        usual = DataLoader(dataset, batch_size=16, shuffle=True, pin_memory=torch.cuda.is_available(), **workers)
        # The fast way: a list of positions at a time, and one gather per field; no collating, and no workers needed.
        whole = DataLoader(dataset, sampler=BatchSampler(RandomSampler(dataset), 16, drop_last=False), batch_size=None)

        classes = len(snapshot.fields['category'].vocabulary or ())
        model = nn.Sequential(nn.Conv2d(3, 16, 5, stride=4), nn.GELU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(),
                              nn.Linear(256, classes))  # fmt: skip
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        for name, loader in (('collated by workers', usual), ('gathered whole', whole)):
            for _ in range(1 if quick else 3):
                total = labelled = 0.0
                for batch in loader:
                    mask = batch['_mask']['category']  # True where there is a label
                    logits = model(batch['photo'].float() / 255)
                    losses = nn.functional.cross_entropy(logits, batch['category'], reduction='none') * mask
                    (losses.sum() / mask.sum().clamp(min=1)).backward()
                    optimizer.step()
                    optimizer.zero_grad()
                    total, labelled = total + losses.sum().item(), labelled + mask.sum().item()
                print(f'{name}: mean loss {total / labelled:.3f} over {labelled:.0f} labelled of {len(dataset)} rows')
        photos = batch['photo']
        print(f'the last batch: {photos.dtype} {tuple(photos.shape)}, keys such as {batch["_key"][0]!r}')


if __name__ == '__main__':
    main()
