"""A run is trained from an object store and reopens it."""

from __future__ import annotations

import numpy as np
import pytest

import mmpipe as mm
from mmpipe.pipeline import runs_of
from mmpipe.shards import Block, Field, open_snapshot, write_snapshot

FIELDS = [
    Field(name='x', kind='tensor', dtype='float32', shape=(4,)),
    Field(name='y', kind='scalar', dtype='float32'),
]


def build():
    return mm.MultitaskModel(encoders={'x': mm.encoders.vector(4, 8)}, tasks=[mm.regression('y')], hidden=8)


def write(root):
    x = np.random.default_rng(0).normal(size=(48, 4)).astype('float32')
    splits = ['train'] * 32 + ['val'] * 16
    block = Block(keys=[str(i) for i in range(48)], columns={'x': list(x), 'y': x.sum(1).tolist()}, splits=splits)
    return write_snapshot(root, FIELDS, block)


@pytest.mark.slow
def test_a_run_names_the_url_it_was_trained_from_and_goes_on_from_it(url, tmp_path, monkeypatch):
    monkeypatch.setenv('MMPIPE_HOME', str(tmp_path))
    write(url)
    snapshot = open_snapshot(url + '/')
    train, val = (mm.DataLoader(snapshot.split(name), batch_size=16) for name in ('train', 'val'))
    run = mm.Trainer(epochs=1).fit(build, train, val)
    assert run.snapshot == {'id': snapshot.id, 'root': url}
    assert run.id.rpartition('/')[0] == url.rpartition('/')[2]
    assert [made.id for made in runs_of(url)] == [run.id]
    again = open_snapshot(run.snapshot['root'], run.snapshot['id'])
    scores = mm.evaluate(mm.load_model(run), mm.DataLoader(again.split('val'), batch_size=16, shuffle=False))
    assert scores['y']['n'] == 16
    write(tmp_path / 'local')
    local = open_snapshot(tmp_path / 'local')
    assert snapshot.id == local.id
    more = mm.Trainer(epochs=1).fit(build, train, val, continue_from=run)
    assert [made.id for made in runs_of(url)] == [run.id, more.id]


@pytest.mark.slow
@pytest.mark.parametrize('url', ['s3'], indirect=True)
def test_worker_processes_load_from_a_store_what_a_directory_gives(url, tmp_path, monkeypatch):
    monkeypatch.setenv('MMPIPE_HOME', str(tmp_path))  # where worker processes keep copies, and this one too
    monkeypatch.setattr('mmpipe.shards.copies.shard_cache_dir', lambda: tmp_path / 'cache' / 'shards')
    write(url)
    for file in tmp_path.glob('cache/shards/*/*'):
        file.unlink()
    loaded = [
        [
            batch['x']
            for batch in mm.DataLoader(
                open_snapshot(root).split('train'),
                batch_size=8,
                num_workers=workers,
                host_transforms={'x': np.negative},
            )
        ]
        for root, workers in ((url, 2), (write(tmp_path / 'local').root, 1))
    ]
    assert len(list(tmp_path.glob('cache/shards/*/*'))) == 1
    assert len(loaded[0]) == 4
    for one, two in zip(*loaded, strict=True):
        assert one.tolist() == two.tolist()
