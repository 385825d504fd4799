"""A delta by itself: what it reads back as, and which bytes it writes. Counted from files; needs no database."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from fields import as_python, same
from hypothesis import given, settings
from hypothesis import strategies as st
from snapshots import content, files

import mmpipe as mm
from mmpipe.shards import Field, column, commit, compact, log, open_snapshot
from mmpipe.shards.field import content_digest
from mmpipe.snapshots import delta as delta_module
from mmpipe.snapshots.delta import Delta, Old, text_of
from mmpipe.snapshots.describe import written_anew
from mmpipe.snapshots.read import PageRow

WORDS = ('a', 'b')
FORMS = {
    'photo': [Field(name='photo', kind='tensor', dtype=d, shape=(2, 2)) for d in ('uint8', 'float32')],
    'wave': [Field(name='wave', kind='ragged', dtype='float32', shape=s) for s in ((), (2,))],
    'price': [Field(name='price', kind='scalar', dtype=d) for d in ('float32', 'float64')],
    'note': [Field(name='note', kind='string'), Field(name='note', kind='binary')],
    'kind': [Field(name='kind', kind='label', vocabulary=v) for v in (WORDS, WORDS[::-1])],
    'tags': [Field(name='tags', kind='labels', vocabulary=v) for v in (WORDS, (*WORDS, 'c'))],
}


def value_of(field, seed):
    """A value that depends on the field's form and a small number; None for some."""
    if seed % 4 == 3:
        return None
    return {
        'tensor': lambda: np.full(field.shape, seed, dtype=field.dtype),
        'ragged': lambda: np.full((seed, *field.shape), seed, dtype=field.dtype),
        'scalar': lambda: float(seed), 'string': lambda: f'note {seed}', 'binary': lambda: bytes([seed]),
        'label': lambda: WORDS[seed % 2], 'labels': lambda: list(WORDS[: seed % 3]),
    }[field.kind]()  # fmt: skip


class World:
    """Rows as they should be, and the snapshots made of them one after the other."""

    def __init__(self, root):
        self.root = Path(root)
        self.rows = {}  # rowid: [key, split, {field: seed}]
        self.forms = {'price': 0, 'note': 0, 'photo': 0}
        self.numbers = itertools.count()

    @property
    def fields(self):
        return [FORMS[name][form] for name, form in self.forms.items()]

    def value(self, rowid, field):
        return value_of(field, self.rows[rowid][2].get(field.name, 1))

    def freeze(self):
        """Take every row, as after a changed definition: what is as it was has to be found by its digests."""
        previous = open_snapshot(self.root) if (self.root / 'LATEST').exists() else None
        old = Old(previous, None)
        delta = Delta(root=self.root, fields=self.fields, old=old, anew=written_anew(previous, self.fields))
        try:
            for rowid in old.in_order(list(self.rows)):
                key, split, _ = self.rows[rowid]
                values = {field.name: self.value(rowid, field) for field in self.fields}
                delta.take(text_of(rowid), PageRow(key=key, split=split, values=values))
            for name in old.position.keys() - {text_of(rowid) for rowid in self.rows}:
                delta.drop(name)
            shards = delta.finish()
        finally:
            delta.abandon()
        splits = {name: count for name, count in delta.splits.items() if count}
        dropped = np.array(delta.dropped, dtype=np.int64).reshape(-1, 2)
        return delta, commit(self.root, self.fields, shards, dropped=dropped, splits=splits)

    def play(self, step):
        kind, seed, chosen = step
        ids = [rowid for place, rowid in enumerate(self.rows) if place % 5 in chosen]
        if kind == 'insert':
            for number in itertools.islice(self.numbers, 1 + 2 * len(chosen)):
                self.rows[(number,)] = [
                    f'key {number}',
                    ('train', 'val')[number % 2],
                    {'price': seed, 'note': number, 'photo': number},
                ]
        elif kind == 'delete' and len(ids) < len(self.rows):
            for rowid in ids:
                del self.rows[rowid]
        elif kind in ('one', 'two', 'all'):
            for name in list(self.forms)[seed % len(self.forms) :][: {'one': 1, 'two': 2, 'all': 9}[kind]]:
                for rowid in ids:
                    self.rows[rowid][2][name] = seed
        elif kind == 'split':
            for rowid in ids:
                self.rows[rowid][1] = 'test'
        elif kind == 'key':
            for rowid in ids:
                self.rows[rowid][0] = f'key {rowid[0]} of {seed}'
        elif kind == 'field':
            name = list(FORMS)[seed % len(FORMS)]
            if name not in self.forms:
                self.forms[name] = 0
            elif seed % 3 and len(self.forms) > 1:
                del self.forms[name]
            else:
                self.forms[name] = 1 - self.forms[name]


def read_back(world, snapshot):
    """Everything a snapshot holds, checked against the rows it should hold."""
    rows = snapshot.rows()
    ids = [tuple(map(int, name.split('/'))) for name in rows.system('_rowid')]
    assert sorted(ids) == sorted(world.rows)
    assert [(key, split) for key, split in zip(rows.keys, rows.system('_split'), strict=True)] == [
        tuple(world.rows[rowid][:2]) for rowid in ids
    ]
    backwards = np.arange(len(ids))[::-1]
    for field in world.fields:
        expected = [world.value(rowid, field) for rowid in ids]
        assert rows.system(f'_digest.{field.name}').tolist() == [content_digest(field, value) for value in expected]
        for selection, wanted in ((rows, expected), (rows.take(backwards), expected[::-1])):
            got = as_python(field, *selection.read(field.name))
            assert all(same(field, one, two) for one, two in zip(wanted, got, strict=True))
    for split in snapshot.splits:
        assert snapshot.split(split).keys.tolist() == [
            rows.keys[i] for i in np.flatnonzero(rows.system('_split') == split)
        ]
    return {rowid: (*world.rows[rowid][:2], dict(digests_of(world, rowid))) for rowid in ids}


def digests_of(world, rowid):
    return {field.name: content_digest(field, world.value(rowid, field)) for field in world.fields}


def stale_fields(was, now, anew):
    """Row to the fields of it that have to be written, for the rows that were there before."""
    stale = {}
    for rowid in was.keys() & now.keys():
        (*moved, old), (*there, new) = was[rowid], now[rowid]
        stale[rowid] = set(new) if moved != there else {n for n in new if n in anew or old[n] != new[n]}
    return stale


def check_files(root, before, after, stale, now):
    """No file is touched; every new one holds rows that are new or wholly changed, or a field that changed."""
    assert {name: after[name] for name in before if name != 'LATEST'} == {n: before[n] for n in before if n != 'LATEST'}
    wholly = {rowid for rowid, names in stale.items() if names == set(now[rowid][2])}
    partly = set().union(*(stale[rowid] for rowid in stale.keys() - wholly))
    for name in after.keys() - before.keys():
        if name.startswith('shards/'):
            table = pa.ipc.open_file(root / name).read_all()
            if '_key' in table.column_names:
                ids = {tuple(map(int, rowid.split('/'))) for rowid in table['_rowid'].to_pylist()}
                assert ids <= (now.keys() - stale.keys()) | wholly
            else:
                *row, field, digest = table.column_names
                assert row in ([], ['_row'])
                assert digest == f'_digest.{field}'
                assert field in partly


STEPS = st.lists(
    st.tuples(
        st.sampled_from(['insert', 'delete', 'one', 'two', 'all', 'split', 'key', 'field', 'field', 'compact']),
        st.integers(0, 20),
        st.sets(st.integers(0, 4), min_size=1, max_size=3),
    ),
    min_size=1,
    max_size=8,
)


@settings(deadline=None, max_examples=20)
@given(STEPS)
def test_a_delta_reads_as_the_rows_do_and_writes_no_byte_of_what_is_as_it_was(tmp_path_factory, steps):
    folder = tmp_path_factory.mktemp('delta')
    with pytest.MonkeyPatch.context() as small:
        small.setattr(column, 'BATCH_BYTES', 45)  # so that blocks and columns come in many pieces
        small.setattr(delta_module, 'BLOCK_BYTES', 90)
        small.setattr(os, 'fsync', lambda handle: None)  # most of the time, and nothing that is asked here
        play(World(folder), steps)


@pytest.mark.hardening
@settings(deadline=None, max_examples=400)
@given(STEPS)
def test_many_deltas_read_as_the_rows_do_and_write_no_byte_of_what_is_as_it_was(tmp_path_factory, steps):
    test_a_delta_reads_as_the_rows_do_and_writes_no_byte_of_what_is_as_it_was.hypothesis.inner_test(
        tmp_path_factory, steps
    )


def compacted(world, block_bytes):
    """The snapshot as full blocks, checked to hold the same rows in the same order, and nothing else."""
    old = open_snapshot(world.root)
    made = compact(world.root, block_bytes=block_bytes)
    assert made.rows().keys.tolist() == old.rows().keys.tolist()
    for epoch in range(2):
        seen = [s.rows().keys[mm.epoch_order(s.rows().hashes, seed=5, epoch=epoch)].tolist() for s in (old, made)]
        assert seen[0] == seen[1]
    assert not made.diff(old)
    assert len(made.manifest.dropped) == 0
    assert made.manifest.parent == (old.id if made.id != old.id else old.manifest.parent)
    system = {'_key', '_hash', '_split', '_rowid'}
    for shard in made.manifest.shards:  # no stored column that is not listed
        names = set(pa.ipc.open_file(world.root / shard.path).schema.names)
        assert '_row' not in names
        assert {name.removeprefix('_digest.') for name in names - system} == set(shard.fields) - {'_key'}
        assert names & system == (system if '_key' in shard.fields else set())
    made.verify()
    assert compact(world.root, block_bytes=block_bytes).id == made.id
    return made


def play(world, steps):
    was, before, history = {}, {}, {}
    for step in [('insert', 0, {0, 1, 2}), *steps]:
        if step[0] == 'compact':
            made = compacted(world, 1500 * 5 ** (step[1] % 3))
            before, history[made.id] = files(world.root), content(made)
        world.play(step)
        anew = written_anew(open_snapshot(world.root) if was else None, world.fields)
        delta, snapshot = world.freeze()
        now, after = read_back(world, snapshot), files(world.root)
        stale = stale_fields(was, now, anew)
        check_files(world.root, before, after, stale, now)
        if step[0] == 'compact':
            assert (snapshot.id, after) == (made.id, before)
        assert not [name for name in after if name.endswith('.tmp')]
        assert delta.inserted == len(now.keys() - was.keys())
        assert delta.updated == len([rowid for rowid, names in stale.items() if names])
        assert delta.compared == len([rowid for rowid, names in stale.items() if not names])
        partly = [rowid for rowid in was if rowid in now and len(stale[rowid]) < len(world.forms)]
        assert [rowid for rowid in now if rowid in set(partly)] == partly  # where they were
        assert delta.cells == {
            name: count for name in world.forms if (count := sum(name in stale[rowid] for rowid in partly))
        }
        was, before, history[snapshot.id] = now, after, content(snapshot)
    _, again = world.freeze()
    assert again.id == snapshot.id
    assert files(world.root) == before
    assert {entry.id for entry in log(world.root)} == history.keys()
    for identity, held in history.items():
        assert content(open_snapshot(world.root, identity)) == held
    scratch = World(world.root / 'scratch')
    scratch.rows, scratch.forms = world.rows, world.forms
    assert read_back(world, scratch.freeze()[1]) == now
