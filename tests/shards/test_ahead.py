"""Shards are fetched ahead of the order: in it, several at a time, bounded, and never silently stuck."""

from __future__ import annotations

import hashlib
import os
import re
import threading
import time

import numpy as np
import pytest
from object_roots import delete, get, put

from mmpipe.errors import ShardError
from mmpipe.shards import Block, Field, commit, copies, transfer, write_block, write_snapshot
from mmpipe.shards.ahead import FetchAhead
from mmpipe.shards.column import ColumnWriter
from mmpipe.shards.field import content_digest

PHOTO = Field(name='photo', kind='tensor', dtype='uint8', shape=(500,))
PRICE = Field(name='price', kind='scalar', dtype='float32')


@pytest.fixture
def store(front, request):
    """(URL of a root, what the store in front of it counts and does wrong)."""
    front.reset()
    return f's3://shards/{re.sub(r"[^a-z0-9]", "-", request.node.name)}', front


def write(url, blocks=6, rows=10):
    """A snapshot of some blocks whose prices lie in shards of their own, with no copies of it."""
    made = []
    for index in range(blocks):
        values = np.random.default_rng(index).integers(0, 256, (rows, 500), dtype=np.uint8)
        keys = [f'{index}-{i}' for i in range(rows)]
        made.append(write_block(url, [PHOTO], Block(keys=keys, columns={'photo': list(values)}), index=index))
        column = ColumnWriter(url, PRICE, block=index, rows=rows, old=None)
        for row in range(rows):
            column.put(row, float(index), content_digest(PRICE, float(index)), key='', size=4)
        made.append(column.close())
    snapshot = commit(url, [PHOTO, PRICE], made, splits={'': blocks * rows})
    forget()
    return snapshot


def forget():
    for file in copies.shard_cache_dir().glob('*/*'):
        file.unlink()


def files(snapshot, name):
    return [shard.path.rpartition('/')[2] for shard in snapshot.manifest.shards if name in shard.fields]


def until(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_what_is_wanted_is_fetched_in_order_and_nothing_else(store):
    url, state = store
    snapshot = write(url)
    state.reset()
    places = snapshot.rows().places
    ahead = FetchAhead(snapshot, ['photo'], threads=1)
    order = [4, 0, 2]
    for block in order:
        ahead.want(places[places[:, 0] == block])
    for block in order:
        ahead.wait(places[places[:, 0] == block][::-1])  # in another order of rows: the same shards
    assert state.paths() == [files(snapshot, 'photo')[block] for block in order]
    assert state.bytes == sum(shard.bytes for shard in snapshot.manifest.shards
                              if 'photo' in shard.fields and shard.block in order)  # fmt: skip
    state.reset()
    assert len(snapshot.rows().take(np.arange(20, 30)).read('photo')[0]) == 10
    assert state.sent == []
    ahead.close()


def test_several_are_fetched_at_once_and_each_once(store):
    url, state = store
    snapshot = write(url)
    state.reset()
    state.rate = 20_000
    ahead = FetchAhead(snapshot, ['photo', 'price'], threads=4)
    places = snapshot.rows().places
    started = time.monotonic()
    for start in range(0, 60, 20):
        ahead.want(places[start : start + 25])  # neighbours share shards
    assert time.monotonic() - started < 2  # (of some 3 s) does not wait
    for start in range(0, 60, 20):
        ahead.wait(places[start : start + 25])
    assert state.most == 4
    assert sorted(state.paths()) == sorted(files(snapshot, 'photo') + files(snapshot, 'price'))
    ahead.close()


@pytest.mark.slow
def test_what_lies_ahead_is_bounded_and_goes_on_with_each_batch(store):
    url, state = store
    snapshot = write(url)
    state.reset()
    size = max(shard.bytes for shard in snapshot.manifest.shards)
    ahead = FetchAhead(snapshot, ['photo'], ahead_bytes=int(size * 2.5))
    places = snapshot.rows().places
    batches = [places[start : start + 10] for start in range(0, 60, 10)]
    for batch in batches:
        ahead.want(batch)
    for number, batch in enumerate(batches):
        until(lambda n=number: len(state.sent) >= min(6, n + 2) and not state.now)
        time.sleep(0.05)
        assert len(state.sent) <= number + 2
        ahead.wait(batch)
    assert len(state.sent) == 6
    ahead.close()
    state.reset()
    forget()
    ahead = FetchAhead(snapshot, ['photo'], ahead_bytes=int(size * 2.5))
    ahead.want(places)  # a batch that is larger than the bound is fetched all the same
    ahead.wait(places)
    assert len(state.sent) == 6
    ahead.close()


@pytest.mark.slow
def test_a_batch_that_was_not_wanted_is_fetched_when_it_is_waited_for(store):
    url, state = store
    snapshot = write(url, blocks=2)
    state.reset()
    ahead = FetchAhead(snapshot, ['price'])
    ahead.wait(snapshot.rows().places)
    assert sorted(state.paths()) == sorted(files(snapshot, 'price'))
    ahead.close()


@pytest.mark.parametrize('damage', [pytest.param('gone', marks=pytest.mark.slow), 'flipped'])
def test_the_error_of_a_shard_reaches_who_waits_for_it_and_no_other(store, damage):
    url, _ = store
    snapshot = write(url, blocks=3)
    bad = snapshot.manifest.shards[2] if 'photo' in snapshot.manifest.shards[2].fields else snapshot.manifest.shards[3]
    assert bad.block == 1
    data = get(url, bad.path)
    if damage == 'gone':
        delete(url, bad.path)
    else:
        put(url, bad.path, data[:50] + bytes([data[50] ^ 1]) + data[51:])
    places = snapshot.rows().places
    ahead = FetchAhead(snapshot, ['photo'])
    for block in range(3):
        ahead.want(places[places[:, 0] == block])
    ahead.wait(places[places[:, 0] == 0])
    with pytest.raises(ShardError, match=re.escape(f"shard '{url}/{bad.path}'")):
        ahead.wait(places[places[:, 0] == 1])
    ahead.wait(places[places[:, 0] == 2])
    put(url, bad.path, data)  # it was restored: whoever wants it again gets it
    ahead.wait(places[places[:, 0] == 1])
    ahead.close()


def test_a_wait_tells_how_far_it_is_and_a_stall_ends_in_an_error(store, monkeypatch):
    url, state = store
    snapshot = write(url, blocks=1)
    monkeypatch.setattr(transfer, 'STALL_S', 1.5)
    monkeypatch.setattr(transfer, 'TELL_S', 0.2)
    state.always = 30.0
    said = []
    ahead = FetchAhead(snapshot, ['photo'], told=said.append)
    ahead.want(snapshot.rows().places)
    with pytest.raises(ShardError, match=r"shard 's3://.*arrow' cannot be read after 0 of [\d,]+ bytes: \d tries"):
        ahead.wait(snapshot.rows().places)
    assert said
    assert re.match(r"waiting for shard 's3://.*arrow': 0.0 of 0.0 MB, 0.0 MB/s", said[0])
    ahead.close()


def test_a_store_whose_package_never_comes_back_is_an_error_too(url, monkeypatch):
    snapshot = write_snapshot(url, [PRICE], Block(keys=['a'], columns={'price': [1.0]}))
    never = threading.Event()
    monkeypatch.setattr(type(snapshot.place), 'mapped', lambda *args, **options: never.wait(30))
    monkeypatch.setattr(transfer, 'STALL_S', 0.1)
    monkeypatch.setattr(transfer, 'TELL_S', 0.1)
    ahead = FetchAhead(snapshot, ['price'], told=lambda line: None)
    with pytest.raises(ShardError, match='nothing came from the store'):
        ahead.wait(snapshot.rows().places)
    never.set()
    ahead.close()


@pytest.mark.slow
def test_closing_ends_what_is_under_way_and_leaves_nothing_half(store, monkeypatch):
    url, state = store
    snapshot = write(url)
    monkeypatch.setattr(transfer, 'PIECE', 1000)
    state.reset()
    state.rate = 10_000
    ahead = FetchAhead(snapshot, ['photo'], threads=2)
    ahead.want(snapshot.rows().places)
    until(lambda: state.now)
    ahead.close()
    until(lambda: not [path for path in copies.shard_cache_dir().glob('*/*') if path.suffix != '.arrow'])
    sent = len(state.sent)
    time.sleep(0.2)
    assert len(state.sent) == sent < 12


@pytest.mark.slow
def test_what_is_fetched_ahead_is_not_removed_before_it_is_read(store, monkeypatch):
    url, state = store
    snapshot = write(url)
    places = snapshot.rows().places
    size = max(shard.bytes for shard in snapshot.manifest.shards)
    monkeypatch.setenv(copies.LIMIT_VARIABLE, str(size * 4.5 / 1e9))
    ahead = FetchAhead(snapshot, ['photo'], ahead_bytes=size * 3)
    state.reset()
    for start in range(0, 60, 10):
        ahead.want(places[start : start + 10])
    until(lambda: len(state.sent) >= 3 and not state.now)
    for i in range(6):  # others need room, and get what was fetched and is not held
        other = bytes([i]) * size
        copies.fetch(hashlib.sha256(other).hexdigest(), size, lambda progress, other=other: [other], url='s3://b/x')
    values = []
    for start in range(0, 60, 10):
        ahead.wait(places[start : start + 10])
        values.append(snapshot.rows().take(np.arange(start, start + 10)).read('photo')[0])
    assert sorted(state.paths()) == sorted(files(snapshot, 'photo'))
    assert (np.concatenate(values) == np.concatenate(
        [np.random.default_rng(i).integers(0, 256, (10, 500), dtype=np.uint8) for i in range(6)])).all()  # fmt: skip
    ahead.close()


def test_for_a_directory_nothing_is_done(tmp_path):
    snapshot = write_snapshot(tmp_path, [PRICE], Block(keys=['a', 'b'], columns={'price': [1.0, 2.0]}))
    before = threading.active_count()
    ahead = FetchAhead(snapshot, ['price'])
    for _ in range(3):
        ahead.want(snapshot.rows().places)
        ahead.wait(snapshot.rows().places)
    assert threading.active_count() == before
    (tmp_path / snapshot.manifest.shards[0].path).unlink()
    ahead.wait(np.array([[0, 0]]))
    ahead.close()
    assert os.listdir(copies.shard_cache_dir()) == []


@pytest.mark.slow
def test_patches_are_fetched_with_the_blocks_they_patch(store):
    url, state = store
    first = write(url, blocks=2)
    column = ColumnWriter(url, PRICE, block=1, rows=10, old=first)
    column.put(3, 99.0, content_digest(PRICE, 99.0), key='', size=4)
    patch = column.close()
    assert '_row' in patch.fields
    snapshot = commit(url, [PHOTO, PRICE], [*first.manifest.shards, patch], splits={'': 20})
    first.forget()
    forget()
    state.reset()
    ahead = FetchAhead(snapshot, ['price'])
    ahead.wait(np.array([[1, 0]]))
    assert len(state.sent) == 2
    state.reset()
    assert snapshot.column(1, 'price').find(3)[0].array[0].as_py() == 99.0
    assert state.sent == []
    ahead.close()


def test_random_batches_are_all_there_after_their_wait(url):
    snapshot = write(url)
    draw = np.random.default_rng(3)
    ahead = FetchAhead(snapshot, ['photo', 'price'], threads=3, ahead_bytes=8000)
    places = snapshot.rows().places
    batches = [places[draw.choice(60, 7, replace=False)] for _ in range(20)]
    for batch in batches[:4]:
        ahead.want(batch)
    for number, batch in enumerate(batches):
        ahead.wait(batch)
        for block in set(batch[:, 0].tolist()):
            for name in ('photo', 'price'):
                for shard in snapshot.shards_of(block, name):
                    assert copies.has(shard.sha256, shard.bytes)
        if number + 4 < 20:
            ahead.want(batches[number + 4])
    assert not ahead._wanted
    assert not ahead._jobs
    ahead.close()
