"""Copies of remote shards: whole or not there, fetched once per machine, bounded, never taken from under a reader."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import pickle
import random
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from object_roots import get, put

from mmpipe.errors import ConfigError, ShardError
from mmpipe.shards import Block, Field, commit, copies, open_snapshot, transfer, write_block
from mmpipe.shards.objects import ObjectRoot
from mmpipe.shards.root import LocalRoot

PHOTO = Field(name='photo', kind='tensor', dtype='uint8', shape=(1000,))


@pytest.fixture
def store(front, request):
    """(URL of a root, what the store in front of it counts and does wrong)."""
    front.reset()
    return f's3://shards/{re.sub(r"[^a-z0-9]", "-", request.node.name)}', front


def photos(start, rows):
    return np.random.default_rng(start).integers(0, 256, (rows, 1000), dtype=np.uint8)


def write(url, blocks=3, rows=40):
    """A snapshot of some blocks of random photos, with no copies of it."""
    made = []
    for index in range(blocks):
        keys = [f'{index}-{i}' for i in range(rows)]
        block = Block(keys=keys, columns={'photo': list(photos(index, rows))}, splits=['train'] * rows)
        made.append(write_block(url, [PHOTO], block, index=index))
    snapshot = commit(url, [PHOTO], made, splits={'train': blocks * rows})
    for file in copies.shard_cache_dir().glob('*/*'):
        file.unlink()
    return snapshot


def kept():
    return {path.stem for path in copies.shard_cache_dir().glob('*/*')}


def taken():
    return sum(path.stat().st_size for path in copies.shard_cache_dir().glob('*/*'))


def of(data):
    """Arguments of `fetch` for some content."""
    return hashlib.sha256(data).hexdigest(), len(data)


@pytest.mark.slow
def test_every_byte_crosses_once_and_is_checked(store):
    url, state = store
    snapshot = write(url)
    state.sent.clear()
    for _ in range(2):
        again = open_snapshot(url)
        values, _ = again.rows().read('photo')
        assert (values == np.concatenate([photos(i, 40) for i in range(3)])).all()
    assert state.bytes == sum(shard.bytes for shard in snapshot.manifest.shards)
    assert len(state.sent) == 3
    assert kept() == {shard.sha256 for shard in snapshot.manifest.shards}


# What a store does wrong.


SLOW = pytest.mark.slow


@pytest.mark.parametrize('fault', [503, pytest.param(500, marks=SLOW), pytest.param(429, marks=SLOW), 'reset', 'cut'])
def test_a_failure_that_passes_is_tried_again(store, fault, monkeypatch):
    url, state = store
    snapshot = write(url, blocks=1)
    monkeypatch.setattr(transfer.random, 'uniform', lambda low, high: 0.1)
    state.faults = [fault, fault]
    state.sent.clear()
    assert len(snapshot.rows().read('photo')[0]) == 40
    assert len(state.sent) == 3
    assert [count for _, count in state.sent][2] == snapshot.manifest.shards[0].bytes


def test_the_pause_doubles_and_differs_between_processes(monkeypatch):
    waited = []
    progress = transfer.Progress('s3://b/x', 10)
    monkeypatch.setattr(progress.cancelled, 'wait', waited.append)

    def fails(start, end, limit_s):
        raise ConnectionError('gone')

    with pytest.raises(ShardError, match=r"shard 's3://b/x' cannot be read after 0 of 10 bytes: 5 tries in .* gone"):
        list(transfer.pieces(fails, progress))
    assert len(waited) == 4
    for i, wait_s in enumerate(waited):
        assert 0.5 <= wait_s / (0.25 * 2**i) <= 1.5
    assert len({round(wait_s / 2**i, 9) for i, wait_s in enumerate(waited)}) > 1


@pytest.mark.parametrize(('status', 'said'), [(404, 'is missing'), (403, 'cannot be read')])
def test_what_will_not_pass_is_not_tried_again(store, status, said):
    url, state = store
    snapshot = write(url, blocks=1)
    state.always = status
    state.sent.clear()
    with pytest.raises(ShardError, match=said) as raised:
        snapshot.rows().read('photo')
    assert snapshot.manifest.shards[0].path in str(raised.value)
    assert len(state.sent) == 1
    assert kept() == set()


def test_a_store_that_always_fails_is_an_error_with_url_tries_and_cause(store, monkeypatch):
    url, state = store
    snapshot = write(url, blocks=1)
    monkeypatch.setattr(transfer.random, 'uniform', lambda low, high: 0.01)
    state.always = 503
    state.sent.clear()
    shard = re.escape(f'{url}/{snapshot.manifest.shards[0].path}')
    with pytest.raises(
        ShardError, match=rf"'{shard}' cannot be read after 0 of [\d,]+ bytes: 5 tries in .*told to fail"
    ):
        snapshot.rows().read('photo')
    assert len(state.sent) == transfer.TRIES


@pytest.mark.slow
def test_a_store_that_gives_nothing_is_an_error_after_a_limit_and_is_told_meanwhile(store, monkeypatch, caplog):
    url, state = store
    snapshot = write(url, blocks=1)
    monkeypatch.setattr(transfer, 'STALL_S', 1.5)
    state.always = 20.0
    state.sent.clear()
    started = time.monotonic()
    with caplog.at_level(logging.WARNING), pytest.raises(ShardError, match=r'cannot be read after 0 of .*Timeout'):
        snapshot.rows().read('photo')
    assert time.monotonic() - started < 15
    assert 2 <= len(state.sent) <= transfer.TRIES
    assert 'trying again in' in caplog.text


def test_of_a_slow_store_less_is_asked_for_at_a_time():
    content = random.Random(0).randbytes(6 << 20)
    asked = []

    def slow(start, end, limit_s):
        asked.append(end - start)
        if end - start > 1 << 20:
            raise TimeoutError
        return content[start:end]

    progress = transfer.Progress('s3://b/x', len(content))
    assert b''.join(transfer.pieces(slow, progress)) == content
    assert asked == [4 << 20] + [1 << 20] * 6  # once too much, then what arrives


@given(size=st.integers(0, 3000), piece=st.integers(1, 700), seed=st.integers(0, 99), broken=st.integers(0, 4))
@settings(max_examples=60, deadline=None)
def test_pieces_make_the_whole_whatever_their_size_and_what_fails(size, piece, seed, broken):
    content, draw, left = random.Random(seed).randbytes(size), random.Random(seed), [broken]

    def read(start, end, limit_s):
        if left[0] and draw.random() < 0.5:
            left[0] -= 1
            raise draw.choice([TimeoutError, ConnectionResetError])
        return content[start:end]

    progress = transfer.Progress('s3://b/x', size)
    progress.cancelled.wait = lambda seconds: None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transfer, 'PIECE', piece)
        patch.setattr(transfer, 'SMALLEST', 1)
        assert b''.join(transfer.pieces(read, progress)) == content
    assert progress.done == size


# One cache for all processes.


def test_threads_that_need_one_shard_fetch_it_once():
    data, loads = b'x' * 5000, []

    def load(progress):
        loads.append(1)
        for start in range(0, 5000, 500):
            time.sleep(0.02)
            yield data[start : start + 500]

    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda _: copies.fetch(*of(data), load, url='s3://b/x').to_pybytes(), range(6)))
    assert found == [data] * 6
    assert loads == [1]


READER = """
import sys
from pathlib import Path
from mmpipe.shards import copies, open_snapshot, transfer
transfer.PIECE = 50_000
copies.shard_cache_dir = lambda: Path(sys.argv[2])
snapshot = open_snapshot(sys.argv[1])
print('open', flush=True)
sys.stdin.readline()
print(int(snapshot.rows().read('photo')[0].astype('int64').sum()), flush=True)
sys.stdin.readline()
"""


def reader(url):
    process = subprocess.Popen(
        [sys.executable, '-c', READER, url, str(copies.shard_cache_dir())],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == 'open\n'
    return process


def go(process):
    process.stdin.write('\n')
    process.stdin.flush()


def until(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.slow
def test_two_processes_fetch_a_shard_once_also_when_the_first_is_killed(store):
    url, state = store
    snapshot = write(url, blocks=1, rows=400)
    first, second = reader(url), reader(url)
    try:
        state.rate = 100_000
        state.sent.clear()
        go(first)
        until(lambda: len(state.sent) > 2)  # some pieces are there
        go(second)
        time.sleep(0.3)
        assert state.most == 1  # the second waits
        assert second.poll() is None
        first.send_signal(signal.SIGKILL)
        first.wait()
        before, state.rate = len(state.sent), None
        assert int(second.stdout.readline()) == photos(0, 400).astype('int64').sum()
        until(lambda: not state.now)
        (shard,) = snapshot.manifest.shards
        assert kept() == {shard.sha256}
        assert sum(count for _, count in state.sent[before:]) == shard.bytes  # from the start
    finally:
        for process in (first, second):
            process.kill()
            process.communicate()


@pytest.mark.slow
def test_what_one_process_fetched_others_read_without_a_request(store):
    url, state = store
    write(url, blocks=1).rows().read('photo')
    state.sent.clear()
    both = reader(url), reader(url)
    for process in both:
        go(process)
    assert {int(process.stdout.readline()) for process in both} == {photos(0, 40).astype('int64').sum()}
    for process in both:
        process.communicate('\n', timeout=30)
    assert state.sent == []


@pytest.mark.slow
def test_what_another_process_maps_is_not_removed_and_goes_when_it_ends(store, monkeypatch):
    url, _ = store
    snapshot = write(url, blocks=1)
    (shard,) = snapshot.manifest.shards
    holder = reader(url)
    go(holder)
    holder.stdout.readline()
    monkeypatch.setenv(copies.LIMIT_VARIABLE, str(shard.bytes * 1.5 / 1e9))
    data = b'y' * shard.bytes
    copies.fetch(*of(data), lambda progress: [data], url='s3://b/y')
    assert kept() == {shard.sha256, of(data)[0]}
    holder.send_signal(signal.SIGKILL)  # the kernel drops its locks
    holder.communicate()
    more = b'z' * shard.bytes
    copies.fetch(*of(more), lambda progress: [more], url='s3://b/z')
    assert kept() == {of(more)[0]}


def test_space_that_a_killed_process_set_aside_is_free_again(monkeypatch):
    monkeypatch.setenv(copies.LIMIT_VARIABLE, '0.00001')  # 10 kB
    path = copies._path('ab' * 32)
    path.parent.mkdir()
    path.with_suffix('.lock').write_bytes(bytes(9000))
    path.with_suffix('.part').write_bytes(bytes(4000))
    data = b'x' * 8000
    copies.fetch(*of(data), lambda progress: [data], url='s3://b/x')
    assert kept() == {of(data)[0]}


def test_another_process_that_hangs_is_an_error_that_names_its_lock(monkeypatch):
    data = b'x' * 10
    monkeypatch.setattr(transfer, 'STALL_S', 0.1)
    with copies._sole(copies._path(of(data)[0]).with_suffix('.lock')) as lock:
        assert lock is not None
        with pytest.raises(ShardError, match=r"another process of this machine fetches 's3://b/x'.*\.lock"):
            copies.fetch(*of(data), lambda progress: [data], url='s3://b/x')


# The limit.


def test_the_longest_unused_go_first_and_what_is_held_stays(monkeypatch):
    monkeypatch.setenv(copies.LIMIT_VARIABLE, '0.0000032')  # three of them, and a little more
    contents = [bytes([i]) * 1000 for i in range(5)]

    def fetch(i):
        return copies.fetch(*of(contents[i]), lambda progress: [contents[i]], url=f's3://b/{i}')

    held = fetch(0)
    for i, age in ((1, 50), (2, 100)):
        fetch(i)
        os.utime(copies._path(of(contents[i])[0]), (time.time() - age,) * 2)
    os.utime(copies._path(of(contents[0])[0]), (0, 0))  # the oldest, but held
    fetch(3)
    assert kept() == {of(contents[i])[0] for i in (0, 1, 3)}
    assert taken() == 3000
    view = held.slice(10, 20)  # the lock lasts as long as anything over the map
    del held
    fetch(4)
    assert of(contents[0])[0] in kept()
    assert view.to_pybytes() == bytes(20)
    del view
    fetch(1)
    fetch(2)
    assert of(contents[0])[0] not in kept()
    assert taken() <= 3000


def test_where_all_is_held_the_cache_grows_and_says_so_once(monkeypatch, caplog):
    monkeypatch.setenv(copies.LIMIT_VARIABLE, '0.000002')
    with caplog.at_level(logging.WARNING):
        held = [
            copies.fetch(*of(bytes([i]) * 1000), lambda p, i=i: [bytes([i]) * 1000], url='s3://b/x') for i in range(4)
        ]
    assert len(held) == len(kept()) == 4
    said = [record.message for record in caplog.records if 'none of them can go' in record.message]
    assert len(said) == 1
    assert copies.LIMIT_VARIABLE in said[0]


def test_many_copies_are_not_looked_at_for_each_that_comes(monkeypatch):
    looks, kept_files = [], copies._kept
    monkeypatch.setattr(copies, '_kept', lambda folder: looks.append(1) or kept_files(folder))
    monkeypatch.setenv(copies.LIMIT_VARIABLE, '0.0002')  # 200 of them
    for i in range(100):
        data = i.to_bytes(2, 'big') * 500
        copies.fetch(*of(data), lambda progress, data=data: [data], url='s3://b/x')
    assert taken() == 100_000
    assert 2 <= len(looks) <= 20
    monkeypatch.setenv(copies.LIMIT_VARIABLE, '0.00005')  # another limit counts at once
    data = b'x' * 1000
    copies.fetch(*of(data), lambda progress: [data], url='s3://b/x')
    assert 45_000 < taken() <= 50_000


@pytest.mark.parametrize('text', ['0', '-1', 'much', 'inf', 'nan'])
def test_a_limit_that_is_none_is_refused(monkeypatch, text):
    monkeypatch.setenv(copies.LIMIT_VARIABLE, text)
    with pytest.raises(ConfigError, match=f'{copies.LIMIT_VARIABLE}={text}: a number of gigabytes above 0'):
        copies.cache_limit()


def test_a_dataset_three_times_the_cache_is_read_to_the_end_and_fetched_once_in_block_order(store, monkeypatch):
    url, state = store
    snapshot = write(url, blocks=12, rows=10)
    each = max(shard.bytes for shard in snapshot.manifest.shards)
    monkeypatch.setenv(copies.LIMIT_VARIABLE, str(each * 4.5 / 1e9))
    state.sent.clear()
    rows = open_snapshot(url).rows()
    draw = np.random.default_rng(0)
    order = np.concatenate([draw.permutation(np.arange(start, start + 20)) for start in range(0, 120, 20)])  # 2 blocks
    expected = np.concatenate([photos(i, 10) for i in range(12)])
    out = np.empty((8, 1000), dtype=np.uint8)
    for start in range(0, 120, 8):
        rows.fill('photo', order[start : start + 8], out)
        assert (out == expected[order[start : start + 8]]).all()
        assert taken() <= each * 4.5
    assert sorted(state.paths()) == sorted(shard.path.rpartition('/')[2] for shard in snapshot.manifest.shards)
    assert state.bytes == sum(shard.bytes for shard in snapshot.manifest.shards)


def size_of_cache():
    """Of all copies at one moment: one may come and another go while they are listed, so until two lists are equal."""

    def listed():
        found = {}
        for path in copies.shard_cache_dir().glob('*/*.arrow'):
            with contextlib.suppress(FileNotFoundError):  # another thread has just made room
                found[path] = path.stat().st_size
        return found

    found, again = listed(), listed()
    while found != again:
        found, again = again, listed()
    return sum(found.values())


def test_readers_of_a_small_cache_never_see_anything_wrong(monkeypatch):
    """Threads fetch, hold and let go at random while others make room: content is always right, the limit is kept."""
    monkeypatch.setenv(copies.LIMIT_VARIABLE, '0.00002')  # 20 of 40 contents, and no more than 12 are held
    contents = [random.Random(i).randbytes(1000) for i in range(40)]
    most = []

    def work(seed):
        draw, held = random.Random(seed), []
        for _ in range(60):
            i = draw.randrange(40)
            held.append((i, copies.fetch(*of(contents[i]), lambda p, i=i: [contents[i]], url='s3://b/x')))
            most.append(size_of_cache())
            if len(held) > 3:
                number, buffer = held.pop(0)
                assert buffer.to_pybytes() == contents[number]

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(work, range(3)))
    assert max(most) <= 20_000
    assert not list(copies.shard_cache_dir().glob('*/*.lock'))


# Damage, wherever it is.


def damaged(draw, data):
    """Another content: cut, or with a bit turned; None for gone."""
    kind = draw.choice(['gone', 'cut', 'flipped', 'flipped'])
    if kind == 'gone':
        return None
    if kind == 'cut':
        return data[: draw.randrange(len(data))]
    at = draw.randrange(len(data))
    return data[:at] + bytes([data[at] ^ (1 << draw.randrange(8))]) + data[at + 1 :]


@pytest.mark.parametrize(
    'seeds', [range(12), pytest.param(range(12, 100), marks=pytest.mark.hardening)], ids=['some', 'all']
)
def test_a_damaged_shard_of_a_store_is_always_named(seeds, cache):
    url = 'memory://shards/damaged'
    snapshot = write(url, blocks=4, rows=6)
    for seed in seeds:
        draw = random.Random(seed)
        shard = draw.choice(snapshot.manifest.shards)
        data = get(url, shard.path)
        wrong = damaged(draw, data)
        if wrong is None:
            ObjectRoot(url)._remove(shard.path)
        else:
            put(url, shard.path, wrong)
        with pytest.raises(ShardError, match=re.escape(shard.path)):
            open_snapshot(url).rows().read('photo')
        put(url, shard.path, data)
        assert len(open_snapshot(url).rows().read('photo')[0]) == 24
        for file in cache.glob('*/*'):
            file.unlink()


def test_threads_are_all_told_of_a_failure():
    def load(progress):
        raise ShardError("shard 's3://b/x' cannot be read")
        yield b''

    def fetch(_):
        with pytest.raises(ShardError, match='cannot be read'):
            copies.fetch(*of(b'x'), load, url='s3://b/x')
        return threading.get_ident()

    with ThreadPoolExecutor(4) as pool:
        assert len(list(pool.map(fetch, range(4)))) == 4
    assert kept() == set()


@pytest.mark.parametrize(
    'seeds', [range(12), pytest.param(range(12, 100), marks=pytest.mark.hardening)], ids=['some', 'all']
)
def test_a_damaged_shard_of_a_directory_is_always_named(seeds, tmp_path):
    snapshot = write(tmp_path, blocks=4, rows=6)
    for seed in seeds:
        draw = random.Random(seed)
        shard = draw.choice(snapshot.manifest.shards)
        file = tmp_path / shard.path
        data = file.read_bytes()
        wrong = damaged(draw, data)
        late = pickle.loads(pickle.dumps(open_snapshot(tmp_path, verify='first use')))  # opened before it happens
        if wrong is None:
            file.unlink()
        else:
            file.write_bytes(wrong)
        for opened in (lambda late=late: late, lambda: open_snapshot(tmp_path, verify='first use')):
            with pytest.raises(ShardError, match=re.escape(str(file))):
                opened().rows().read('photo')
        if wrong is None or len(wrong) != len(data):  # which is found without a look at every byte
            with pytest.raises(ShardError, match=re.escape(str(file))):
                open_snapshot(tmp_path)
        file.write_bytes(data)
        assert len(late.rows().read('photo')[0]) == 24


def test_a_shard_that_is_no_arrow_file_is_named_also_without_a_look_at_every_byte(tmp_path):
    snapshot = write(tmp_path, blocks=1)
    file = tmp_path / snapshot.manifest.shards[0].path
    file.write_bytes(bytes(file.stat().st_size))
    with pytest.raises(ShardError, match=rf"shard '{re.escape(str(file))}' of snapshot .* cannot be read"):
        open_snapshot(tmp_path).rows().read('photo')


def test_each_shard_is_compared_once_and_only_when_it_is_read(tmp_path, monkeypatch):
    snapshot = write(tmp_path, blocks=3)
    looked, digest = [], LocalRoot.digest
    monkeypatch.setattr(LocalRoot, 'digest', lambda self, name: looked.append(name) or digest(self, name))
    rows = open_snapshot(tmp_path, verify='first use').rows()
    assert looked == []
    for _ in range(2):
        rows.read('photo', [50, 41])
        rows.snapshot.forget()
    assert looked == [snapshot.manifest.shards[1].path]
    open_snapshot(tmp_path).rows().read('photo')
    assert len(looked) == 1
    with pytest.raises(ConfigError, match=r"verify='always'\): 'first use'"):
        open_snapshot(tmp_path, verify='always')
