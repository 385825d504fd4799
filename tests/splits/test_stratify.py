"""The split column of a real table: filled once per group, kept by ingests, taken by snapshots."""
# ruff: noqa: F821  (Pixeltable puts column names in scope)

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import pixeltable as pxt
import pytest
from schemas import doubled, write_csv

import mmpipe as mm
from mmpipe.errors import ConfigError, SchemaError, StoreError
from mmpipe.functions import counts, reset


@pytest.fixture(scope='module')
def declared(pixeltable_home):
    """A table with a split to fill, and a computed column that does not depend on it."""
    Tables = pxt.model_base()

    class Things(Tables, name='things'):
        key = pxt.Column(type=pxt.String, primary_key=True)
        series: pxt.String | None
        kind: pxt.String | None
        x: pxt.Int | None
        split: pxt.String | None
        origin: pxt.Json | None
        twice = doubled(x)

    class Big(Tables, name='big', base=Things.where(Things.x > 3)):
        pass

    pxt.drop_dir('t_stratify', force=True, if_not_exists='ignore')
    mm.apply(mm.plan(Tables, 't_stratify'))
    yield SimpleNamespace(Things=Things, Big=Big)
    pxt.drop_dir('t_stratify', force=True)


@pytest.fixture
def things(declared, tmp_path):
    """No rows, no assignments; and a way to ingest some."""
    declared.Things.table.delete()
    kept = pxt.get_table('mmpipe/splits', if_not_exists='ignore')
    if kept is not None:
        kept.delete()

    def ingest(rows):
        return mm.ingest(declared.Things, mm.sources.rows(write_csv(tmp_path / 'things.csv', rows)))

    return SimpleNamespace(**vars(declared), ingest=ingest)


def row(i):
    return {'key': f'k{i:03}', 'series': f's{i // 2:03}', 'kind': 'rare' if i % 16 < 2 else 'often', 'x': i}


def stratify(things, **options):
    return mm.stratify(things.Things, **{'group': 'series', 'by': 'kind', 'val': 0.25, 'test': 0.25, **options})


def splits(things):
    table = things.Things.table
    return {r['key']: r['split'] for r in table.select(table.key, table.split).collect()}


def test_groups_are_assigned_once_and_stay_through_growth_ingests_and_deletion(things):
    things.ingest([row(i) for i in range(64)])
    reset()
    report = stratify(things)
    assert (report.groups, report.written) == (32, 64)
    assert report.rows == {
        'test': {'often': 14, 'rare': 2}, 'train': {'often': 28, 'rare': 4}, 'val': {'often': 14, 'rare': 2},
    }  # fmt: skip
    assert 'train 32: often 0.88, rare 0.12' in str(report)
    assert counts() == {}
    first = splits(things)
    assert all(first[f'k{i:03}'] == first[f'k{i + 1:03}'] for i in range(0, 64, 2))
    assert stratify(things, seed=7, val=0.5).written == 0

    assert things.ingest([row(i) for i in range(96)]).unchanged == 64  # the manifest has no splits: they are kept
    assert (stratify(things).groups, stratify(things).written) == (16, 0)
    assert {key: split for key, split in splits(things).items() if key in first} == first

    things.Things.table.delete(where=things.Things.series == 's000')
    things.ingest([row(i) for i in range(96)])
    assert (stratify(things).groups, splits(things)['k000']) == (0, first['k000'])


def test_a_new_row_joins_its_group_and_a_snapshot_takes_only_what_changed(things, tmp_path):
    things.ingest([row(i) for i in range(0, 64, 2)])
    stratify(things)
    view = {'query': things.Things, 'root': tmp_path / 'shards', 'fields': {'x': things.Things.x}}
    frozen = mm.snapshot(**view).snapshot
    assert frozen.splits == dict(Counter(splits(things).values())) == {'test': 8, 'train': 16, 'val': 8}
    things.ingest([row(1), row(3)])
    assert (stratify(things).groups, splits(things)['k001']) == (0, splits(things)['k000'])
    report = mm.snapshot(**view)
    assert (report.inserted, report.updated) == (2, 0)
    assert mm.plan(things.Things.__mro__[1], 't_stratify').pending is False


def test_splits_that_rows_bring_along_are_kept_and_have_to_agree(things):
    things.ingest([{**row(i), 'split': 'test' if i < 8 else None} for i in range(32)])
    assert stratify(things).written == 24
    assert {splits(things)[f'k{i:03}'] for i in range(8)} == {'test'}
    things.Things.table.update({'split': 'val'}, where=things.Things.key == 'k001')
    with pytest.raises(StoreError, match="group 's000' belongs to test, and one of its rows has the split 'val'"):
        stratify(things)


def test_rows_without_a_group_or_a_label(things):
    things.ingest([{**row(0), 'series': None}, {**row(2), 'kind': None}])
    report = stratify(things)
    assert (report.without_group, report.groups, report.written) == (1, 1, 1)
    assert report.rows == {'train': {'': 1}}
    assert splits(things)['k000'] is None


def test_what_cannot_be_stratified_is_said(things):
    for wrong, said in (({'group': 'nothing'}, "no stored column 'nothing'"), ({'column': 'x'}, 'split: pxt.String'),
                        ({'column': 'twice'}, 'declare it as twice')):  # fmt: skip
        with pytest.raises(SchemaError, match=said.replace('split: ', 'x: ')):
            stratify(things, **wrong)
    with pytest.raises(SchemaError, match='is a view: splits are written to its base table'):
        mm.stratify(things.Big, group='series', by='kind')
    with pytest.raises(ConfigError, match='add up to at most 1'):
        stratify(things, val=0.9)
