"""Snapshots of so many shards that their list is a tree: what is opened, read and written is counted."""

from __future__ import annotations

import itertools
import json
import sys
import tempfile
import uuid
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmpipe.data import DataLoader
from mmpipe.data.order import epoch_order
from mmpipe.errors import ShardError
from mmpipe.shards import Block, Field, Rows, collect, commit, compact, key_hash, open_snapshot, write_block
from mmpipe.shards import leaf as leaves
from mmpipe.shards import manifest as manifests
from mmpipe.shards import reader as readers
from mmpipe.shards import rows as rows_module
from mmpipe.shards import tree as trees
from mmpipe.shards.leaf import LEAF_BLOCKS
from mmpipe.shards.objects import ObjectRoot
from mmpipe.shards.root import LocalRoot

BENCHMARKS = str(Path(__file__).parents[2] / 'benchmarks')
if BENCHMARKS not in sys.path:
    sys.path.insert(0, BENCHMARKS)

import many_shards  # noqa: E402

MANY = 10_000
PRICE = Field(name='price', kind='scalar', dtype='float32')


@pytest.fixture(scope='module')
def many(tmp_path_factory):
    """10^4 entries; no shard is there."""
    root = tmp_path_factory.mktemp('many')
    return root, many_shards.write_manifest(root, MANY).id


@pytest.fixture
def counted(monkeypatch):
    """How often files are read or mapped, and shards made into objects."""
    count = dict.fromkeys(('opened', 'shards'), 0)
    names = []

    def noting(function, what):
        def call(self, *args, **options):
            count[what] += 1
            names.append(args[0] if args else None)
            return function(self, *args, **options)

        return call

    for name in ('mapped', 'read'):
        monkeypatch.setattr(LocalRoot, name, noting(getattr(LocalRoot, name), 'opened'))
    make = leaves.Shard.__init__

    def made(self, **fields):
        count['shards'] += 1
        make(self, **fields)

    monkeypatch.setattr(leaves.Shard, '__init__', made)
    count['names'] = names
    return count


def grown(snapshot, shard):
    """Its shards, and one more."""
    return snapshot.shards.revised(lambda old: old.fields, blocks=(), new=[shard])


def test_entries_are_those_of_shards_as_they_are_written(many, tmp_path):
    root, identity = many
    shards = open_snapshot(root, identity).shards
    for block in (0, 3, 77, LEAF_BLOCKS, MANY - 1):
        written = write_block(tmp_path, many_shards.FIELDS, many_shards.rows_block(block), index=block)
        assert shards[block] == written
        assert (tmp_path / written.path).read_bytes() == many_shards.shard_bytes(block)


def test_opening_reads_three_files_and_makes_no_object_of_a_shard(many, counted):
    root, identity = many
    snapshot = open_snapshot(root, identity)
    assert len(snapshot.shards) == MANY
    assert len(snapshot) == sum(map(many_shards.rows_of, range(MANY)))
    assert counted['opened'] == 4  # head, tree, mask; and versions, of which there are none
    assert (counted['shards'], snapshot.shards.leaves_read) == (0, [])


def test_an_epoch_is_ordered_and_split_without_a_shard_or_a_leaf(many, counted):
    root, identity = many
    snapshot = open_snapshot(root, identity)
    before = counted['opened']
    train = snapshot.split('train')
    keys = [
        key for block in range(MANY) if many_shards.split_of(block) == 'train' for key in many_shards.keys_of(block)
    ]
    hashes = np.array([key_hash(key) for key in keys], dtype=np.uint64)
    assert (train.hashes == hashes).all()
    assert (epoch_order(train.hashes, 3, 1) == epoch_order(hashes, 3, 1)).all()
    assert set(snapshot.rows().system('_split')) == {'train', 'val'}
    assert counted['opened'] - before == 3 * len(snapshot.shards.branches)  # one index a leaf, each time
    assert (counted['shards'], snapshot.shards.leaves_read) == (0, [])


def test_the_first_batch_opens_its_own_shards(many, counted):
    root, identity = many
    rows = open_snapshot(root, identity).split('train')
    first = Rows(rows.snapshot, rows.index[epoch_order(rows.hashes, 0, 0)[: 2 * 64]])  # it makes one ahead
    blocks = np.unique(first.places[:, 0])
    many_shards.write_shards(root, blocks.tolist())
    keys, train = first.keys.tolist(), open_snapshot(root, identity).split('train')
    loader = DataLoader(train, batch_size=64, shuffle=True, device='cpu', num_workers=0, prefetch_factor=1)
    counted['names'].clear()
    counted['shards'] = 0
    batch = next(iter(loader))
    assert batch['_key'] == keys[:64]
    opened = {name for name in counted['names'] if name.startswith('shards/')}
    assert len(opened) <= len(blocks) <= 2 * 64
    assert counted['shards'] <= len(blocks)
    want = [int(key[:8]) % many_shards.KINDS * 4 + int(key[9:]) for key in batch['_key']]
    assert batch['pixels'][:, 0, 0, 0].tolist() == want


def test_a_loader_resumes_in_the_middle_of_an_epoch_and_gives_each_sample_once(many):
    root, identity = many

    def loader():
        return DataLoader(open_snapshot(root, identity).split('val'), batch_size=100, shuffle=True, device='cpu')

    many_shards.write_shards(root, [block for block in range(MANY) if many_shards.split_of(block) == 'val'])
    one, seen = loader(), []
    for batch in itertools.islice(one, 7):
        seen += batch['_key']
    state = json.loads(json.dumps(one.state_dict()))
    assert state['consumed'] == 700
    two = loader()
    two.load_state_dict(state)
    for batch in two:
        seen += batch['_key']
    every = [key for block in range(MANY) if many_shards.split_of(block) == 'val' for key in many_shards.keys_of(block)]
    assert len(seen) == len(every)
    assert set(seen) == set(every)


def test_a_snapshot_with_one_shard_more_writes_a_leaf_and_reads_one(many, tmp_path, counted):
    root, identity = many
    old = open_snapshot(root, identity)
    there = {path.name for path in (root / 'manifests').iterdir()}
    shard = write_block(root, many_shards.FIELDS, many_shards.rows_block(MANY), index=MANY)
    shards, counts = grown(old, shard), {'train': len(old) + shard.rows}
    made = commit(root, many_shards.FIELDS, shards, parent=old.id, splits=counts)
    new = {path for path in (root / 'manifests').iterdir() if path.name not in there}
    whole = sum(path.stat().st_size for path in (root / 'manifests').glob('*.arrow'))
    assert len(new) == 5  # head, tree, leaf and its two indexes
    assert sum(path.stat().st_size for path in new) < whole / 4
    assert old.shards.leaves_read == [MANY // LEAF_BLOCKS]
    assert made.rows().hashes.tolist()[-shard.rows :] == [key_hash(key) for key in many_shards.keys_of(MANY)]
    assert [one.list for one in made.shards.branches[:-1]] == [one.list for one in old.shards.branches[:-1]]
    # And a comparison opens the new shard alone, and reads the leaves that differ.
    one, two = open_snapshot(root, identity), open_snapshot(root, made.id)
    counted['names'].clear()
    found = two.diff(one)
    assert found.added == tuple(many_shards.keys_of(MANY))
    assert not found.removed
    assert (one.shards.leaves_read, two.shards.leaves_read) == ([MANY // LEAF_BLOCKS],) * 2
    assert {name for name in counted['names'] if name.startswith('shards/')} == {shard.path}
    assert not one.diff(open_snapshot(root, identity))


def test_a_row_is_found_by_key_or_name_in_its_own_shard(many, counted):
    root, identity = many
    many_shards.write_shards(root, [4321])
    rows = open_snapshot(root, identity).rows()
    counted['names'].clear()
    for name in ('_key', '_rowid'):
        found = np.flatnonzero(rows.among(name, ['00004321-1', 'none']))
        assert rows.take(found).keys.tolist() == ['00004321-1']
    assert len({name for name in counted['names'] if name.startswith('shards/')}) == 1


@pytest.mark.parametrize('how', ['gone', 'cut', 'flipped', 'empty'])
@pytest.mark.parametrize('kind', ['list', 'keys', 'rowids'])
def test_a_damaged_leaf_or_index_is_named_when_it_is_read(tmp_path, kind, how):
    snapshot = many_shards.write_manifest(tmp_path, LEAF_BLOCKS + 5)
    file = tmp_path / getattr(snapshot.shards.branches[1], kind).path
    data = file.read_bytes()
    if how == 'gone':
        file.unlink()
    else:
        changed = {'cut': data[:99], 'empty': b'', 'flipped': data[:500] + bytes([data[500] ^ 1]) + data[501:]}
        file.write_bytes(changed[how])
    snapshot = open_snapshot(tmp_path)
    with pytest.raises(ShardError, match=rf'{file.stem}.*Restore it, or open an older snapshot'):
        {
            'list': lambda: snapshot.shards[-1],
            'keys': lambda: snapshot.rows().hashes,
            'rowids': lambda: snapshot.rows().among('_rowid', ['x']),
        }[kind]()


def test_a_missing_shard_is_named_when_it_is_read_and_when_it_is_to_be_listed(tmp_path):
    snapshot = many_shards.write_manifest(tmp_path, LEAF_BLOCKS + 5)
    with pytest.raises(ShardError, match=r'shard .* is missing. Restore it'):
        snapshot.rows().take([0]).read('pixels')
    gone = leaves.Shard(
        block=9999, path=leaves.path_of('ab' * 32), fields=many_shards.LISTED, rows=1, bytes=9, sha256='ab' * 32
    )
    with pytest.raises(ShardError, match='is missing or has not its 9 bytes'):
        commit(tmp_path, many_shards.FIELDS, grown(snapshot, gone))


def test_files_that_nobody_needs_are_collected_and_shared_leaves_stay(tmp_path):
    first = many_shards.write_manifest(tmp_path, LEAF_BLOCKS + 5)
    shard = write_block(tmp_path, many_shards.FIELDS, many_shards.rows_block(LEAF_BLOCKS + 5), index=LEAF_BLOCKS + 5)
    second = commit(tmp_path, many_shards.FIELDS, grown(first, shard))
    removed = collect(tmp_path, keep=1, runs=tmp_path, grace_s=0).files
    old = first.shards.branches[1]
    assert {old.list.path, old.keys.path, old.rowids.path} <= set(removed)
    again = open_snapshot(tmp_path)
    assert (again.id, len(again.rows().hashes), len(list(again.shards))) == (second.id, len(second), LEAF_BLOCKS + 6)


@pytest.fixture
def small_leaves(monkeypatch):
    """Trees of a handful of shards."""
    monkeypatch.setattr(trees, 'LEAF_BLOCKS', 2)
    monkeypatch.setattr(manifests, 'FLAT_SHARDS', 0)
    monkeypatch.setattr(rows_module, 'KEPT_PLACES', 3)
    monkeypatch.setattr(readers, 'LOCAL_FILES', 2)


BLOCKS = st.dictionaries(st.integers(0, 9), st.lists(st.sampled_from(['train', 'val', 'test']), max_size=4), max_size=6)


def written(root, blocks, masked, prefix=''):
    shards, counts, dropped = [], {}, []
    for block, splits in sorted(blocks.items()):
        keys = [f'{prefix}{block}.{row}' for row in range(len(splits))]
        columns = {'price': [float(block)] * len(keys)}
        shards.append(write_block(root, [PRICE], Block(keys=keys, columns=columns, splits=splits), index=block))
        for row, split in enumerate(splits):
            if (block, row) in masked:
                dropped.append((block, row))
            else:
                counts[split] = counts.get(split, 0) + 1
    return commit(root, [PRICE], shards, dropped=np.array(dropped, dtype=np.int64).reshape(-1, 2), splits=counts)


@settings(deadline=None, max_examples=8)
@given(BLOCKS, BLOCKS, st.sets(st.tuples(st.integers(0, 9), st.integers(0, 3)), max_size=6))
def test_a_tree_and_a_list_say_the_same_of_rows_splits_and_differences(one, two, masked):
    found = []
    for leaf_blocks, flat in ((2, 0), (2048, 2048)):
        with tempfile.TemporaryDirectory() as root, pytest.MonkeyPatch.context() as patch:
            patch.setattr(trees, 'LEAF_BLOCKS', leaf_blocks)
            patch.setattr(manifests, 'FLAT_SHARDS', flat)
            patch.setattr(rows_module, 'KEPT_PLACES', 3 if not flat else 1 << 22)
            first, second = written(root, one, masked), written(root, two, set())
            rows = first.rows()
            assert first.indexed == bool(one and not flat)
            order = epoch_order(rows.hashes, 0, 0)
            found.append((
                rows.keys.tolist(), rows.places.tolist(), rows.hashes.tolist(), rows.system('_split').tolist(),
                rows.take(order).keys.tolist(), rows.keys_at(order).tolist(), rows.read('price', order)[0].tolist(),
                {name: first.split(name).keys.tolist() for name in first.splits},
                rows.among('_key', ['1.0', '1.1']).tolist(),
                second.diff(first), first.diff(second), list(first.shards),
            ))  # fmt: skip
    tree, flat = found
    for mine, theirs in zip(tree[:-3], flat[:-3], strict=True):
        assert mine == theirs
    for mine, theirs in zip(tree[-3:-1], flat[-3:-1], strict=True):
        assert {**vars(mine), 'before': '', 'after': ''} == {**vars(theirs), 'before': '', 'after': ''}
    assert tree[-1] == flat[-1]


def test_a_tree_that_is_compacted_keeps_rows_and_order(tmp_path, small_leaves):
    old = written(tmp_path, {block: ['train', 'val'] for block in range(9)}, {(3, 0), (8, 1)})
    made = compact(tmp_path, block_bytes=1)
    assert made.rows().keys.tolist() == old.rows().keys.tolist()
    assert made.rows().hashes.tolist() == old.rows().hashes.tolist()
    assert len(made.manifest.dropped) == 0
    made.verify()


def test_a_leaf_that_comes_again_is_not_looked_through_again(tmp_path, small_leaves, counted):
    blocks = {block: ['train'] for block in range(12)}
    old = written(tmp_path, blocks, set())
    shard = write_block(tmp_path, [PRICE], Block(keys=['new'], columns={'price': [1.0]}), index=12)
    counted['names'].clear()
    made = commit(tmp_path, [PRICE], [*old.manifest.shards, shard], splits={'': 13})  # a plain list, all of it
    assert {name for name in counted['names'] if name.startswith('shards/')} == {shard.path}
    assert made.rows().hashes.tolist() == [*old.rows().hashes.tolist(), key_hash('new')]


def test_a_block_that_lacks_a_field_is_refused(tmp_path, small_leaves):
    good = [write_block(tmp_path, [PRICE], Block(keys=[f'k{i}'], columns={'price': [1.0]}), index=i) for i in range(5)]
    with pytest.raises(
        ShardError, match=r"block 0 of snapshot 'to be written' lists _key, price .* each of _key, note, price"
    ):
        commit(tmp_path, [PRICE, Field(name='note', kind='string')], good)
    with pytest.raises(ShardError, match=r'block 3 .* lists _key, _key, price, price'):
        commit(tmp_path, [PRICE], [*good[:4], good[3], good[4]])


@pytest.mark.slow
def test_a_million_entries_open_differ_and_resume_by_what_is_looked_at(tmp_path, counted):
    blocks = 1_000_000
    snapshot = many_shards.write_manifest(tmp_path, blocks)
    counted['opened'] = counted['shards'] = 0
    snapshot = open_snapshot(tmp_path)
    train = snapshot.split('train')
    assert counted['opened'] == 5 + len(snapshot.shards.branches)  # the pointer, too
    assert counted['shards'] == 0
    loader = DataLoader(train, batch_size=256, shuffle=True, device='cpu', num_workers=0)
    sequence = loader.batches.sequence(0)
    assert (np.bincount(sequence, minlength=len(train)) == 1).all()
    middle = 256 * 4000
    places = train._places_at(np.concatenate([sequence[:512], sequence[middle : middle + 512]]))
    many_shards.write_shards(tmp_path, np.unique(places[:, 0]).tolist())
    seen = [batch['_key'] for batch in itertools.islice(loader, 2)]
    assert list(itertools.chain(*seen)) == train.keys_at(sequence[:512]).tolist()
    state = {**loader.state_dict(), 'consumed': middle}
    again = DataLoader(
        open_snapshot(tmp_path).split('train'), batch_size=128, shuffle=True, device='cpu', num_workers=0
    )
    again.load_state_dict(json.loads(json.dumps(state)))
    seen = [batch['_key'] for batch in itertools.islice(again, 4)]
    assert list(itertools.chain(*seen)) == train.keys_at(sequence[middle : middle + 512]).tolist()
    assert counted['shards'] < 20_000
    shard = write_block(tmp_path, many_shards.FIELDS, many_shards.rows_block(blocks), index=blocks)
    there = {path.name for path in (tmp_path / 'manifests').iterdir()}
    made = commit(tmp_path, many_shards.FIELDS, grown(snapshot, shard))
    written = [path.stat().st_size for path in (tmp_path / 'manifests').iterdir() if path.name not in there]
    assert sum(written) < 1 << 20
    assert made.diff(open_snapshot(tmp_path, snapshot.id)).added == tuple(many_shards.keys_of(blocks))


def test_on_a_store_a_leaf_is_fetched_once_and_a_commit_lists_no_shards(cache, small_leaves, monkeypatch):
    url = f'memory://shards/{uuid.uuid4().hex}'
    old = written(url, {block: ['train', 'val'] for block in range(9)}, set())
    shard = write_block(url, [PRICE], Block(keys=['new'], columns={'price': [1.0]}), index=9)
    listed, list_folder = [], ObjectRoot.entries
    monkeypatch.setattr(ObjectRoot, 'entries', lambda self, folder: listed.append(folder) or list_folder(self, folder))
    made = commit(url, [PRICE], grown(old, shard), splits={'train': 9, 'val': 9, '': 1})
    assert 'shards' not in listed
    for file in cache.glob('*/*'):
        file.unlink()
    fetched, mapped = [], ObjectRoot.mapped

    def noting(self, name, **options):
        fetched.append(name)
        return mapped(self, name, **options)

    monkeypatch.setattr(ObjectRoot, 'mapped', noting)
    rows = open_snapshot(url).rows()
    assert rows.hashes.tolist() == [*old.rows().hashes.tolist(), key_hash('new')]
    assert not [name for name in fetched if name.startswith('shards/')]
    assert rows.keys_at(np.array([18])).tolist() == ['new']
    assert [name for name in fetched if name.startswith('shards/')] == [shard.path]
    assert made.diff(old).added == ('new',)
