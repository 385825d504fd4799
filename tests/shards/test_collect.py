"""What a collection removes, and what it never does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmpipe.cli import app
from mmpipe.errors import ConfigError, RunError, ShardError
from mmpipe.runs import create_run
from mmpipe.shards import Block, Field, collect, commit, log, open_snapshot, write_block, write_snapshot
from mmpipe.shards.manifest import files_of

PRICE = Field(name='price', kind='scalar', dtype='float32')


def write(root, blocks, masked=()):
    """A snapshot of blocks that are told by a number each; equal ones are one file."""
    shards = [
        write_block(root, [PRICE], Block(keys=[f'{i}.{n}' for i in range(3)], columns={'price': [n] * 3}), index=at)
        for at, n in enumerate(blocks)
    ]
    dropped = np.array([(at, row) for at, row in sorted(masked) if at < len(blocks)], dtype=np.int64).reshape(-1, 2)
    return commit(root, [PRICE], shards, dropped=dropped, splits={'': 3 * len(blocks) - len(dropped)})


def there(root):
    return {path.relative_to(root).as_posix() for path in root.rglob('*') if path.is_file()}


def age(root, seconds=7200):
    for path in root.rglob('*'):
        if path.is_file():
            os.utime(path, (time.time() - seconds,) * 2)


def held(snapshot):
    rows = snapshot.rows()
    return rows.keys.tolist(), rows.read('price')[0].tolist()


HISTORY = st.lists(
    st.tuples(
        st.lists(st.integers(0, 4), min_size=1, max_size=3, unique=True),
        st.sets(st.tuples(st.integers(0, 2), st.integers(0, 1)), max_size=3),
        st.sampled_from(['commit', 'run', 'stopped', 'young']),
    ),
    min_size=1,
    max_size=6,
)


@settings(deadline=None, max_examples=30)
@given(HISTORY, st.integers(0, 3))
def test_what_is_kept_reads_as_before_and_everything_else_is_gone(tmp_path_factory, history, keep):
    root, runs = tmp_path_factory.mktemp('shards'), tmp_path_factory.mktemp('runs')
    with pytest.MonkeyPatch.context() as fast:
        fast.setattr(os, 'fsync', lambda handle: None)
        made, named, young = {}, set(), set()
        for blocks, masked, fate in history:
            if fate == 'stopped' and made:  # shards without a commit
                write_block(root, [PRICE], Block(keys=['x'], columns={'price': [len(made)]}), index=0)
                continue
            snapshot = write(root, blocks, masked)
            made[snapshot.id] = held(snapshot)
            if fate == 'run':
                create_run('shop', {'snapshot': {'id': snapshot.id, 'root': str(root)}}, runs=runs)
                named.add(snapshot.id)
            if fate == 'young':
                young.add(snapshot.id)
    (root / 'notes.txt').write_text('mine')
    (root / 'shards' / 'README').write_text('mine')
    age(root)
    for identity in young:
        os.utime(root / 'manifests' / f'{identity}.json')
    newest = [entry.id for entry in log(root)]
    kept = {snapshot.id, *newest[:keep], *named, *young}
    before, needed = there(root), set().union(*(files_of(root, identity) for identity in kept))
    planned = collect(root, keep=keep, runs=runs, dry_run=True)
    assert there(root) == before
    done = collect(root, keep=keep, runs=runs)
    assert (set(done.kept), set(done.removed)) == (kept, set(made) - kept)
    assert (planned.kept, planned.removed, planned.files, planned.bytes) == (
        done.kept, done.removed, done.files, done.bytes
    )  # fmt: skip
    assert there(root) == before & needed | {'LATEST', 'notes.txt', 'shards/README'}
    assert set(done.files) == before - there(root)
    for identity in kept:
        opened = open_snapshot(root, identity)
        opened.verify()
        assert held(opened) == made[identity]
    assert open_snapshot(root).id == snapshot.id
    assert collect(root, keep=keep, runs=runs).files == ()


KILLED = """
import os, signal, sys
from pathlib import Path
from mmpipe.shards import Block, Field, write_block
from mmpipe.shards.column import ColumnWriter
from mmpipe.shards.field import content_digest
root, price = Path(sys.argv[1]), Field(name='price', kind='scalar', dtype='float32')
write_block(root, [price], Block(keys=['new'], columns={'price': [7.0]}), index=1)
writer = ColumnWriter(root, price, block=0, rows=1, old=None)
writer.put(0, 1.0, content_digest(price, 1.0), key='a', size=1 << 30)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_writer_left_is_found_once_it_is_old(tmp_path):
    root = tmp_path / 'shards'
    snapshot = write_snapshot(root, [PRICE], Block(keys=['a'], columns={'price': [1.0]}))
    before = there(root)
    done = subprocess.run([sys.executable, '-c', KILLED, str(root)], check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    left = there(root) - before
    assert sorted(Path(name).suffix for name in left) == ['.arrow', '.tmp']
    assert collect(root, runs=tmp_path).files == ()
    age(root)
    assert set(collect(root, runs=tmp_path).files) == left
    assert there(root) == before
    snapshot.verify()


def test_a_first_snapshot_that_was_killed_leaves_nothing_either(tmp_path):
    write_block(tmp_path, [PRICE], Block(keys=['a'], columns={'price': [1.0]}), index=0)
    (tmp_path / '.LATEST.0011aabb.tmp').write_text('x')
    assert len(collect(tmp_path, runs=tmp_path, grace_s=0).files) == 2
    assert there(tmp_path) == set()
    assert collect(tmp_path / 'nothing', runs=tmp_path).kept == ()


def test_an_old_shard_that_is_written_again_is_young_again(tmp_path):
    root, block = tmp_path / 'shards', Block(keys=['b'], columns={'price': [2.0]})
    write_snapshot(root, [PRICE], Block(keys=['a'], columns={'price': [1.0]}))
    left = write_block(root, [PRICE], block, index=0)
    age(root)
    shard = write_block(root, [PRICE], block, index=0)  # the writer of a snapshot takes what is there
    assert shard == left
    assert shard.path not in collect(root, runs=tmp_path).files
    commit(root, [PRICE], [shard], splits={'': 1}).verify()


def test_shards_that_went_missing_are_noticed_before_the_pointer_moves(tmp_path):
    first = write_snapshot(tmp_path, [PRICE], Block(keys=['a'], columns={'price': [1.0]}))
    shard = write_block(tmp_path, [PRICE], Block(keys=['b'], columns={'price': [2.0]}), index=0)
    (tmp_path / shard.path).unlink()
    before = there(tmp_path)
    with pytest.raises(ShardError, match=f'{shard.path}.*is missing'):
        commit(tmp_path, [PRICE], [shard], splits={'': 1})
    assert open_snapshot(tmp_path).id == first.id
    assert there(tmp_path) == before


def test_a_collection_that_is_stopped_leaves_every_listed_snapshot_whole(tmp_path, monkeypatch):
    for number in range(4):
        write(tmp_path, [number, number + 1])
    age(tmp_path)
    unlink = Path.unlink
    for stop_after in range(4):
        removed = []

        def stopped(path, removed=removed, stop_after=stop_after, **options):
            if len(removed) == stop_after:
                raise KeyboardInterrupt
            removed.append(path)
            unlink(path, **options)

        monkeypatch.setattr(Path, 'unlink', stopped)
        with pytest.raises(KeyboardInterrupt):
            collect(tmp_path, runs=tmp_path / 'none')
        for entry in log(tmp_path):
            open_snapshot(tmp_path, entry.id).verify()


@pytest.mark.parametrize('what', ['manifests/*.json', 'manifests/*.arrow', 'run', 'LATEST'])
def test_damage_that_hides_what_is_needed_stops_it_before_anything_is_removed(tmp_path, what):
    root, runs = tmp_path / 'shards', tmp_path / 'runs'
    write(root, [1])
    write(root, [2])
    age(root)
    if what == 'run':
        (create_run('shop', {}, runs=runs).path / 'run.json').write_text('{')
    elif what == 'LATEST':
        (root / 'LATEST').write_text('0123456789abcdef')
    else:
        for file in root.glob(what):
            file.write_bytes(b'{}')
    before = there(root)
    with pytest.raises(RunError if what == 'run' else ShardError):
        collect(root, runs=runs)
    with pytest.raises(ConfigError, match='keep=-1'):
        collect(root, keep=-1)
    assert there(root) == before


def test_the_gc_command_keeps_what_runs_of_the_project_name(tmp_path, monkeypatch, capsys):
    root = tmp_path / '.mmpipe' / 'shards' / 'collected'
    (tmp_path / 'pipelines' / 'collected').mkdir(parents=True)
    (tmp_path / 'pyproject.toml').touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('MMPIPE_HOME', str(tmp_path / '.mmpipe'))
    monkeypatch.setenv('PIXELTABLE_HOME', str(tmp_path / 'none'))
    ids = [write(root, [number]).id for number in range(4)]
    create_run('other', {'snapshot': {'id': ids[0], 'root': 'elsewhere'}})
    age(root)

    def gc(*options):
        app(['gc', 'collected', '--json', *options], standalone_mode=False)
        return json.loads(capsys.readouterr().out)

    assert gc('--dry-run')['removed'] == gc('--dry-run')['removed'] == [ids[2], ids[1]]
    assert gc('--keep', '2')['removed'] == [ids[1]]
    assert gc()['kept'] == [ids[3], ids[0]]
    app(['gc', 'collected'], standalone_mode=False)
    assert 'removed 0 files, 0.0 MB, and with them 0 snapshots; 2 kept' in capsys.readouterr().out


def test_a_snapshot_that_a_trial_of_a_study_was_trained_on_stays(tmp_path):
    root, runs = tmp_path / 'shards', tmp_path / 'runs'
    tried, forgotten, latest = (write(root, [number]) for number in range(3))
    (runs / 'study').mkdir(parents=True)
    (runs / 'study' / 'journal.log').touch()
    trial = runs / 'study' / 'trials' / '0003'
    run = create_run('shop', {'snapshot': {'id': tried.id, 'root': str(root)}}, runs=trial)
    age(root)
    done = collect(root, runs=runs)
    assert set(done.kept) == {latest.id, tried.id}
    assert done.removed == (forgotten.id,)
    open_snapshot(root, tried.id).verify()
    (run.path / 'run.json').write_text('{')  # nobody can tell what it names
    with pytest.raises(RunError):
        collect(root, runs=runs)
