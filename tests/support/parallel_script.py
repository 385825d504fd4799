"""What ranks of `test_parallel.py` run: a small ViT with two tasks, some labels and images missing."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch

import mmpipe as mm
from mmpipe.data.ranks import is_first
from mmpipe.shards import Block, Field, open_snapshot, write_snapshot
from mmpipe.train import Callback


def write_rows(folder: Path, rows: int = 48) -> None:
    """16 x 16 images, every seventh of them missing; classes and prices for two thirds of the rows each."""
    rng = np.random.default_rng(0)
    images = list(rng.integers(0, 255, (rows, 3, 16, 16), dtype=np.uint8))
    columns = {
        'photo': [None if i % 7 == 3 else image for i, image in enumerate(images)],
        'kind': [None if i % 3 == 0 else f'k{i % 4}' for i in range(rows)],
        'price': [None if i % 3 == 1 else float(rng.normal()) for i in range(rows)],
    }
    fields = [
        Field(name='photo', kind='tensor', dtype='uint8', shape=(3, 16, 16)),
        Field(name='kind', kind='label', vocabulary=('k0', 'k1', 'k2', 'k3')),
        Field(name='price', kind='scalar', dtype='float32'),
    ]
    block = Block(keys=[f'{i:03}' for i in range(rows)], columns=columns, splits=['train'] * (rows - 7) + ['val'] * 7)
    write_snapshot(folder, fields, block)


def build(dim: int = 32, depth: int = 2, convolving: bool = False):
    if convolving:  # and normalising over the batch
        encoder = mm.encoders.timm('resnet18', layers=(1,) * 4, channels=(8, 8, 8, dim), stem_width=8)
    else:
        encoder = mm.encoders.timm(
            'vit_tiny_patch16_224', img_size=16, patch_size=8, embed_dim=dim, depth=depth, num_heads=2
        )
    return mm.MultitaskModel(
        encoders={'photo': encoder}, tasks=[mm.classification('kind', 4), mm.regression('price')], hidden=16,
        dropout=0.0,
    )  # fmt: skip


class Losses(Callback):
    """Keeps them."""

    def __init__(self) -> None:
        self.found: list[dict[str, float]] = []

    def on_losses(self, run, step, losses) -> None:
        self.found.append(dict(losses))


def main(shards: str, runs: str, options: str) -> None:
    asked = json.loads(options)
    torch.set_num_threads(1)
    with mm.process_group(timeout_s=60):
        train_once(shards, runs, mm.Parallel(**asked.pop('parallel', {})), **asked)


def train_once(
    shards: str, runs: str, parallel: mm.Parallel, *, dim: int = 32, depth: int = 2, convolving: bool = False,
    global_batch: int = 8, pad_last: bool = True, first_saves_s: float | None = None, **options,
) -> list:  # fmt: skip
    snapshot = open_snapshot(shards)
    train = mm.DataLoader(
        snapshot.split('train'), global_batch_size=global_batch, shuffle=True, device='cpu', pad_last=pad_last,
        transforms={'photo': mm.transforms.image(resize=16)},
    )  # fmt: skip
    val = mm.DataLoader(
        snapshot.split('val'), global_batch_size=4, device='cpu', transforms={'photo': mm.transforms.image(resize=16)}
    )
    losses = Losses()
    if first_saves_s is not None and is_first():  # as if clocks differed
        options['checkpoint_seconds'] = first_saves_s
    settings = {'epochs': 3, 'max_steps': 5, 'log_every': 1, 'lr': 1e-3, 'clip': 1.0, **options}
    trainer = mm.Trainer(runs=runs, callbacks=[losses], parallel=parallel, **settings)
    args = {'dim': dim, 'depth': depth, 'convolving': convolving}
    trainer.fit(build, train, val, args=args, name='vit', resume='auto')
    return losses.found


if __name__ == '__main__':
    main(*sys.argv[1:])
