"""The code in docs/ runs as it stands there, and the names it mentions are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import mmpipe as mm
from mmpipe.errors import DataError
from mmpipe.shards import Block, Field, write_snapshot

ROOT = Path(__file__).parents[1]
LOADING = (ROOT / 'docs' / 'loading.md').read_text(encoding='utf-8')


def test_the_loader_of_the_page_loads(tmp_path: Path) -> None:
    photos = sorted((ROOT / 'examples' / 'data' / 'photos').glob('*.jpg'))[:6]
    fields = [Field(name='photo', kind='binary')]
    columns = {'photo': [file.read_bytes() for file in photos]}
    block = Block(keys=[file.stem for file in photos], columns=columns, splits=['train'] * len(photos))
    seen = []
    (code,) = re.findall(r'```python\n(.*?)```', LOADING, re.DOTALL)
    names = {'mm': mm, 'snapshot': write_snapshot(tmp_path, fields, block), 'seen': seen}
    exec(code.replace('...\n', 'seen.append((batch["photo"].shape, batch["_mask"]["photo"].all()))\n'), names)
    assert seen == [((6, 3, 224, 224), True)] * 10


def test_names_of_the_library_are_there() -> None:
    for name in set(re.findall(r'`mm\.([\w.]+)', LOADING)):
        thing = mm
        for part in name.rstrip('.').split('.'):
            thing = getattr(thing, part)
    for name in set(re.findall(r'^\| `(\w+)\(', LOADING, re.MULTILINE)):
        assert getattr(mm.sampling, name)
    for path in set(re.findall(r'`(mmpipe/[\w/.]+)`', LOADING)):
        assert (ROOT / path).exists()


def test_parts_of_your_own_train_as_they_stand(tmp_path: Path) -> None:
    import numpy as np
    import torch
    from torch import nn

    from mmpipe.models.contract import InputSpec

    training = (ROOT / 'docs' / 'training.md').read_text(encoding='utf-8')
    (code,) = (block for block in re.findall(r'```python\n(.*?)```', training, re.DOTALL) if 'class Gated' in block)
    names = {'mm': mm, 'nn': nn, 'torch': torch, 'InputSpec': InputSpec}
    exec(code, names)
    fields = [
        Field(name='mel', kind='tensor', dtype='float32', shape=(8, 20)),
        Field(name='size', kind='scalar', dtype='float32'),
        Field(name='kind', kind='label', vocabulary=('a', 'b')),
    ]
    draw = np.random.default_rng(0)
    columns = {
        'mel': [None if i % 3 == 0 else draw.normal(size=(8, 20)).astype('float32') for i in range(8)],
        'size': [float(i) for i in range(8)], 'kind': ['ab'[i % 2] for i in range(8)],
    }  # fmt: skip
    block = Block(keys=[str(i) for i in range(8)], columns=columns, splits=['train'] * 8)
    rows = write_snapshot(tmp_path / 'shards', fields, block).split('train')

    def build(n_mels: int) -> nn.Module:
        return mm.MultitaskModel(
            encoders={'mel': names['Bands'](n_mels), 'size': mm.encoders.vector(1, 16)},
            tasks=[mm.classification('kind', 2)], fusion=names['Gated']([32, 16], 8), modality_dropout=0.1,
        )  # fmt: skip

    trainer, loader = mm.Trainer(runs=tmp_path / 'runs'), mm.DataLoader(rows, batch_size=4, device='cpu')
    assert trainer.fit(build, loader, args={'n_mels': 8}).status == 'finished'
    with pytest.raises(DataError, match=r'Bands: it takes a spectrogram: float \[9, \*\], and is given .* \[8, 20\]'):
        trainer.fit(build, loader, args={'n_mels': 9})
