"""What changed between two snapshots, and the log of a root."""

from __future__ import annotations

import json
import tempfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mmpipe as mm
from mmpipe.cli import app
from mmpipe.errors import ShardError
from mmpipe.shards import Block, Field, commit, log, open_snapshot, write_block, write_snapshot

FIELDS = {
    'price': Field(name='price', kind='scalar', dtype='float32'),
    'note': Field(name='note', kind='string'),
    'kind': Field(name='kind', kind='label', vocabulary=('a', 'b')),
}
ROW = st.fixed_dictionaries({
    'split': st.sampled_from(['train', 'val']), 'price': st.none() | st.integers(0, 2).map(float),
    'note': st.sampled_from([None, 'x', 'null']), 'kind': st.sampled_from([None, 'a', 'b']),
})  # fmt: skip
SIDE = st.tuples(st.dictionaries(st.sampled_from('pqrst'), ROW), st.sets(st.sampled_from(sorted(FIELDS)), min_size=1))


def write(root, rows, names, **options):
    fields = [FIELDS[name] for name in sorted(names)]
    columns = {name: [row[name] for row in rows.values()] for name in names}
    block = Block(keys=list(rows), columns=columns, splits=[row['split'] for row in rows.values()])
    return write_snapshot(root, fields, block, **options)


@settings(deadline=None, max_examples=40)
@given(SIDE, SIDE)
def test_a_diff_says_what_two_tables_of_rows_differ_in(before, after):
    (old, old_names), (new, new_names) = before, after
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
        first, second = write(one, *before), write(two, *after)
        found = second.diff(first)
        assert not first.diff(first)
    both = [key for key in new if key in old]
    assert found.added == tuple(key for key in new if key not in old)
    assert found.removed == tuple(key for key in old if key not in new)
    changed = {name: tuple(key for key in both if old[key][name] != new[key][name]) for name in old_names & new_names}
    assert found.changed == {name: keys for name, keys in changed.items() if keys}
    assert found.resplit == tuple(key for key in both if old[key]['split'] != new[key]['split'])
    assert set(found.fields_added) == new_names - old_names
    assert set(found.fields_removed) == old_names - new_names
    assert set(found.rows_changed) == set(found.resplit).union(*changed.values())


def test_a_diff_prints_counts_and_names_and_reads_no_value(tmp_path):
    rows = {f'k{i}': {'split': 'train', 'price': float(i), 'note': 'x', 'kind': 'a'} for i in range(8)}
    first = write(tmp_path, rows, ['price', 'kind'])
    changed = {**rows, **{key: {**rows[key], 'price': 9.5} for key in ('k1', 'k2', 'k3', 'k4')}}
    del changed['k0']
    second = write(tmp_path, {**changed, 'new': rows['k0']}, ['price', 'note'])
    for snapshot in (first, second):
        snapshot._parts = None  # what reads values
    assert str(second.diff(first)).splitlines() == [
        f'{first.id} -> {second.id}: 1 rows added, 1 removed, 4 changed',
        '  field price: 4 changed, k1, k2, k3 and 1 more',
        '  rows added: new',
        '  rows removed: k0',
        '  fields added: note',
        '  fields removed: kind',
    ]
    said = second.diff(first).to_json()
    assert (said['rows_changed'], said['changed'], json.loads(json.dumps(said))) == (4, {'price': 4}, said)


def test_a_field_in_another_form_is_told(tmp_path):
    rows = {'p': {'split': '', 'kind': 'a'}}
    first = write(tmp_path, rows, ['kind'])
    wider = [FIELDS['kind'].grown(['c'])]
    second = write_snapshot(tmp_path, wider, Block(keys=['p'], columns={'kind': ['a']}))
    found = second.diff(first)
    assert (found.fields_reformed, found.changed) == (('kind',), {})
    assert 'fields in another form: kind' in str(found)


@pytest.fixture
def grown(tmp_path):
    """A root with three snapshots, each of which extends the one before."""
    root, ids, shards = tmp_path / 'shards', [], []
    for index in range(3):
        keys = [f'{index}.{i}' for i in range(index + 1)]
        block = Block(keys=keys, columns={'price': [float(index)] * len(keys)})
        shards.append(write_block(root, [FIELDS['price']], block, index=index))
        made = commit(
            root, [FIELDS['price']], shards, parent=ids[-1] if ids else None, splits={'': sum(s.rows for s in shards)},
            changes={'inserted': len(keys), 'cells': {'price': index} if index else {}},
        )  # fmt: skip
        ids.append(made.id)
    return root, ids


def test_the_log_lists_snapshots_newest_first_with_their_parents(grown):
    root, ids = grown
    entries = log(root)
    assert [entry.id for entry in entries] == ids[::-1]
    assert [entry.parent for entry in entries] == [ids[1], ids[0], None]
    assert [entry.rows for entry in entries] == [6, 3, 1]
    assert [entry.latest for entry in entries] == [True, False, False]
    assert str(entries[0]).endswith('6 rows  3 inserted; cells price 2')
    assert str(entries[2]).startswith(f'  {ids[0]}  20')
    for entry in entries:
        assert len(mm.open_snapshot(root, entry.id)) == entry.rows
    assert log(root / 'nothing') == ()


def test_the_log_needs_no_shard_and_names_a_damaged_manifest(grown):
    root, ids = grown
    for shard in (root / 'shards').iterdir():
        shard.unlink()
    assert len(log(root)) == 3
    (root / 'manifests' / f'{ids[1]}.json').write_text('{}')
    with pytest.raises(ShardError, match=f'{ids[1]}.json'):
        log(root)


def test_the_log_command_prints_a_line_each_or_json(grown, tmp_path, monkeypatch, capsys):
    root, ids = grown
    (tmp_path / 'pipelines' / 'logged').mkdir(parents=True)
    (tmp_path / 'pyproject.toml').touch()
    monkeypatch.chdir(tmp_path)
    app(['log', 'logged', '--root', str(root)], standalone_mode=False)
    lines = capsys.readouterr().out.splitlines()
    assert [line[2:18] for line in lines] == ids[::-1]
    app(['log', 'logged', '--root', str(root), '--json'], standalone_mode=False)
    said = json.loads(capsys.readouterr().out)
    assert [entry['id'] for entry in said['snapshots']] == ids[::-1]
    app(['log', 'logged', '--root', str(tmp_path / 'none')], standalone_mode=False)
    assert 'no snapshots in' in capsys.readouterr().out
    assert open_snapshot(root).id == ids[-1]
