"""Rows of which mmpipe computed columns again are read for those columns alone, and no other change is missed."""

from __future__ import annotations

from collections import Counter

import multiplied
import pixeltable as pxt
import pytest
from schemas import write_csv
from snapshots import content

import mmpipe as mm
from mmpipe.snapshots import write as write_module

ROWS = 8


@pxt.udf
def named(x: int) -> str:
    return str(x)


@pytest.fixture
def things(directory, tmp_path, monkeypatch):
    """Eight rows, x from 0 to 7; a snapshot of them, and how many values of each field are read from then on."""
    Tables = multiplied.declared(directory)
    mm.apply(mm.plan(Tables, directory))
    mm.ingest(
        f'{directory}/things',
        mm.sources.rows(write_csv(tmp_path / 'a.csv', [{'key': f'k{i}', 'x': i, 'note': 'n'} for i in range(ROWS)])),
    )
    table, read = pxt.get_table(f'{directory}/things'), Counter()
    real = write_module.read_page

    def counting(view, specs, page, pool):
        read.update({name: len(page) for name in specs})
        return real(view, specs, page, pool)

    monkeypatch.setattr(write_module, 'read_page', counting)

    def freeze(*names, root=None, **options):
        read.clear()
        fields = {name: getattr(table, name) for name in names}
        report = mm.snapshot(table, root=root or tmp_path / 'shards', fields=fields, **options)
        taken = dict(read)
        if root is None:
            fresh = mm.snapshot(table, root=tmp_path / report.snapshot.id, fields=fields, **options)
            assert content(report.snapshot) == content(fresh.snapshot)
        return report, taken

    def edit(factor):
        monkeypatch.setattr(multiplied, 'FACTOR', factor)
        mm.apply(mm.plan(Tables, directory))

    freeze('x', 'note', 'made', 'other')
    return table, freeze, edit


def test_only_the_fields_of_a_column_computed_again_are_read(things):
    _, freeze, edit = things
    edit(3)
    report, read = freeze('x', 'note', 'made', 'other')
    assert read == {'made': ROWS}
    assert (report.whole, report.updated, dict(report.cells)) == ('', ROWS - 1, {'made': ROWS - 1})  # 0 stays 0


def test_a_column_that_no_field_reads_costs_nothing(things, tmp_path):
    _, freeze, edit = things
    first, _ = freeze('x', 'note')
    edit(3)
    report, read = freeze('x', 'note')
    assert (report.snapshot.id, read) == (first.snapshot.id, {})


def test_an_added_field_is_read_alone_and_a_removed_one_reads_nothing(things):
    _, freeze, _ = things
    report, read = freeze('x', 'note', 'made', 'other', 'more')
    assert read == {'more': ROWS}
    assert (report.whole, dict(report.cells)) == ('changed: more', {'more': ROWS})
    report, read = freeze('note', 'made', 'other', 'more')
    assert (read, report.written, list(report.snapshot.fields)) == ({}, 0, ['note', 'made', 'other', 'more'])


@pytest.mark.parametrize('order', ['before', 'after'])
def test_a_change_of_others_beside_it_is_read_whole(things, order):
    table, freeze, edit = things
    if order == 'after':
        edit(3)
    table.where(table.key == 'k5').update({'note': 'changed'})
    table.where(table.key == 'k6').update({'x': 60})
    table.insert([{'key': 'new', 'x': 9, 'note': 'n'}])
    table.delete(where=table.key == 'k1')
    if order == 'before':  # then `other` is computed again too, for the rows that others wrote
        edit(3)
    names = ('x', 'note', 'made', 'other')
    report, read = freeze(*names)
    assert read == {'made': ROWS, 'x': 3, 'note': 3, 'other': ROWS if order == 'before' else 3}
    assert (report.inserted, report.dropped) == (1, 1)
    assert report.snapshot.rows().read('x')[0].tolist() == [0, 2, 3, 4, 5, 60, 7, 9]


def test_versions_that_a_revert_gave_to_others_are_not_taken_for_ours(directory, tmp_path):
    table = pxt.create_table(f'{directory}/plain', {'key': {'type': pxt.String, 'primary_key': True}, 'x': pxt.Int})
    table.insert([{'key': f'k{i}', 'x': i} for i in range(4)])
    table.add_computed_column(made=multiplied.times(table.x))
    fields = {'x': table.x, 'made': table.made}
    mm.snapshot(table, root=tmp_path, fields=fields, allow_stale=True)
    from mmpipe.plans.backfill import backfill

    backfill(table, [(f'{directory}/plain', 'made')])
    table.revert()
    table.where(table.key == 'k2').update({'x': 20})
    report = mm.snapshot(table, root=tmp_path, fields=fields, allow_stale=True)
    assert sorted(report.snapshot.rows().read('x')[0].tolist()) == [0, 1, 3, 20]


def test_a_split_by_a_column_computed_again_moves_rows(directory, tmp_path, monkeypatch):
    table = pxt.create_table(f'{directory}/plain', {'key': {'type': pxt.String, 'primary_key': True}, 'x': pxt.Int})
    table.insert([{'key': f'k{i}', 'x': i} for i in range(4)])
    table.add_computed_column(made=multiplied.times(table.x))
    options = {'root': tmp_path, 'fields': {'x': table.x}, 'split': named(table.made)}
    assert mm.snapshot(table, **options).snapshot.splits == {'0': 1, '2': 1, '4': 1, '6': 1}
    from mmpipe.plans.backfill import backfill

    monkeypatch.setattr(multiplied, 'FACTOR', 3)
    backfill(table, [(f'{directory}/plain', 'made')])
    assert mm.snapshot(table, **options).snapshot.splits == {'0': 1, '3': 1, '6': 1, '9': 1}
