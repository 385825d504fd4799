"""Random histories of writes, source edits, applies and snapshots: as from scratch, and not one call too many."""

from __future__ import annotations

import os
import sqlite3
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pixeltable as pxt
import pixeltable.functions as pxtf
import pyarrow as pa
import pytest
from edited_project import Code, project
from fields import as_python
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ledger_model import TABLE, Model, split_of
from schemas import write_csv
from snapshots import content, files

import mmpipe as mm
from mmpipe.errors import SnapshotError, SourceError, StaleColumnError
from mmpipe.functions import counts, reset
from mmpipe.home import cache_dir
from mmpipe.ledger.book import TABLE as LEDGER
from mmpipe.results.cache import LIMIT_VARIABLE

KEYS = 6
FIELDS = {
    'things': ('x', 'made', 'more', 'other', 'total'),
    'large': ('less', 'more'),
    'parts': ('x', 'piece', 'weight'),
}
READ = {
    'things': {'made', 'more', 'other', 'weight', 'parts'},
    'large': {'less', 'made', 'more'},
    'parts': {'weight', 'made', 'parts'},
}
"""Computed columns behind the fields, those that are read through others too."""

key = st.integers(0, KEYS - 1)
numbers = st.tuples(st.integers(0, 5), st.integers(0, 3))
edits = st.one_of(
    st.tuples(st.sampled_from(['deep', 'scaled', 'plus', 'weigh', 'pieces']), st.integers(0, 1)),
    st.tuples(st.sampled_from(['step', 'default']), st.integers(1, 2)),
    st.tuples(st.just('by'), st.integers(1, 3)),
    st.tuples(st.just('looks'), st.integers(0, 2)),
)
some = st.dictionaries(key, numbers, min_size=1, max_size=4)
steps = st.one_of(
    st.tuples(st.sampled_from(['ingest', 'ingest', 'prune', 'insert']), some),
    st.tuples(st.just('update'), st.tuples(key, st.sampled_from(['x', 'y', 'both']), numbers)),
    st.tuples(st.just('delete'), st.sets(key, min_size=1, max_size=3)),
    st.tuples(st.just('edit'), edits),
    st.tuples(st.just('edit'), edits),
    st.tuples(st.just('revert'), st.integers(0, 5)),
    st.tuples(st.just('apply'), st.none()),
    st.tuples(st.just('snapshot'), st.tuples(st.sampled_from(list(FIELDS)), st.booleans(), st.booleans())),
    st.tuples(st.just('snapshot'), st.tuples(st.sampled_from(list(FIELDS)), st.booleans(), st.booleans())),
)


class History:
    """The tables of a project that is edited, and beside them a model of what they hold and what they may cost."""

    def __init__(self, folder: Path, edited, *, cached: bool) -> None:
        self.folder, self.project = folder, edited
        self.directory = f'oracle_{next(tempfile._get_candidate_names())}'
        self.model = Model(edited.code, cached=cached)
        self.codes = [edited.code]
        self.frozen: dict[str, dict] = {}  # of the snapshot before: number of a row to its key, split and values
        mm.apply(self.plan())
        reset()

    def plan(self):
        return mm.plan(self.project.declared(), self.directory)

    def table(self, name: str = 'things'):
        return pxt.get_table(f'{self.directory}/{name}')

    def play(self, action: str, given) -> None:
        """One step, and that it called what it had to and nothing else."""
        self.model.calls.clear()
        reset()
        getattr(self, action)(given)
        assert Counter(counts()) == self.model.calls, action

    def manifest(self, rows: dict[int, tuple[int, int]]) -> Path:
        listed = [{'key': f'k{each}', 'x': x, 'y': y, 'split': split_of(y)} for each, (x, y) in rows.items()]
        return write_csv(self.folder / 'a.csv', listed)

    def ingest(self, given: dict[int, tuple[int, int]], *, prune: bool = False) -> None:
        model = self.model
        model.settle()
        before = {each for each, row in model.rows.items() if row.sourced}
        for each, (x, y) in given.items():
            if each not in model.rows:
                model.insert(each, x, y, known=True)
                continue
            row = model.rows[each]
            changed = {name: value for name, value in (('x', x), ('y', y)) if getattr(row, name) != value}
            if changed:
                model.update(each, known=True, **changed)
        gone = before - given.keys()
        refused = prune and 2 * len(gone) > len(before)
        source = mm.sources.rows(self.manifest(given))
        if refused:
            with pytest.raises(SourceError, match='more than half'):
                mm.ingest(self.table(), source, prune=True)
        else:
            assert mm.ingest(self.table(), source, prune=prune).gone == len(gone)
        if prune and not refused:
            for each in gone:
                del model.rows[each]

    def prune(self, given: dict[int, tuple[int, int]]) -> None:
        self.ingest(given, prune=True)

    def insert(self, given: dict[int, tuple[int, int]]) -> None:
        fresh = {each: pair for each, pair in given.items() if each not in self.model.rows}
        if fresh:
            rows = [{'key': f'k{each}', 'x': x, 'y': y, 'split': split_of(y)} for each, (x, y) in fresh.items()]
            self.table().insert(rows)
        for each, (x, y) in fresh.items():
            self.model.insert(each, x, y, known=False)

    def update(self, given: tuple[int, str, tuple[int, int]]) -> None:
        each, which, (x, y) = given
        if each not in self.model.rows:
            return
        changed = {'x': {'x': x}, 'y': {'y': y}, 'both': {'x': x, 'y': y}}[which]
        split = {'split': split_of(y)} if 'y' in changed else {}
        table = self.table()
        table.update({**changed, **split}, where=table.key == f'k{each}')
        self.model.update(each, known=False, **changed)

    def delete(self, given: set[int]) -> None:
        table = self.table()
        for each in given & self.model.rows.keys():
            table.delete(where=table.key == f'k{each}')
            del self.model.rows[each]

    def edit(self, given: tuple[str, int]) -> None:
        self.load(replace(self.project.code, **dict([given])))

    def revert(self, given: int) -> None:
        self.load(self.codes[-1 - given % len(self.codes)])

    def load(self, code: Code) -> None:
        self.project.edit(code)
        self.model.code = code
        self.codes.append(code)

    def apply(self, _: None = None) -> None:
        planned = self.plan()
        found = Counter((c.action, c.table.rpartition('/')[2], c.name, c.rows) for c in planned.changes)
        assert found == self.model.planned()
        assert planned.destructive == tuple(change for change in planned.changes if change.action == 'recreate')
        self.model.apply()
        assert not mm.apply(planned, allow_destructive=True).failed
        assert not self.plan().pending
        self.check()

    def check(self) -> None:
        """All tables hold what the model does, and the model what recomputing everything gives."""
        for name in FIELDS:
            assert read(self.table(name), name) == self.model.content(name)
            assert self.model.content(name) == self.model.content(name, fresh=True)

    def snapshot(self, given: tuple[str, bool, bool]) -> None:
        name, allow_stale, anew = given
        wanted = {number_of: held for number_of, *held in self.rows(name)}
        stale = [column for column in READ[name] if self.model.count(column, 'stale')]
        if stale and not allow_stale:
            with pytest.raises(StaleColumnError) as refused:
                freeze(self.directory, name, self.folder / name)
            places = [f'{self.directory}/{TABLE[each]}' + f'.{each}' * (each != 'parts') for each in stale]
            assert any(f"'{place}' holds" in str(refused.value) for place in places)
            return
        if not wanted:
            with pytest.raises(SnapshotError, match='no row'):
                freeze(self.directory, name, self.folder / name, allow_stale=allow_stale)
            return
        before = files(self.folder / name)
        report = freeze(self.directory, name, self.folder / name, allow_stale=allow_stale)
        held = {key: (split, values) for key, split, values in wanted.values()}
        assert frozen(report.snapshot) == held
        if not stale and not any(self.model.count(column, 'unrecorded') for column in READ[name]):
            scratch = self.model.content(name, fresh=True)
            assert held == {key: (row['split'], {f: row[f] for f in FIELDS[name]}) for key, row in scratch.items()}
        if anew:
            again = freeze(self.directory, name, Path(tempfile.mkdtemp(dir=self.folder)), allow_stale=allow_stale)
            assert content(again.snapshot) == content(report.snapshot)
        self.compare(name, report, wanted, before)
        self.frozen[name] = wanted

    def compare(self, name: str, report, wanted: dict, before: dict) -> None:
        """A snapshot wrote the rows and the fields that changed since the one before, and no other."""
        old = self.frozen.get(name, {})
        both = wanted.keys() & old.keys()
        changed = {each: fields_of(old[each], wanted[each], FIELDS[name]) for each in both}
        partly = [fields for fields in changed.values() if 0 < len(fields) < len(FIELDS[name])]
        assert report.inserted == len(wanted.keys() - old.keys())
        assert report.updated == sum(1 for fields in changed.values() if fields)
        assert report.dropped == len(old.keys() - wanted.keys())
        cells = Counter(field for fields in partly for field in fields)
        assert report.cells == cells
        new = [file for file in files(self.folder / name) if file not in before and file.startswith('shards/')]
        if not report.written:
            assert not new
        whole = report.inserted or any(len(fields) == len(FIELDS[name]) for fields in changed.values())
        for file in new:
            columns = {each for each in pa.ipc.open_file(self.folder / name / file).schema.names if each[0] != '_'}
            assert columns <= set(cells) or (whole and columns == set(FIELDS[name])), file

    def rows(self, name: str) -> list[tuple]:
        """(number, key, split, values) of each row that a snapshot should hold."""
        held = self.model.content(name)
        return [
            (self.model.number(key), key, row['split'], {field: row[field] for field in FIELDS[name]})
            for key, row in held.items()
        ]

    def end(self, frozen: str) -> None:
        """All is made, and holds what the same rows do in a directory of their own, made by the code of now alone.

        Args:
            frozen: which table to freeze in both.
        """
        self.play('apply', None)
        fresh = f'{self.directory}_fresh'
        mm.apply(mm.plan(self.project.declared(), fresh))
        rows = {each: (row.x, row.y) for each, row in self.model.rows.items() if not self.model.odd(row)}
        if rows:
            mm.ingest(f'{fresh}/things', mm.sources.rows(self.manifest(rows)))
        odd = {f'k{each}' for each, row in self.model.rows.items() if self.model.odd(row)}
        for name in FIELDS:  # less what nobody can tell
            held = read(self.table(name), name)
            known = {each: values for each, values in held.items() if each.partition('/')[0] not in odd}
            assert read(pxt.get_table(f'{fresh}/{name}'), name) == known
            if held and not odd and name == frozen:
                kept = freeze(self.directory, name, self.folder / name).snapshot
                scratch = freeze(fresh, name, self.folder / f'{name} from scratch').snapshot
                assert content(kept) == content(scratch)


def fields_of(old: list, new: list, fields: tuple[str, ...]) -> list[str]:
    """Fields that are written of a row that was there: all where its key or split changed."""
    return [field for field in fields if old[:2] != new[:2] or old[2][field] != new[2][field]]


def read(table, name: str) -> dict[str, dict]:
    """Key to values of a table, as `Model.content` gives them."""
    more = {'things': (), 'large': ('less',), 'parts': ('pos', 'piece', 'weight')}[name]
    columns = ['key', 'x', 'y', 'split', 'made', 'more', 'other', *more]
    rows = list(table.select(**{f'c_{each}': getattr(table, each) for each in columns}).collect())
    found = {}
    for row in rows:
        values = {each: row[f'c_{each}'] for each in columns}
        place = f'/{values.pop("pos")}' if name == 'parts' else ''
        found[values.pop('key') + place] = values
    assert len(found) == len(rows)
    if name == 'things':
        totals: dict[str, int] = {}
        parts = pxt.get_table(str(table._path()).replace('things', 'parts'))
        for row in parts.select(parts.key, parts.weight).collect():
            totals[row['key']] = totals.get(row['key'], 0) + row['weight']
        found = {each: {**values, 'total': totals.get(each)} for each, values in found.items()}
    return found


def freeze(directory: str, name: str, root: Path, **options):
    table = pxt.get_table(f'{directory}/{name}')
    fields = {field: getattr(table, field) for field in FIELDS[name] if field != 'total'}
    if 'total' in FIELDS[name]:
        fields['total'] = mm.field.pooled(pxtf.sum(pxt.get_table(f'{directory}/parts').weight))
    return mm.snapshot(table, root=root, fields=fields, **options)


def frozen(snapshot) -> dict[str, tuple[str, dict]]:
    """Key to split and values of each row of a snapshot."""
    rows = snapshot.rows()
    columns = {name: as_python(field, *rows.read(name)) for name, field in snapshot.fields.items()}
    found = {
        each: (split, {name: columns[name][place] for name in columns})
        for place, (each, split) in enumerate(zip(rows.keys, rows.system('_split'), strict=True))
    }
    assert len(found) == len(snapshot)
    return found


def run(history: list[tuple], *, cached: bool, last: str = 'things') -> None:
    forget_results()
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as name:
        patch.setenv(LIMIT_VARIABLE, '1' if cached else '0')
        patch.setattr(os, 'fsync', lambda handle: None)  # takes most of the time of a snapshot, and is not asked here
        folder = Path(name)
        with project(folder) as edited:
            made = History(folder, edited, cached=cached)
            try:
                for action, given in history:
                    made.play(action, given)
                made.end(last)
            finally:
                for directory in (made.directory, f'{made.directory}_fresh'):
                    pxt.drop_dir(directory, force=True, if_not_exists='ignore')
                pxt.drop_table(LEDGER, if_not_exists='ignore')


def forget_results() -> None:
    """Empty the cache of results, which is one file for all histories."""
    file = cache_dir() / 'results.sqlite'
    if file.exists():
        with sqlite3.connect(file) as database:
            database.execute('DELETE FROM results')


shared = {'deadline': None, 'suppress_health_check': [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]}


@settings(max_examples=2, **shared)
@given(st.lists(steps, min_size=3, max_size=6), some, st.booleans(), st.sampled_from(list(FIELDS)))
def test_a_random_history_ends_as_from_scratch_with_the_fewest_calls(
    pixeltable_home: Path, history, first, cached, last
) -> None:
    run([('ingest', first), *history], cached=cached, last=last)


@pytest.mark.hardening
@pytest.mark.timeout(3600)
@pytest.mark.parametrize('quarter', range(4))
@settings(max_examples=75, **shared)
@given(st.lists(steps, min_size=3, max_size=12), some, st.booleans(), st.sampled_from(list(FIELDS)))
def test_three_hundred_random_histories_do(pixeltable_home: Path, quarter, history, first, cached, last) -> None:
    run([('ingest', first), *history], cached=cached, last=last)
