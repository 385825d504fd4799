"""Snapshots of real tables: exact deltas, and what they hold."""

from __future__ import annotations

import itertools

import media
import numpy as np
import PIL.Image
import pixeltable as pxt
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemas import media_table, tripled, words, write_csv
from snapshots import by_rowid, content, files

import mmpipe as mm
from mmpipe.errors import (
    SnapshotError,
    SourceChangedError,
)
from mmpipe.shards import compact, open_snapshot
from mmpipe.snapshots import write as write_module

_roots = itertools.count()


def views_of(declared):
    N, P, W = declared.Numbers, declared.Positive, declared.LongWords
    return {
        'table': (N, {'x': N.x, 'text': N.text, 'twice': N.twice}),
        'query': (N.table.where(N.x > 1), {'x': N.x, 'text': mm.field.label(N.text)}),
        'filter': (P, {'thrice': P.thrice, 'text': P.text}),
        'component': (W, {'word': mm.field.label(W.word), 'x': W.x}),
    }


VALUES = st.fixed_dictionaries({
    'x': st.none() | st.integers(-2, 6), 'text': st.none() | st.lists(st.sampled_from('abcd'),
    max_size=3).map(' '.join),
})  # fmt: skip
ROUND = st.fixed_dictionaries({
    'ingest': st.dictionaries(st.sampled_from([f'k{i}' for i in range(9)]), VALUES, max_size=4),
    'delete': st.sets(st.sampled_from([f'k{i}' for i in range(9)]), max_size=2),
    'recompute': st.booleans(),
})  # fmt: skip


@settings(deadline=None, max_examples=1, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(ROUND, min_size=2, max_size=2))
def test_a_delta_holds_what_a_snapshot_from_scratch_holds_and_writes_only_what_changed(
    shared, tmp_path_factory, rounds
):
    play(shared, tmp_path_factory.mktemp('delta'), rounds)


@pytest.mark.hardening
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(ROUND, min_size=2, max_size=6))
def test_many_deltas_hold_what_snapshots_from_scratch_hold(shared, tmp_path_factory, rounds):
    play(shared, tmp_path_factory.mktemp('delta'), rounds)


def play(shared, folder, rounds):
    """Rounds of ingest, delete and recompute, each frozen as a delta and from scratch."""
    table = shared.Numbers.table
    table.delete()
    before = {}
    for number, step in enumerate(rounds):
        manifest = [{'key': key, **values} for key, values in step['ingest'].items()]
        manifest += [{'key': 'always', 'x': 3 + number % 2, 'text': 'a b'}, {'key': 'still', 'x': 5, 'text': 'c'}]
        mm.ingest(shared.Numbers, mm.sources.rows(write_csv(folder / 'a.csv', manifest)))
        if step['delete']:
            table.delete(where=table.key.isin(sorted(step['delete'])))
        if step['recompute']:
            table.recompute_columns('twice')
        for name, (query, fields) in views_of(shared).items():
            root = folder / name
            report = mm.snapshot(query, root=root, fields=fields, page_rows=3)
            scratch = mm.snapshot(query, root=folder / f'scratch{next(_roots)}', fields=fields)
            now = content(report.snapshot)
            assert now == content(scratch.snapshot)
            rows, was = by_rowid(report.snapshot), before.get(name, {})
            assert report.inserted == len(rows.keys() - was.keys())
            assert report.updated == len([rowid for rowid in rows.keys() & was.keys() if rows[rowid] != was[rowid]])
            assert report.dropped == len(was.keys() - rows.keys())
            if number == len(rounds) - 1:
                again = mm.snapshot(query, root=root, fields=fields)
                full = mm.snapshot(query, root=root, fields=fields, full=True)
                assert again.snapshot.id == full.snapshot.id == report.snapshot.id
                assert again.written == full.written == again.bytes_written == full.bytes_written == 0
            before[name] = rows


def test_unchanged_rows_are_not_written_again(declared):
    first = declared.freeze()
    assert (first.inserted, first.updated, first.dropped, first.whole) == (8, 0, 0, 'first snapshot')
    shards = sorted((declared.root / 'shards').iterdir())
    stamps = [path.stat().st_mtime_ns for path in shards]
    declared.table.where(declared.table.key == 'k3').update({'x': 50})
    declared.table.delete(where=declared.table.key == 'k4')
    declared.table.insert([{'key': 'new', 'x': 9}])
    second = declared.freeze()
    assert (second.inserted, second.updated, second.dropped, second.whole) == (1, 1, 1, '')
    assert [path.stat().st_mtime_ns for path in shards] == stamps
    added = set((declared.root / 'shards').iterdir()) - set(shards)
    assert sum(path.stat().st_size for path in added) == second.bytes_written
    assert sum(shard.rows for shard in second.snapshot.manifest.shards) == 8 + 2
    assert second.snapshot.manifest.parent == first.snapshot.id
    assert len(open_snapshot(declared.root, first.snapshot.id)) == 8  # still there, as it was


def test_columns_computed_again_added_and_removed_write_no_byte_of_the_others(declared):
    N = declared.Numbers
    fields = {'x': N.x, 'text': N.text, 'twice': N.twice}
    first = declared.freeze(fields=fields)
    before = files(declared.root)

    def new_columns(report):
        names = sorted(files(declared.root).keys() - before.keys())
        assert {name: files(declared.root)[name] for name in before if name != 'LATEST'} == {
            name: before[name] for name in before if name != 'LATEST'
        }
        shards = [declared.root / name for name in names if name.startswith('shards/')]
        assert sum(shard.stat().st_size for shard in shards) == report.bytes_written
        return sorted(name for shard in shards for name in pa.ipc.open_file(shard).schema.names)

    fields['twice'] = tripled(N.x)
    report = declared.freeze(fields=fields)
    assert (report.whole, report.updated, dict(report.cells)) == ('changed: twice', 7, {'twice': 7})
    assert 'of changed rows only: twice 7' in str(report)
    assert new_columns(report) == ['_digest.twice', 'twice']
    assert report.snapshot.rows().keys.tolist() == first.snapshot.rows().keys.tolist()

    before = files(declared.root)
    fields['label'] = mm.field.label(N.text)
    report = declared.freeze(fields=fields)
    assert (report.updated, dict(report.cells)) == (8, {'label': 8})
    assert new_columns(report) == ['_digest.label', 'label']

    before = files(declared.root)
    del fields['x']
    report = declared.freeze(fields=fields)
    assert (report.written, report.bytes_written, list(report.snapshot.fields)) == (0, 0, ['text', 'twice', 'label'])
    assert new_columns(report) == []

    before = files(declared.root)
    declared.table.where(declared.table.key == 'k3').update({'text': 'other'})
    report = declared.freeze(fields=fields)
    assert (report.whole, report.updated, dict(report.cells)) == ('', 1, {'text': 1, 'label': 1})
    assert new_columns(report) == ['_digest.label', '_digest.text', '_row', '_row', 'label', 'text']  # one row of eight
    assert content(report.snapshot) == content(declared.freeze(fields=fields, root=declared.root / 'scratch').snapshot)


def test_a_delta_goes_on_from_a_compacted_snapshot_without_writing_anything_again(declared):
    N = declared.Numbers
    fields = {'x': N.x, 'text': N.text}
    declared.freeze(fields=fields)
    for x in (50, 60):
        declared.table.where(declared.table.key == 'k3').update({'x': x})
        declared.table.where(declared.table.key == 'k5').update({'x': x, 'text': f'both {x}'})
        declared.freeze(fields=fields)
    old = open_snapshot(declared.root)
    made = compact(declared.root)
    assert (len(old.manifest.shards), len(made.manifest.shards), made.manifest.parent) == (3, 1, old.id)
    before = files(declared.root)
    again = declared.freeze(fields=fields)
    assert (again.snapshot.id, again.whole, again.compared, again.written) == (made.id, '', 0, 0)
    assert declared.freeze(fields=fields, full=True).snapshot.id == made.id
    assert files(declared.root) == before
    declared.table.where(declared.table.key == 'k3').update({'x': 70})
    report = declared.freeze(fields=fields)
    assert (report.whole, report.updated, report.inserted, dict(report.cells)) == ('', 1, 0, {'x': 1})
    assert report.snapshot.diff(old).changed == {'x': ('k3',)}
    assert report.snapshot.rows().keys.tolist() == old.rows().keys.tolist()
    assert [entry.id for entry in mm.log(declared.root)][:3] == [report.snapshot.id, made.id, old.id]


def test_an_update_that_leaves_the_filter_becomes_a_mask_entry(declared):
    for query in (declared.Positive, declared.table.where(declared.table.x > 0)):
        root = declared.root / str(next(_roots))
        before = declared.freeze(query=query, root=root).snapshot
        declared.table.where(declared.table.key == 'k5').update({'x': -5})
        report = declared.freeze(query=query, root=root)
        assert (report.inserted, report.updated, report.dropped, report.bytes_written) == (0, 0, 1, 0)
        assert len(report.snapshot.manifest.dropped) == 1
        assert set(before.rows().keys) - set(report.snapshot.rows().keys) == {'k5'}
        again = declared.freeze(query=query, root=root, full=True)  # the row is masked once, and counted once
        assert again.written == 0
        declared.table.where(declared.table.key == 'k5').update({'x': 3})
        back = declared.freeze(query=query, root=root)
        assert (back.inserted, back.snapshot.rows().keys.tolist()) == (1, ['k3', 'k4', 'k6', 'k7', 'k5'])


def test_a_row_that_leaves_the_filter_is_dropped_once_when_every_row_is_looked_at(declared):
    query = declared.table.where(declared.table.x > 0)
    declared.freeze(query=query)
    declared.table.where(declared.table.key == 'k5').update({'x': -5})
    report = declared.freeze(query=query, full=True)
    assert (report.dropped, len(report.snapshot)) == (1, 4)
    assert sum(report.snapshot.splits.values()) == 4


def test_nulls_are_kept_in_every_kind(directory, tmp_path):
    declared = media_table(directory)
    table = declared.Items.table
    photo, sound = media.photo(tmp_path / 'a.jpg'), media.sound(tmp_path / 'a.wav')
    table.insert(
        [{'key': 'a', 'photo': str(photo), 'speech': str(sound), 'caption': 'x y', 'price': 1.5}, {'key': 'b'}]
    )
    items = declared.Items
    fields = {
        'photo': mm.field.image(items.photo, size=4),
        'square': items.square, 'mel': items.mel, 'file': mm.field.file(items.photo),
        'caption': items.caption, 'label': mm.field.label(items.caption),
        'words': mm.field.labels(words(items.caption)), 'price': items.price,
        'wave': mm.field.ragged(mm.functions.waveform(items.speech), rate=16_000),
    }  # fmt: skip
    rows = mm.snapshot(declared.Items, root=tmp_path / 's', fields=fields).snapshot.rows()
    rows = rows.take(np.argsort(rows.keys))
    assert rows.keys.tolist() == ['a', 'b']
    for name in fields:
        values, there = rows.read(name)
        assert there.tolist() == [True, False], name
        assert not np.any(values[1]) if not isinstance(values[1], str) else values[1] == ''
    assert rows.read('file')[0][0] == photo.read_bytes()
    assert rows.read('words')[0].tolist() == [[1, 1], [0, 0]]
    assert rows.read('wave')[0][0].shape == (8000,)
    assert rows.fields['wave'].rate == 16_000


def test_vocabularies_start_with_the_training_split_and_only_grow(directory, tmp_path):
    table = pxt.create_table(f'{directory}/t', {'word': pxt.String | None, 'split': pxt.String})
    table.insert([{'word': w, 'split': s} for w, s in [('m', 'test'), ('z', 'train'), ('b', 'train'), (None, 'train')]])
    fields = {'word': mm.field.label(table.word)}
    first = mm.snapshot(table, root=tmp_path, fields=fields)
    assert first.snapshot.fields['word'].vocabulary == ('b', 'z', 'm')
    table.insert([{'word': 'a', 'split': 'test'}])
    second = mm.snapshot(table, root=tmp_path, fields=fields)
    assert second.snapshot.fields['word'].vocabulary == ('b', 'z', 'm', 'a')
    assert (second.inserted, second.updated) == (1, 0)
    assert second.snapshot.rows().words('word') == ['m', 'z', 'b', None, 'a']
    table.delete(where=table.word == 'z')
    assert mm.snapshot(table, root=tmp_path, fields=fields).snapshot.fields['word'].vocabulary == ('b', 'z', 'm', 'a')


def test_failed_cells_are_null_and_counted(declared):
    declared.table.insert([{'key': 'bad', 'x': 13}], on_error='ignore')
    report = declared.freeze(query=declared.Small.table.where(declared.Small.x > 0), fields={'t': declared.Small.twice})
    assert report.failed_cells == {}
    report = declared.freeze(
        root=declared.root / 'b', query=declared.Positive, fields={'twice': declared.Positive.twice}
    )
    assert report.failed_cells == {'twice': 1}
    assert 'cells that failed and are null: twice 1' in str(report)
    assert report.snapshot.rows().words('twice')[-1] is None


def test_a_changed_definition_looks_at_every_row_and_says_why(declared):
    declared.freeze()
    report = declared.freeze(fields={'x': tripled(declared.Numbers.x)})
    assert report.whole == 'changed: x'
    assert report.updated == 7  # three times 0 is 0
    report = declared.freeze(fields={'x': tripled(declared.Numbers.x), 'text': declared.Numbers.text})
    assert report.whole == 'changed: text'
    assert (report.inserted, report.updated, dict(report.cells)) == (0, 8, {'text': 8})
    report = declared.freeze(
        query=declared.table.where(declared.table.x > 0),
        fields={'x': tripled(declared.Numbers.x), 'text': declared.Numbers.text},
    )
    assert (report.whole, report.dropped, report.compared) == ('changed: filter', 3, 5)


def test_a_split_column_made_again_in_place_is_noticed(directory, tmp_path):
    table = pxt.create_table(f'{directory}/s', {'key': {'type': pxt.String, 'primary_key': True}})
    table.insert([{'key': f'k{i}'} for i in range(40)])
    table.add_computed_column(split=mm.functions.split_of(table.key, val=0.0, test=0.0))
    fields = {'key': table.key}
    assert mm.snapshot(table, root=tmp_path, fields=fields).snapshot.splits == {'train': 40}
    table.drop_column('split')
    table.add_computed_column(split=mm.functions.split_of(table.key, val=0.5, test=0.0))
    report = mm.snapshot(table, root=tmp_path, fields=fields)
    assert report.whole == 'changed: split'
    assert sum(report.snapshot.splits.values()) == 40
    assert report.updated == report.snapshot.splits['val']


def test_a_table_made_again_is_compared_row_by_row(declared, directory):
    schema = {'key': {'type': pxt.String, 'primary_key': True}, 'x': pxt.Int}
    table = pxt.create_table(f'{directory}/again', schema)
    table.insert([{'key': key, 'x': 1} for key in 'abc'])
    mm.snapshot(table, root=declared.root, fields={'x': table.x})
    pxt.drop_table(table)
    table = pxt.create_table(f'{directory}/again', schema)
    table.insert([{'key': key, 'x': 1} for key in 'bd'])  # the rowids of 'a' and 'b', with equal values
    report = mm.snapshot(table, root=declared.root, fields={'x': table.x})
    assert report.whole.startswith(f"'{directory}/again' or one of its bases was dropped and made again")
    assert sorted(report.snapshot.rows().keys) == ['b', 'd']


def test_component_rows_have_their_place_in_the_key_and_views_over_views_work(declared):
    declared.table.insert([{'key': 'k9', 'x': 1, 'text': 'one two'}])
    W = declared.LongWords
    snapshot = declared.freeze(query=W, root=declared.root / 'w', fields={'word': W.word, 'x': W.x}).snapshot
    found = dict(zip(snapshot.rows().keys, snapshot.rows().read('word')[0], strict=True))
    old = {'k3/0': 'w0', 'k4/0': 'w1', 'k5/0': 'w2', 'k6/0': 'w0', 'k7/0': 'w1'}
    assert found == {**old, 'k9/0': 'one', 'k9/1': 'two'}
    small = declared.freeze(
        query=declared.Small, root=declared.root / 's', fields={'x': declared.Small.thrice}
    ).snapshot
    assert sorted(small.rows().words('x')) == [3, 3, 6, 9, 12]


def test_parts_of_a_key_stay_apart(directory, tmp_path):
    schema = {'a': {'type': pxt.String, 'primary_key': True}, 'b': {'type': pxt.String, 'primary_key': True}}
    table = pxt.create_table(f'{directory}/pairs', schema)
    table.insert([{'a': 'x/y', 'b': 'z'}, {'a': 'x', 'b': 'y/z'}, {'a': 'p', 'b': 'q'}])
    keys = mm.snapshot(table, root=tmp_path, fields={'a': table.a}).snapshot.rows().keys
    assert keys.tolist() == ['x%2Fy/z', 'x/y%2Fz', 'p/q']


def test_pooled_rows_follow_their_component_rows(directory, tmp_path):
    declared = media_table(directory)
    from pixeltable.functions.video import frame_iterator

    items = declared.Items.table
    frames = pxt.create_view(f'{directory}/frames', items, iterator=frame_iterator(items.clip, fps=1))
    frames.add_computed_column(v=mm.functions.pixels(frames.frame, size=2))
    for name in 'ab':
        media.clip(tmp_path / f'{name}.mp4', seed=ord(name))
    rows = [{'key': 'a', 'clip': 'a.mp4'}, {'key': 'b', 'clip': 'b.mp4'}, {'key': 'none', 'clip': None}]
    mm.ingest(declared.Items, mm.sources.rows(write_csv(tmp_path / 'a.csv', rows)))
    fields = {'mean': mm.field.pooled(mm.functions.mean_pool(frames.v)), 'price': items.price}
    first = mm.snapshot(items, root=tmp_path / 's', fields=fields)
    values, there = first.snapshot.rows().read('mean')
    assert there.tolist() == [True, True, False]
    each = [row['v'] for row in frames.where(frames.key == 'a').select(frames.v).collect()]
    np.testing.assert_allclose(values[0], np.mean(each, axis=0), rtol=1e-6)
    frames.add_computed_column(w=mm.functions.pixels(frames.frame, size=1))
    frames.recompute_columns('v')
    assert mm.snapshot(items, root=tmp_path / 's', fields=fields).written == 0
    media.clip(tmp_path / 'b.mp4', seed=9)
    mm.ingest(declared.Items, mm.sources.rows(tmp_path / 'a.csv'))
    report = mm.snapshot(items, root=tmp_path / 's', fields=fields)
    assert (report.inserted, report.dropped, report.updated) == (1, 1, 0)

    spine = mm.snapshot(frames, root=tmp_path / 'f', fields={'v': frames.v}).snapshot
    assert sorted(spine.rows().keys) == [f'{key}/{i}' for key in 'ab' for i in range(3)]
    (tmp_path / 'a.mp4').unlink()
    with pytest.raises(SourceChangedError, match=r"column clip: .*a.mp4' is gone"):
        mm.snapshot(frames, root=tmp_path / 'g', fields={'v': frames.v})
    with pytest.raises(SnapshotError, match=r'field .v. .*is not a column of'):
        mm.snapshot(items, root=tmp_path / 'h', fields={'v': frames.v})
    with pytest.raises(SnapshotError, match='itself made by an iterator'):
        mm.snapshot(frames, root=tmp_path / 'h', fields={'v': mm.field.pooled(mm.functions.mean_pool(frames.v))})


def test_a_crash_between_shards_and_commit_leaves_the_old_snapshot(declared, monkeypatch):
    first = declared.freeze().snapshot
    declared.table.insert([{'key': 'new', 'x': 1}])

    def crash(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(write_module, 'commit', crash)
    with pytest.raises(KeyboardInterrupt):
        declared.freeze()
    monkeypatch.undo()
    opened = open_snapshot(declared.root)
    opened.verify()
    assert opened.id == first.id
    report = declared.freeze()
    assert (report.inserted, report.updated) == (1, 0)


def test_a_table_that_moves_while_it_is_read_is_read_again(declared, monkeypatch):
    real, calls = write_module.read_page, []

    def disturbed(*args):
        calls.append(1)
        if len(calls) == 1:
            declared.table.insert([{'key': 'between', 'x': 77}])
        return real(*args)

    monkeypatch.setattr(write_module, 'read_page', disturbed)
    report = declared.freeze()
    assert len(calls) == 2
    assert report.snapshot.rows().keys.tolist() == [*(f'k{i}' for i in range(8)), 'between']

    def always(*args):
        declared.table.insert([{'key': f'more{next(_roots)}', 'x': 1}])
        return real(*args)

    declared.table.insert([{'key': 'first', 'x': 1}])
    monkeypatch.setattr(write_module, 'read_page', always)
    with pytest.raises(SnapshotError, match=rf"'{declared.path}' changed during each of 3 attempts.*Pause the writer"):
        declared.freeze()


def test_a_table_that_mmpipe_did_not_make_can_be_frozen(directory, tmp_path):
    table = pxt.create_table(f'{directory}/plain', {'photo': pxt.Image, 'origin': pxt.String})
    photo = media.photo(tmp_path / 'a.png')
    table.insert([{'photo': str(photo), 'origin': 'a camera'}])
    fields = {'photo': mm.field.image(table.photo, size=6, fit='pad'), 'origin': table.origin}
    snapshot = mm.snapshot(table, root=tmp_path / 's', fields=fields).snapshot
    assert snapshot.rows().keys.tolist() == ['0']
    assert snapshot.splits == {'': 1}
    assert snapshot.rows().read('photo')[0].shape == (1, 3, 6, 6)
    assert PIL.Image.open(photo).mode == 'RGB'
