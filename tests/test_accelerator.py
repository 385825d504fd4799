"""The path through CUDA: pinned uint8 batches, the same numbers as on the CPU. Not yet run on such a device."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import mmpipe as mm
from mmpipe.shards import Block, Field, Snapshot, write_snapshot

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')]


def build_model() -> mm.MultitaskModel:
    return mm.MultitaskModel(encoders={'photo': mm.encoders.image(8, width=4)}, tasks=[mm.regression('bright')])


@pytest.fixture
def snapshot(tmp_path: Path) -> Snapshot:
    rng = np.random.default_rng(0)
    bright = rng.uniform(40, 200, 64)
    photos = [rng.normal(mean, 20, (3, 32, 32)).clip(0, 255).astype(np.uint8) for mean in bright]
    fields = [
        Field(name='photo', kind='tensor', dtype='uint8', shape=(3, 32, 32)),
        Field(name='bright', kind='scalar', dtype='float32'),
    ]
    columns = {'photo': photos, 'bright': [float(np.float32(value)) for value in bright]}
    return write_snapshot(tmp_path / 'shards', fields, Block(keys=[f'{i:02d}' for i in range(64)], columns=columns))


def batches(snapshot: Snapshot, device: str, crossed: list | None = None) -> mm.DataLoader:
    note = None if crossed is None else lambda name, dtype, size, to: crossed.append((name, dtype, size, to.type))
    photo = mm.transforms.image(crop=24, flip=True)
    return mm.DataLoader(
        snapshot.rows(),
        batch_size=16,
        shuffle=True,
        seed=1,
        device=device,
        transforms={'photo': photo},
        on_transfer=note,
    )


def test_photos_cross_as_uint8_from_pinned_memory_and_become_what_they_are_on_the_cpu(snapshot: Snapshot) -> None:
    crossed: list = []
    loader = batches(snapshot, 'cuda', crossed)
    assert loader.pin_memory
    for there, here in zip(loader, batches(snapshot, 'cpu'), strict=True):
        assert there['photo'].device.type == 'cuda'
        assert there['_key'] == here['_key']
        torch.testing.assert_close(there['photo'].cpu(), here['photo'], rtol=0, atol=1e-4)
    assert {entry for entry in crossed if entry[0] == 'photo'} == {('photo', torch.uint8, 16 * 3 * 32 * 32, 'cuda')}


@pytest.mark.parametrize('precision', ['fp32', 'bf16'])
def test_a_training_on_cuda_learns_and_its_model_runs_on_the_cpu(
    snapshot: Snapshot, tmp_path: Path, precision: str
) -> None:
    trainer = mm.Trainer(epochs=20, lr=1e-2, precision=precision, runs=tmp_path / 'runs')
    run = trainer.fit(build_model, batches(snapshot, 'cuda'), batches(snapshot, 'cuda'))
    scores = mm.evaluate(mm.load_model(run), batches(snapshot, 'cpu'))
    assert scores['bright']['r2'] > 0.5
