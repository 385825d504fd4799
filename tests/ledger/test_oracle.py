"""Random histories of ingests, plain writes, edits, applies: values as from scratch, and not one call too many."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

import multiplied
import pixeltable as pxt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemas import write_csv

import mmpipe as mm
from mmpipe.functions import counts, reset

KEYS = 6
COLUMNS = {'made': ('FACTOR',), 'more': ('FACTOR', 'PLUS'), 'other': (), 'less': ('FACTOR',)}
CALLS = {'made': 'times', 'more': 'plus', 'other': 'minus', 'less': 'minus'}

keys = st.sets(st.integers(0, KEYS - 1), min_size=1, max_size=3)
number = st.integers(0, 5)
steps = st.one_of(
    st.tuples(st.just('ingest'), st.dictionaries(st.integers(0, KEYS - 1), number, min_size=1, max_size=4)),
    st.tuples(st.just('insert'), st.dictionaries(st.integers(0, KEYS - 1), number, min_size=1, max_size=2)),
    st.tuples(st.just('update'), st.tuples(st.integers(0, KEYS - 1), number)),
    st.tuples(st.just('delete'), keys),
    st.tuples(st.just('edit'), st.tuples(st.sampled_from(['FACTOR', 'PLUS']), st.integers(1, 3))),
    st.tuples(st.just('apply'), st.none()),
)


class History:
    """A table, and beside it what is known of each row: x, and by which constants each column was made."""

    def __init__(self, directory: str, folder: Path) -> None:
        self.directory, self.folder = directory, folder
        self.Tables = multiplied.declared(directory)
        mm.apply(mm.plan(self.Tables, directory))
        self.table = pxt.get_table(f'{directory}/things')
        self.rows: dict[int, int] = {}
        self.made: dict[tuple[int, str], tuple | None] = {}

    def now(self, column: str) -> tuple:
        return tuple(getattr(multiplied, name) for name in COLUMNS[column])

    def columns(self, key: int) -> list[str]:
        return [name for name in COLUMNS if name != 'less' or self.rows[key] > 2]

    def note(self, key: int, known: bool) -> None:
        """A row was written: all its columns were made now, by us or by nobody we know."""
        for name in COLUMNS:
            self.made.pop((key, name), None)
        self.made |= {(key, name): self.now(name) if known else None for name in self.columns(key)}

    def ingest(self, given: dict[int, int]) -> None:
        manifest = write_csv(self.folder / 'a.csv', [{'key': f'k{key}', 'x': x} for key, x in given.items()])
        mm.ingest(self.table, mm.sources.rows(manifest))
        for key, x in given.items():
            if key not in self.rows or self.rows[key] != x:
                self.rows[key] = x
                self.note(key, known=True)

    def insert(self, given: dict[int, int]) -> None:
        fresh = {key: x for key, x in given.items() if key not in self.rows}
        if fresh:
            self.table.insert([{'key': f'k{key}', 'x': x} for key, x in fresh.items()])
        self.rows |= fresh
        for key in fresh:
            self.note(key, known=False)

    def update(self, given: tuple[int, int]) -> None:
        key, x = given
        if key in self.rows:
            self.table.update({'x': x}, where=self.table.key == f'k{key}')
            self.rows[key] = x
            self.note(key, known=False)

    def delete(self, given: set[int]) -> None:
        for key in given & self.rows.keys():
            self.table.delete(where=self.table.key == f'k{key}')
            del self.rows[key]
            for name in COLUMNS:
                self.made.pop((key, name), None)

    def edit(self, given: tuple[str, int]) -> None:
        setattr(multiplied, *given)

    def apply(self, _: None = None) -> None:
        stale = [(key, name) for (key, name), made in self.made.items() if made != self.now(name)]
        planned = mm.plan(self.Tables, self.directory)
        wanted = Counter(name for _, name in stale)
        found: Counter[str] = Counter()
        for change in planned.changes:
            assert change.action in ('stale', 'unrecorded')
            found[change.name] += change.rows
        assert found == wanted
        reset()
        mm.apply(planned)
        calls: Counter[str] = Counter()
        for _, name in stale:
            calls[CALLS[name]] += 1
        assert Counter(counts()) == calls
        self.made |= {(key, name): self.now(name) for key, name in stale}
        assert not mm.plan(self.Tables, self.directory).pending
        self.check()

    def check(self) -> None:
        """Every value as from scratch, by the constants of now."""
        factor, plus = multiplied.FACTOR, multiplied.PLUS
        rows = self.table.select(self.table.key, self.table.x, self.table.made, self.table.more).collect()
        wanted = {f'k{key}': (x, factor * x, factor * x + plus) for key, x in self.rows.items()}
        assert {row['key']: (row['x'], row['made'], row['more']) for row in rows} == wanted
        view = pxt.get_table(f'{self.directory}/large')
        less = {row['key']: row['less'] for row in view.select(view.key, view.less).collect()}
        assert less == {f'k{key}': -factor * x for key, x in self.rows.items() if x > 2}


def run(history: list[tuple]) -> None:
    kept = multiplied.FACTOR, multiplied.PLUS
    directory = f'oracle_{next(tempfile._get_candidate_names())}'
    pxt.create_dir(directory)
    try:
        with tempfile.TemporaryDirectory() as folder:
            made = History(directory, Path(folder))
            for action, given in [*history, ('apply', None)]:
                getattr(made, action)(given)
    finally:
        multiplied.FACTOR, multiplied.PLUS = kept
        pxt.drop_dir(directory, force=True)


shared = {'deadline': None, 'suppress_health_check': [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]}


@settings(max_examples=6, **shared)
@given(st.lists(steps, min_size=3, max_size=8))
def test_a_random_history_ends_as_from_scratch_with_the_fewest_calls(pixeltable_home: Path, history) -> None:
    run(history)


@pytest.mark.hardening
@pytest.mark.timeout(3600)
@settings(max_examples=300, **shared)
@given(st.lists(steps, min_size=3, max_size=12))
def test_three_hundred_random_histories_do(pixeltable_home: Path, history) -> None:
    run(history)
