"""A snapshot without changes: the one that is there, and nothing written for it."""

from __future__ import annotations

import json

import pixeltable as pxt
import pytest
from snapshots import content, files

import mmpipe as mm
from mmpipe.shards import open_snapshot
from mmpipe.snapshots.delta import Old
from mmpipe.store import version_vector


def test_without_candidates_the_snapshot_that_is_there_comes_back_and_no_file_is_written_or_shard_read(declared):
    first = declared.freeze()
    for shard in (declared.root / 'shards').iterdir():
        shard.write_bytes(bytes(shard.stat().st_size))  # of the right size, and nothing that could be read
    before = files(declared.root)
    again = declared.freeze()
    assert (again.snapshot.id, again.whole, again.compared, again.written) == (first.snapshot.id, '', 0, 0)
    assert (len(again.snapshot), again.bytes_written, again.table) == (8, 0, declared.path)
    assert files(declared.root) == before


def test_a_new_version_of_the_table_without_new_rows_writes_nothing_either(directory, tmp_path):
    table = pxt.create_table(f'{directory}/t', {'word': pxt.String})
    table.insert([{'word': 'a'}])
    first, fields = version_vector(table), {'word': table.word}
    snapshot = mm.snapshot(table, root=tmp_path, fields=fields).snapshot
    before = files(tmp_path)
    table.add_column(price=pxt.Float | None)
    assert version_vector(table) != first
    assert mm.snapshot(table, root=tmp_path, fields=fields).snapshot.id == snapshot.id
    assert files(tmp_path) == before


def test_no_row_wanted_reads_no_row(declared):
    snapshot = declared.freeze().snapshot
    for shard in (declared.root / 'shards').iterdir():
        shard.write_bytes(bytes(shard.stat().st_size))
    assert Old(snapshot, []).position == {}


def test_a_recompute_to_the_same_values_gives_the_same_snapshot_and_the_next_one_has_no_candidates(declared):
    fields = {'twice': declared.Numbers.twice}
    first = declared.freeze(fields=fields)
    before = files(declared.root)
    declared.table.recompute_columns('twice')
    report = declared.freeze(fields=fields)
    assert (report.snapshot.id, report.compared, report.written) == (first.snapshot.id, 8, 0)
    after = files(declared.root)
    assert {name for name in after if after[name] != before.get(name)} == {f'versions/{first.snapshot.id}.json'}
    again = declared.freeze(fields=fields)
    assert (again.snapshot.id, again.compared, again.whole) == (first.snapshot.id, 0, '')
    assert files(declared.root) == after


def test_a_snapshot_says_at_which_versions_it_was_read_and_its_id_does_not_depend_on_them(declared, directory):
    first = declared.freeze(query=declared.Positive).snapshot
    then = [list(entry) for entry in version_vector(declared.Positive.table)]
    assert first.versions == {'t_snapshots/positive': then}
    assert len(then) == 2  # the view and its base
    declared.table.recompute_columns('twice')
    assert open_snapshot(declared.root).versions == first.versions
    second = declared.freeze(query=declared.Positive).snapshot
    now = [list(entry) for entry in version_vector(declared.Positive.table)]
    assert (second.id, second.versions) == (first.id, {'t_snapshots/positive': now})
    assert [entry[1] for entry in now] > [entry[1] for entry in then]


@pytest.mark.parametrize('damage', ['lost', 'cut off', 'changed by hand'])
def test_lost_or_damaged_versions_cost_a_look_at_every_row_and_nothing_else(declared, damage):
    first = declared.freeze().snapshot
    file = declared.root / 'versions' / f'{first.id}.json'
    if damage == 'lost':
        file.unlink()
    elif damage == 'cut off':
        file.write_text(file.read_text()[:40])
    else:
        stored = json.loads(file.read_text())
        stored['versions'][declared.path][0][1] += 5  # a version to come: the feed would miss what happens until then
        file.write_text(json.dumps(stored))
    declared.table.where(declared.table.key == 'k3').update({'x': 50})
    report = declared.freeze()
    assert report.whole == f'the versions that snapshot {first.id} is pinned to are lost'
    assert (report.updated, report.compared) == (1, 7)
    assert declared.freeze().whole == ''


def test_a_crash_before_the_pointer_moves_leaves_versions_that_are_true_of_their_snapshots(declared, monkeypatch):
    from mmpipe.shards import root

    first = declared.freeze().snapshot
    declared.table.where(declared.table.key == 'k3').update({'x': 50})
    write_bytes = root.write_bytes

    def crash(path, data):
        if path.name == 'LATEST':
            raise KeyboardInterrupt
        write_bytes(path, data)

    monkeypatch.setattr(root, 'write_bytes', crash)
    with pytest.raises(KeyboardInterrupt):
        declared.freeze()
    monkeypatch.undo()
    assert open_snapshot(declared.root).versions == first.versions
    report = declared.freeze()
    assert (report.whole, report.updated, report.compared) == ('', 1, 0)


def test_a_value_that_comes_back_gives_a_snapshot_of_the_same_content_again(declared):
    first = declared.freeze().snapshot
    k3 = declared.table.key == 'k3'
    declared.table.where(k3).update({'x': 50})
    changed = declared.freeze().snapshot
    declared.table.where(k3).update({'x': 1})
    back = declared.freeze().snapshot
    assert content(back) == content(first) != content(changed)
    declared.table.where(declared.table.key == 'k4').update({'x': 60})
    assert declared.freeze().updated == 1


def test_rows_outside_the_filter_come_and_go_without_a_new_snapshot(declared):
    query = declared.table.where(declared.table.x > 0)
    first = declared.freeze(query=query)
    declared.table.insert([{'key': 'new', 'x': -7}])
    report = declared.freeze(query=query)
    assert (report.snapshot.id, report.compared, report.written) == (first.snapshot.id, 0, 0)


def test_every_row_looked_at_and_none_different_gives_the_same_snapshot(directory, tmp_path):
    table = pxt.create_table(f'{directory}/t', {'word': pxt.String, 'split': pxt.String})
    table.insert([{'word': word, 'split': 'train'} for word in 'ba'])
    fields = {'word': mm.field.label(table.word)}
    first = mm.snapshot(table, root=tmp_path, fields=fields)
    before = files(tmp_path)
    report = mm.snapshot(table, root=tmp_path, fields=fields, full=True)
    assert (report.snapshot.id, report.whole, report.compared) == (first.snapshot.id, 'full=True', 2)
    assert files(tmp_path) == before
