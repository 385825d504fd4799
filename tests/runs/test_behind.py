"""What lies behind a run, and what each run had of a row."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from shop_snapshot import write_shop

import mmpipe as mm
from mmpipe.errors import ConfigError, RunError
from mmpipe.runs import create_run
from mmpipe.shards import Block, Field, key_hash, write_snapshot


def build():
    return mm.MultitaskModel(
        encoders={'title': mm.encoders.vector(8, 4)}, tasks=[mm.classification('kind', 3)], hidden=4
    )


def fit(runs, train, val=None, **rest):
    loaders = [None if rows is None else mm.DataLoader(rows, batch_size=16, device='cpu') for rows in (train, val)]
    return mm.Trainer(runs=runs).fit(build, *loaders, name='shop', **rest)


@pytest.fixture(scope='module')
def chain(tmp_path_factory):
    """A run on some rows, one that continues it on others, and one that has nothing to do with them."""
    folder = tmp_path_factory.mktemp('chain')
    snapshot = write_shop(folder / 'shards', 64, holes=0.0)
    train, val = snapshot.split('train'), snapshot.split('val')
    first = fit(folder / 'runs', train.take(np.arange(0, 20)), val)
    second = fit(folder / 'runs', train.take(np.arange(10, 30)), val, continue_from=first)
    other = fit(folder / 'runs', train.take(np.arange(30, 40)))
    return folder, snapshot, train, val, (first, second, other)


def test_a_run_names_the_rows_snapshot_code_and_weights_of_itself_and_of_what_it_started_from(chain):
    _, snapshot, train, val, (first, second, _) = chain
    found = mm.lineage(second)
    assert [run.id for run in found.runs] == [second.id, first.id]
    np.testing.assert_array_equal(found.rows(), np.array(sorted(map(key_hash, train.keys[:30])), dtype=np.uint64))
    behind, before = found.to_json()['behind']
    assert found.to_json()['rows'] == 30
    assert (behind['train_rows'], behind['val_rows'], behind['how']) == (20, len(val), f'continue of {first.id}')
    assert behind['snapshot']['id'] == snapshot.id
    assert behind['code']['factory'] == f'{__name__}:build'
    for run, said in ((second, behind), (first, before)):
        weights = (run.checkpoint() / 'model.safetensors').read_bytes()
        assert said['weights']['sha256'] == hashlib.sha256(weights).hexdigest()
        assert said['weights']['sha256'][:16] in str(found)
    assert json.loads(json.dumps(found.to_json())) == found.to_json()
    assert str(found).startswith(f'{second.id} comes from 30 rows in 2 runs\n')


def test_a_row_knows_the_runs_that_saw_it_also_through_a_run_they_started_from(chain):
    folder, _, train, val, (first, second, other) = chain
    keys = train.keys
    expected = {
        keys[0]: ['trained', 'inherited', 'no'],
        keys[15]: ['trained', 'trained', 'no'],
        keys[25]: ['no', 'trained', 'no'],
        keys[35]: ['no', 'no', 'trained'],
        val.keys[0]: ['measured', 'measured', 'no'],
        'nobody': ['no', 'no', 'no'],
    }
    for key, seen in expected.items():
        found = mm.lineage(row=key, runs=folder / 'runs')
        assert found.seen == dict(zip([first.id, second.id, other.id], seen, strict=True))
    found = mm.lineage(row=keys[0], runs=folder / 'runs')
    assert found.runs == [first.id, second.id]
    assert found.through == {second.id: first.id}
    assert f'inherited from {first.id}' in str(found)
    assert 'has a part in 2 runs of 3' in str(found)


def test_what_is_behind_a_parent_that_is_gone_is_unknown_and_runs_that_moved_together_find_each_other(chain, tmp_path):
    folder, _, train, _, (first, second, _) = chain
    shutil.copytree(folder / 'runs', tmp_path / 'moved')
    shutil.move(folder / 'runs', tmp_path / 'away')  # so that the recorded places are gone
    try:
        moved = mm.lineage(second.id, runs=tmp_path / 'moved')
        assert [run.path.parent.parent for run in moved.runs] == [tmp_path / 'moved'] * 2
        shutil.rmtree(tmp_path / 'moved' / first.id)
        alone = mm.lineage(second.id, runs=tmp_path / 'moved')
        assert (len(alone.runs), alone.lost) == (1, first.id)
        assert f'{first.id} is not there any more' in str(alone)
        seen = {key: mm.lineage(row=key, runs=tmp_path / 'moved').seen[second.id] for key in train.keys[[0, 15]]}
        assert list(seen.values()) == ['unknown', 'trained']
    finally:
        shutil.move(tmp_path / 'away', folder / 'runs')


def test_a_row_of_a_mixture_is_named_with_its_source(tmp_path):
    fields = [
        Field(name='title', kind='tensor', dtype='float32', shape=(8,)),
        Field(name='kind', kind='label', vocabulary=('cup', 'hat', 'map')),
    ]
    parts = {}
    for name in ('web', 'books'):
        titles = list(np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32))
        keys = [f'{name[0]}{number}' for number in range(4)]
        block = Block(keys=keys, columns={'title': titles, 'kind': ['cup', 'hat', 'map', 'cup']}, splits=['train'] * 4)
        parts[name] = write_snapshot(tmp_path / name, fields, block).split('train')
    run = fit(tmp_path / 'runs', mm.sampling.mixture(parts))
    seen = {key: mm.lineage(row=key, runs=tmp_path / 'runs').seen[run.id] for key in ('web/w0', 'books/b3', 'web/b0')}
    assert seen == {'web/w0': 'trained', 'books/b3': 'trained', 'web/b0': 'no'}


def test_a_run_or_a_row_is_asked_for_and_a_run_without_rows_says_so(tmp_path):
    with pytest.raises(ConfigError, match='takes a run or a row'):
        mm.lineage()
    with pytest.raises(ConfigError, match='takes a run or a row'):
        mm.lineage('shop/0001', row='a')
    empty = create_run('shop', {'parent': None, 'metrics': {}}, runs=tmp_path)
    with pytest.raises(RunError, match='has not stored its rows'):
        mm.lineage(empty).rows()
    assert mm.lineage(row='a', runs=tmp_path).seen == {empty.id: 'unknown'}
    assert str(mm.lineage(row='a', runs=tmp_path / 'nowhere')) == 'row a: no runs'


def test_the_command_reads_records_without_torch_or_pixeltable(chain):
    folder, _, train, _, (_, second, _) = chain
    code = (
        'import sys; from mmpipe.cli import app\n'
        f'for arguments in ([{str(second.path)!r}], ["--row", {train.keys[0]!r}]):\n'
        '    app(["lineage", *arguments, "--json"], standalone_mode=False)\n'
        'assert not {"torch", "pixeltable"} & set(sys.modules)'
    )
    done = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, env={'MMPIPE_HOME': str(folder), **_path()}
    )
    assert done.returncode == 0, done.stderr
    of_run, of_row = map(json.loads, done.stdout.splitlines())
    assert (of_run['run'], of_run['rows']) == (second.id, 30)
    assert of_row['through'] == {second.id: 'shop/0001'}


def _path():
    import os

    return {name: os.environ[name] for name in ('PATH', 'PYTHONPATH') if name in os.environ}
