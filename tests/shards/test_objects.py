"""Roots on object stores hold what a directory holds, and two writers that share no lock lose nothing."""

from __future__ import annotations

import multiprocessing
import pickle
import random
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import fsspec
import numpy as np
import pytest
from object_roots import age, delete, get, pointers, put, there

from mmpipe.errors import ConfigError, MissingExtraError, ShardError
from mmpipe.runs import create_run
from mmpipe.shards import Block, Field, collect, commit, compact, log, open_snapshot, write_block, write_snapshot
from mmpipe.shards import objects as object_roots
from mmpipe.shards.column import ColumnWriter
from mmpipe.shards.field import content_digest
from mmpipe.shards.manifest import files_of, latest_id
from mmpipe.shards.objects import ObjectRoot
from mmpipe.shards.root import Moved, place_of

PRICE = Field(name='price', kind='scalar', dtype='float32')
NOTE = Field(name='note', kind='string')
FIELDS = [PRICE, NOTE]
EVERYWHERE = pytest.mark.parametrize('url', ['memory', 's3'], indirect=True)  # also in the default run


def block(start, count=4):
    keys = [f'k{i}' for i in range(start, start + count)]
    return Block(keys=keys, columns={'price': [float(i) for i in range(start, start + count)], 'note': keys})


def history(root):
    """Four snapshots: one, another with a block more, one whose prices were computed again, and one without a row."""
    shards = [write_block(root, FIELDS, block(0), index=0)]
    made = [commit(root, FIELDS, shards, splits={'': 4}, versions={'a/b': [['id', 1, 1.5]]})]
    shards.append(write_block(root, FIELDS, block(4), index=1))
    made.append(commit(root, FIELDS, shards, splits={'': 8}, parent=made[-1].id, changes={'inserted': 4}))
    column = ColumnWriter(root, PRICE, block=0, rows=4, old=made[-1])
    for row in range(4):
        column.put(row, 9.0 + row, content_digest(PRICE, 9.0 + row), key='', size=4)
    shards = [replace(shards[0], fields=('_key', 'note')), column.close(), shards[1]]
    made.append(commit(root, FIELDS, shards, splits={'': 8}, parent=made[-1].id, changes={'cells': {'price': 4}}))
    dropped = np.array([[1, 2]], dtype=np.int64)
    made.append(commit(root, FIELDS, shards, dropped=dropped, splits={'': 7}, parent=made[-1].id))
    return made


def held(snapshot):
    rows = snapshot.rows()
    return rows.keys.tolist(), rows.words('price'), rows.words('note'), rows.system('_digest.price').tolist()


@EVERYWHERE
def test_a_store_holds_what_a_directory_holds_under_the_same_ids(url, tmp_path):
    local, remote = history(tmp_path), history(url)
    assert [snapshot.id for snapshot in remote] == [snapshot.id for snapshot in local]
    for one, two in zip(local, remote, strict=True):
        opened = open_snapshot(url, two.id)
        opened.verify()
        assert held(opened) == held(two) == held(one)
        assert (opened.versions, opened.splits, opened.fields) == (one.versions, one.splits, one.fields)
        assert files_of(url, two.id) == files_of(tmp_path, one.id)
        for file in files_of(url, two.id) - {f'manifests/{two.id}.json'}:  # which has its time in it
            if (tmp_path / file).exists():
                assert get(url, file) == (tmp_path / file).read_bytes()
    plain = [[(entry.id, entry.parent, entry.rows, entry.changes, entry.latest) for entry in log(at)]
             for at in (url, tmp_path)]  # fmt: skip
    assert plain[0] == plain[1]
    assert remote[3].diff(remote[0]) == local[3].diff(local[0])
    assert remote[3].diff(local[1]).to_json() == local[3].diff(local[1]).to_json()
    assert open_snapshot(url + '/').id == latest_id(url) == local[-1].id
    assert repr(remote[0]).startswith(f"<Snapshot {remote[0].id} in '{url}': 4 rows")
    small = compact(url)
    assert (small.id, held(small)) == (compact(tmp_path).id, held(local[-1]))


def test_a_snapshot_of_a_store_reopens_where_it_is_unpickled_and_named_by_a_run(url, tmp_path):
    made = history(url)[1]
    rows = pickle.loads(pickle.dumps(made.rows().take([3, 0])))
    assert (rows.keys.tolist(), rows.snapshot.id, rows.snapshot.root) == (['k3', 'k0'], made.id, url)
    record = create_run('shop', {'snapshot': {'id': made.id, 'root': place_of(url + '/')}}, runs=tmp_path).record
    assert held(open_snapshot(record['snapshot']['root'], record['snapshot']['id'])) == held(made)


@EVERYWHERE
def test_a_collection_removes_what_nothing_needs_and_nothing_young(url, tmp_path):
    made = history(url)
    write_block(url, FIELDS, block(40), index=0)  # of a writer that was stopped
    put(url, 'shards/README', b'mine')
    before = there(url)
    assert collect(url, runs=tmp_path).files == ()
    age(url)
    create_run('shop', {'snapshot': {'id': made[0].id, 'root': url}}, runs=tmp_path)
    planned = collect(url, runs=tmp_path, dry_run=True)
    assert there(url) == before
    done = collect(url, runs=tmp_path)
    assert (done.files, done.bytes, done.removed) == (planned.files, planned.bytes, (made[2].id, made[1].id))
    needed = files_of(url, made[0].id) | files_of(url, made[3].id)
    kept = {name for name in before if name.startswith('latest/')} | {'shards/README'}
    assert there(url) == before & needed | kept
    assert set(done.files) == before - there(url) != set()
    for identity in (made[0].id, made[3].id):
        open_snapshot(url, identity).verify()
    assert latest_id(url) == made[3].id


@EVERYWHERE
def test_an_old_shard_that_is_taken_again_is_young_again(url, tmp_path):
    write_snapshot(url, FIELDS, block(0))
    left = write_block(url, FIELDS, block(4), index=0)
    age(url)
    assert write_block(url, FIELDS, block(4), index=0) == left
    assert collect(url, runs=tmp_path).files == ()
    age(url)
    again = open_snapshot(url)  # its head is taken again too
    write_snapshot(url, FIELDS, block(4))
    write_snapshot(url, FIELDS, block(0))
    assert collect(url, runs=tmp_path, keep=0).removed == ()
    assert (latest_id(url), open_snapshot(url).manifest.created) == (again.id, again.manifest.created)


def test_shards_that_went_missing_are_noticed_before_the_pointer_moves(url):
    first = write_snapshot(url, FIELDS, block(0))
    shard = write_block(url, FIELDS, block(4), index=0)
    delete(url, shard.path)
    with pytest.raises(ShardError, match=f"'{url}/{shard.path}'.* is missing"):
        commit(url, FIELDS, [shard], splits={'': 4})
    assert latest_id(url) == first.id


@pytest.mark.parametrize('damage', ['gone', 'cut', 'flipped'])
@pytest.mark.parametrize('what', ['shards', 'masks', 'manifests/json', 'manifests/arrow'])
def test_damage_is_an_error_that_names_the_object(url, what, damage, cache):
    snapshot = write_snapshot(url, FIELDS, block(0))
    folder, _, ending = what.partition('/')
    (name,) = [name for name in there(url) if name.startswith(folder) and name.endswith(ending)]
    data = get(url, name)
    if damage == 'gone':
        delete(url, name)
    else:
        put(url, name, data[:-9] if damage == 'cut' else data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    for file in cache.glob('*/*'):
        file.unlink()
    with pytest.raises(ShardError) as raised:
        held(open_snapshot(url, snapshot.id))
    assert name.rpartition('/')[2].partition('.')[0] in str(raised.value)
    assert not list(cache.glob('*/*'))
    assert not list(cache.glob('.*'))
    if what == 'shards':
        with pytest.raises(ShardError, match='is missing' if damage == 'gone' else 'does not match its digest'):
            open_snapshot(url).verify()


def test_a_copy_that_is_cut_off_is_fetched_again(url, cache):
    expected = held(write_snapshot(url, FIELDS, block(0)))
    (copy,) = cache.glob('*/*')
    copy.write_bytes(copy.read_bytes()[:100])
    assert held(open_snapshot(url)) == expected


@EVERYWHERE
def test_a_pointer_moves_only_from_where_its_writer_saw_it(url):
    root = ObjectRoot(url)
    assert root.latest() is None
    root.move('a' * 16, None)
    seen = root.latest()
    assert (seen.id, seen.number) == ('a' * 16, 1)
    for late in (None, None):
        with pytest.raises(Moved, match=f"a first snapshot in '{url}' meanwhile: write yours again"):
            root.move('b' * 16, late)
    root.move('b' * 16, seen)
    with pytest.raises(Moved, match=f'a snapshot after {seen.id}'):
        root.move('c' * 16, seen)
    assert [identity for identity, _ in pointers(url).values()] == ['a' * 16, 'b' * 16]


@EVERYWHERE
def test_of_two_writers_one_commits_and_the_other_is_told(url):
    first = write_snapshot(url, FIELDS, block(0))
    root = ObjectRoot(url)
    seen = root.latest()
    mine, yours = (write_block(url, FIELDS, block(start), index=1) for start in (4, 8))
    old = list(first.manifest.shards)
    second = commit(url, FIELDS, [*old, mine], splits={'': 8}, parent=first.id, after=seen)
    with pytest.raises(Moved):
        commit(url, FIELDS, [*old, yours], splits={'': 8}, parent=first.id, after=seen)
    assert latest_id(url) == second.id
    assert commit(url, FIELDS, [*old, mine], splits={'': 8}, parent=first.id, after=seen).id == second.id  # the same
    assert len(pointers(url)) == 2
    assert commit(url, FIELDS, old, splits={'': 4}).id == first.id == latest_id(url)  # wherever the pointer is


def test_a_snapshot_that_is_committed_meanwhile_is_not_lost_by_a_compaction(url, monkeypatch):
    history(url)
    write = ObjectRoot.write

    def meanwhile(*args, **options):
        monkeypatch.setattr(ObjectRoot, 'write', write)
        write_snapshot(url, FIELDS, block(100))
        write(*args, **options)

    monkeypatch.setattr(ObjectRoot, 'write', meanwhile)
    with pytest.raises(ShardError, match=r'got another snapshot than .*: compact again'):
        compact(url)
    assert len(open_snapshot(url)) == 4


def test_a_lost_answer_is_told_from_a_lost_race(url, monkeypatch):
    root = ObjectRoot(url)
    root.move('a' * 16, None)
    monkeypatch.setattr(object_roots.time, 'sleep', lambda seconds: None)
    create, calls = ObjectRoot._create, []

    def answer_lost(self, name, data):
        calls.append(name)
        create(self, name, data)
        raise TimeoutError('no answer')

    monkeypatch.setattr(ObjectRoot, '_create', answer_lost)
    root.move('b' * 16, root.latest())  # it was done
    assert (root.latest().id, len(calls)) == ('b' * 16, 1)
    with pytest.raises(Moved):
        root.move('c' * 16, None)

    def request_lost(self, name, data):
        calls.append(name)
        if len(calls) < fails:
            raise TimeoutError('no answer')
        create(self, name, data)

    monkeypatch.setattr(ObjectRoot, '_create', request_lost)
    calls.clear()
    fails = 3
    root.move('d' * 16, root.latest())
    fails = 99
    with pytest.raises(ShardError, match=r"latest/000000000004' cannot be written \(TimeoutError: no answer\)"):
        root.move('e' * 16, root.latest())
    assert root.latest().id == 'd' * 16


def test_a_store_that_cannot_keep_two_writers_apart_is_refused(monkeypatch, tmp_path):
    with pytest.raises(ConfigError, match="root='ftp://host/x': snapshots are written to stores that refuse"):
        ObjectRoot('ftp://host/x').make_writable()
    with pytest.raises(ConfigError, match='is a chain of URLs'):
        open_snapshot('simplecache::s3://bucket/x')
    system = type(fsspec.filesystem('memory'))
    pipe_file = system.pipe_file
    monkeypatch.setattr(system, 'pipe_file', lambda self, path, value, mode='': pipe_file(self, path, value))
    with pytest.raises(ConfigError, match='writes an object that is there already although it was asked not to'):
        write_snapshot('memory://lax/shop', FIELDS, block(0))
    assert latest_id('memory://lax/shop') is None


def test_a_store_whose_package_is_missing_names_the_extra(monkeypatch):
    for package, url, said in (('s3fs', 's3://b/x', "'mmpipe[s3]'"), ('gcsfs', 'gs://b/x', 'gcsfs')):
        monkeypatch.setitem(sys.modules, package, None)
        monkeypatch.delitem(sys.modules['fsspec.registry']._registry, url[:2], raising=False)
        with pytest.raises(MissingExtraError, match=rf"'{url}' needs {package}.*: pip install {re.escape(said)}"):
            open_snapshot(url)


def test_a_directory_that_was_copied_to_a_store_is_read_and_gone_on_from(url, tmp_path):
    made = history(tmp_path)
    for path in tmp_path.rglob('*'):
        if path.is_file():
            put(url, path.relative_to(tmp_path).as_posix(), path.read_bytes())
    assert held(open_snapshot(url)) == held(made[-1])
    write_snapshot(url, FIELDS, block(0))
    assert len(open_snapshot(url)) == 4
    assert [entry.id for entry in log(url) if entry.latest] == [latest_id(url)]


# What it costs, in requests: on S3 alone.


@pytest.fixture
def bucket(s3, request):
    """A root on S3."""
    s3.clear()
    return f's3://shards/{request.node.name}'


def asked(requests, method, part):
    return [path for verb, path, _ in requests if verb == method and part in path]


def test_opening_reads_the_manifest_and_no_shard(s3, bucket, cache):
    shards = [write_block(bucket, FIELDS, block(index * 4), index=index) for index in range(12)]
    commit(bucket, FIELDS, shards, splits={'': 48})
    for file in cache.glob('*/*'):
        file.unlink()
    s3.clear()
    snapshot = open_snapshot(bucket)
    assert asked(s3, 'GET', '/shards/test_opening_reads_the_manifest_and_no_shard/shards/') == []
    assert asked(s3, 'PUT', '') == []
    assert len(s3) <= 12  # the same for one shard and for a thousand
    assert snapshot.splits == {'': 48}
    s3.clear()
    assert snapshot.rows().take([5, 6]).keys.tolist() == ['k5', 'k6']
    assert len(asked(s3, 'GET', '/shards/')) == len(s3) == 1
    again = open_snapshot(bucket)
    s3.clear()
    assert again.rows().take([5]).read('price')[0].tolist() == [5.0]
    assert s3 == []


def test_the_commit_is_one_conditional_write_behind_all_others(s3, bucket):
    first = write_snapshot(bucket, FIELDS, block(0))
    shard = write_block(bucket, FIELDS, block(4), index=1)
    s3.clear()
    after = ObjectRoot(bucket).latest()
    commit(bucket, FIELDS, [*first.manifest.shards, shard], splits={'': 8}, versions={'a/b': []}, after=after)
    sent = [path.rpartition(bucket[4:])[2] for path in asked(s3, 'PUT', '')]
    assert [path.split('/')[1] for path in sent] == ['manifests', 'manifests', 'versions', 'latest']
    assert sent[-1] == '/latest/000000000002'
    assert asked(s3, 'DELETE', '') == []
    with pytest.raises(Moved):
        commit(bucket, FIELDS, [shard], splits={'': 4}, after=after)
    assert [code for verb, path, code in s3 if verb == 'PUT' and path.endswith(sent[-1])] == [200, 412]


def test_what_is_there_is_not_sent_again(s3, bucket):
    history(bucket)
    s3.clear()
    made = history(bucket)[-1]
    sent = [path.partition('/test_what_is_there_is_not_sent_again/')[2] for path in asked(s3, 'PUT', '')]
    assert all(path.startswith(('latest/', 'versions/')) for path in sent)
    s3.clear()
    column = ColumnWriter(bucket, PRICE, block=1, rows=4, old=made)
    for row in range(4):
        column.put(row, 1.0, content_digest(PRICE, 1.0), key='', size=4)
    shard = column.close()
    old = [replace(one, fields=('_key', 'note')) if one.block else one for one in made.manifest.shards]
    commit(bucket, FIELDS, [*old, shard], splits={'': 8})
    sent = [path.partition('/test_what_is_there_is_not_sent_again/')[2] for path in asked(s3, 'PUT', '')]
    assert [path for path in sent if path.startswith('shards/')] == [shard.path]  # of two fields the one


# Processes of their own.

RACING = """
import random, sys, time
from mmpipe.shards import Block, Field, commit, open_snapshot, write_block
from mmpipe.shards.objects import ObjectRoot
from mmpipe.shards.root import Moved
url, name, rounds, seed = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
fields, draw, root = [Field(name='price', kind='scalar', dtype='float32')], random.Random(seed), ObjectRoot(url)
lost = 0
for number in range(rounds):
    key = f'{name}{number}'
    while True:
        pointer = root.latest()
        old = open_snapshot(root, pointer.id)
        shards = list(old.manifest.shards)
        shards.append(write_block(root, fields, Block(keys=[key], columns={'price': [1.0]}), index=len(shards)))
        time.sleep(draw.random() / 50)
        try:
            made = commit(root, fields, shards, splits={'': len(shards)}, parent=old.id, after=pointer)
            break
        except Moved:
            lost += 1
    print(key, made.id, flush=True)
print('lost', lost)
"""


def race(url, rounds, seed):
    write_snapshot(url, [PRICE], Block(keys=['first'], columns={'price': [0.0]}))
    command = [sys.executable, '-c', RACING, url]
    writers = [
        subprocess.Popen([*command, name, str(rounds), str(seed + i)], stdout=subprocess.PIPE, text=True)
        for i, name in enumerate('ab')
    ]
    said = [writer.communicate(timeout=240)[0].splitlines() for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0]
    lost = sum(int(lines[-1].split()[1]) for lines in said)
    committed = dict(line.split() for lines in said for line in lines[:-1])
    assert len(committed) == 2 * rounds
    parents = {entry.id: entry.parent for entry in log(url)}
    chain, at = [], latest_id(url)
    while at is not None:
        chain.append(at)
        at = parents[at]
    assert sorted(chain[:-1]) == sorted(committed.values())
    assert [identity for identity, _ in pointers(url).values()] == chain[::-1]
    snapshot = open_snapshot(url)
    snapshot.verify()
    assert set(snapshot.rows().keys) == {'first', *committed}
    return lost


class Apart(ObjectRoot):
    """A root with a file system of its own, as in a process of its own."""

    def __init__(self, url):
        super().__init__(url)
        self.own = fsspec.url_to_fs(url, use_listings_cache=False, skip_instance_cache=True)

    def _system(self):
        return self.own


@EVERYWHERE
def test_two_threads_that_race_for_each_number_lose_nothing(url):
    rounds, together, won, lost = 20, threading.Barrier(2), [], []
    ObjectRoot(url).make_writable()

    def writer(name, root, draw):
        for number in range(rounds):
            seen = root.latest()
            together.wait(timeout=60)  # both have seen the same
            time.sleep(draw.random() / 500)
            identity = f'{name}{number:015d}'
            try:
                root.move(identity, seen)
                won.append((number + 1, identity))
            except Moved:
                lost.append(number + 1)
            together.wait(timeout=60)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(writer, 'ab', (Apart(url), Apart(url)), map(random.Random, (1, 2))))
    assert sorted(number for number, _ in won) == sorted(lost) == list(range(1, rounds + 1))
    assert {number: identity for number, (identity, _) in pointers(url).items()} == dict(won)
    assert len({identity[0] for _, identity in won}) == 2  # neither wins always


@pytest.mark.slow
def test_two_processes_that_race_lose_nothing(s3, bucket):
    assert race(bucket, rounds=6, seed=0) > 0


@pytest.mark.hardening
@pytest.mark.timeout(1200)
def test_many_races(s3, bucket):
    assert sum(race(f'{bucket}/{seed}', rounds=25, seed=seed) for seed in range(3)) > 20


KILLED = """
import os, signal, sys
from mmpipe.shards import Block, Field, write_snapshot
from mmpipe.shards.objects import ObjectRoot
ObjectRoot.move = lambda *args: os.kill(os.getpid(), signal.SIGKILL)
write_snapshot(sys.argv[1], [Field(name='price', kind='scalar', dtype='float32')],
               Block(keys=['new'], columns={'price': [7.0]}))
"""


def test_a_writer_killed_before_the_pointer_moves_leaves_the_old_snapshot_and_files_that_are_found(
    s3, bucket, tmp_path
):
    snapshot = write_snapshot(bucket, [PRICE], Block(keys=['a'], columns={'price': [1.0]}))
    before = there(bucket)
    done = subprocess.run([sys.executable, '-c', KILLED, bucket], check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    left = there(bucket) - before
    assert {name.partition('/')[0] for name in left} == {'shards', 'manifests'}
    assert open_snapshot(bucket).id == latest_id(bucket) == snapshot.id
    assert collect(bucket, runs=tmp_path).files == ()
    age(bucket)
    assert set(collect(bucket, runs=tmp_path, keep=0).files) == left
    assert there(bucket) == before
    open_snapshot(bucket).verify()


def read_in_a_process(snapshot, answers):
    answers.put(held(snapshot))


def test_processes_that_fork_off_read_a_store_and_share_the_copies(s3, bucket, cache):
    expected = history(bucket)[-1]
    answer = held(expected)
    for file in cache.glob('*/*'):
        file.unlink()
    context = multiprocessing.get_context('fork')
    answers = context.Queue()
    readers = [context.Process(target=read_in_a_process, args=(open_snapshot(bucket), answers)) for _ in range(2)]
    for reader in readers:
        reader.start()
    assert [answers.get(timeout=60) for _ in readers] == [answer] * 2
    for reader in readers:
        reader.join(timeout=60)
    assert len(list(cache.glob('*/*'))) == 3
    assert not list(cache.glob('.*'))
