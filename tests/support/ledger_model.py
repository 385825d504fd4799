"""What the tables of the edited project should hold, and who made it: plain Python, kept beside the real tables."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from edited_project import Code

COLUMNS = ('made', 'more', 'other', 'less', 'parts', 'weight')
"""Computed columns in an order in which they can be computed; 'parts' is the iterator of that view."""
TABLE = {'made': 'things', 'more': 'things', 'other': 'things', 'less': 'large', 'parts': 'parts', 'weight': 'parts'}
READS = {
    'made': {'x'}, 'more': {'made', 'y'}, 'other': {'x'}, 'less': {'made'}, 'parts': {'x'}, 'weight': {'made', 'parts'},
}  # fmt: skip
CACHED = ('scaled', 'plus')
ABOVE = 2  # rows with an x above it are in the view


def split_of(y: int) -> str:
    return 'train' if y < 2 else 'val'


def that_read(changed: Iterable[str]) -> list[str]:
    """Columns that read one of these, directly or not, in order."""
    found = set(changed)
    for name in COLUMNS:
        if READS[name] & found:
            found.add(name)
    return [name for name in COLUMNS if name in found and READS[name] & found]


@dataclass(frozen=True)
class Found:
    """The iterator of rows that others wrote since a command of mmpipe did.

    Args:
        before: by which it was made before; None for a new row.
    """

    before: Any = None


@dataclass
class Row:
    """A row of the table with its rows in the views.

    Args:
        number: of the row in the store; a key that is deleted and comes again gets another.
        x: its first number.
        y: its second.
        sourced: whether mmpipe inserted it, so that the source is known that may lose it.
        prints: by which code each column was made; None where nobody knows.
        values: what is stored; of 'parts' and 'weight' a list.
    """

    number: int
    x: int
    y: int
    sourced: bool
    prints: dict[str, Any] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)

    def count(self, column: str) -> int:
        """How many rows of it there are where a column is."""
        if TABLE[column] == 'parts' and column != 'parts':  # an iterator runs once for a row of what it is over
            return len(self.values['parts'])
        return 1 if column != 'less' else int(self.x > ABOVE)


class Model:
    """Rows by key, the code of now, and what of it is applied.

    Args:
        code: what the source files say.
        cached: whether results are kept.
    """

    def __init__(self, code: Code, *, cached: bool) -> None:
        self.code = self.applied = code  # of the second, what stands in the catalog: parameters and defaults
        self.cached = cached
        self.rows: dict[int, Row] = {}
        self.calls: Counter[str] = Counter()
        self.kept: set[tuple[Any, ...]] = set()
        self._numbers = itertools.count()

    def functions(self) -> dict[str, tuple[int, ...]]:
        """What decides the results of each function."""
        code = self.code
        helper = (code.deep, code.step)
        return {
            'scaled': (*helper, code.scaled), 'plus': (code.plus,), 'shifted': (code.default, code.step), 'minus': (),
            'weigh': (*helper, code.weigh), 'pieces': (code.pieces,),
        }  # fmt: skip

    def prints(self) -> dict[str, Any]:
        """What decides the values of each column."""
        by = self.functions()
        made = (self.applied.by, by['scaled'])
        return {
            'made': made, 'more': (made, by['plus']), 'other': by['shifted'], 'less': made, 'parts': by['pieces'],
            'weight': (made, by['weigh']),
        }  # fmt: skip

    def _call(self, function: str, *arguments: int, cells: int = 1) -> None:
        if self.cached and function in CACHED:
            key = (function, self.functions()[function], arguments)
            if key in self.kept:
                return
            self.kept.add(key)
        if cells:
            self.calls[function] += cells

    def compute(self, row: Row, columns: Iterable[str]) -> None:
        """Compute columns of a row with the code of now, from what is stored in the others."""
        code, values, x = self.code, row.values, row.x
        lifted = lambda number: 2 * (number + code.step if code.deep == 0 else number - code.step)  # noqa: E731
        for name in columns:
            if name == 'made':
                self._call('scaled', x, self.applied.by)
                values[name] = lifted(x) * self.applied.by + 100 * code.scaled
            elif name == 'more':
                self._call('plus', values['made'], row.y)
                values[name] = values['made'] + (row.y if code.plus == 0 else -row.y)
            elif name == 'other':
                self._call('shifted')
                values[name] = x + code.default + code.step
            elif name == 'less' and x > ABOVE:
                self._call('minus')
                values[name] = -values['made']
            elif name == 'parts':
                count = x % 3 if code.pieces == 0 else (x + 1) % 3
                self._call('pieces', cells=count)
                values[name] = list(range(count))
            elif name == 'weight':
                self._call('weigh', cells=len(values['parts']))
                times = 10 if code.weigh == 0 else 20
                values[name] = [piece * times + lifted(values['made']) for piece in values['parts']]

    def made(self, row: Row, columns: Iterable[str]) -> None:
        """Compute columns of a row by a command of mmpipe."""
        columns = list(columns)
        self.compute(row, columns)
        row.prints |= {name: now for name, now in self.prints().items() if name in columns}

    def insert(self, key: int, x: int, y: int, *, known: bool) -> None:
        """A new row, by mmpipe or by another."""
        row = self.rows[key] = Row(next(self._numbers), x, y, sourced=known)
        self.made(row, COLUMNS)
        if not known:
            row.prints = dict.fromkeys(COLUMNS) | {'parts': Found()}

    def update(self, key: int, *, known: bool, **given: int) -> None:
        """Other numbers in a row: what reads them is computed, and by others, all columns of its tables are theirs."""
        row = self.rows[key]
        for name, value in given.items():
            setattr(row, name, value)
        again = that_read(given)
        if row.x <= ABOVE:
            row.values.pop('less', None)
        if known:
            self.made(row, again)
            return
        self.compute(row, again)
        touched = {'things', *(TABLE[name] for name in again)}
        before = row.prints['parts']
        row.prints |= {name: None for name in COLUMNS if TABLE[name] in touched}
        row.prints['parts'] = before
        if 'parts' in touched and not isinstance(before, Found):
            row.prints['parts'] = Found(before)

    def settle(self) -> None:
        """A command of mmpipe writes: an iterator that others ran counts as the one of now, which is not run again."""
        for row in self.rows.values():
            row.prints['parts'] = self._found(row.prints['parts'])

    def _found(self, made: Any) -> Any:
        if not isinstance(made, Found):
            return made
        return self.prints()['parts'] if made.before in (None, self.prints()['parts']) else 'either of two'

    def count(self, column: str, state: str) -> int:
        """Rows of a column that are stale or unrecorded."""
        now = self.prints()[column]
        made = [(row.count(column), self._found(row.prints[column])) for row in self.rows.values()]
        return sum(rows for rows, each in made if state == _state(each, now))

    def planned(self) -> Counter[tuple[str, str, str, int]]:
        """(action, table, column, rows) of each change that a plan should name."""
        found: Counter[tuple[str, str, str, int]] = Counter()
        for name in self.altered():
            found['alter', 'things', name, len(self.rows)] += 1
        stale = self.count('parts', 'stale')
        if stale:
            found['recreate', 'parts', '', stale] += 1
        for name in COLUMNS:
            if name == 'parts' or name in self.altered() or (name == 'weight' and stale):
                continue
            for state in ('stale', 'unrecorded'):
                rows = self.count(name, state)
                if rows:
                    found[state, TABLE[name], name, rows] += 1
        return found

    def altered(self) -> list[str]:
        """Columns whose expression is another than in the catalog."""
        found = ['made'] if self.code.by != self.applied.by else []
        return [*found, 'other'] if self.code.default != self.applied.default else found

    def apply(self) -> None:
        """Compute what a plan names, each cell once."""
        if self.planned():
            self.settle()
        wanted = {name for _, _, name, _ in self.planned()}
        recreated = '' in wanted
        self.applied = replace(self.applied, by=self.code.by, default=self.code.default)
        for row in self.rows.values():
            for name in COLUMNS:
                if name in wanted and row.count(name) and row.prints[name] != self.prints()[name]:
                    again = [name, *that_read([name])]
                    self.made(row, [each for each in again if not (recreated and TABLE[each] == 'parts')])
            if recreated:  # last, from what is made by then
                self.made(row, ['parts', 'weight'])

    def odd(self, row: Row) -> bool:
        """Whether others ran an older iterator for a row than the one that found it: nobody can tell."""
        count = row.x % 3 if self.code.pieces == 0 else (row.x + 1) % 3
        return self._found(row.prints['parts']) == self.prints()['parts'] and len(row.values['parts']) != count

    def content(self, table: str, *, fresh: bool = False) -> dict[str, dict[str, Any]]:
        """Key to values of a table: as they are stored, or as made by the code and the catalog of now.

        Rows of the component view are named by their place.
        """
        found = {}
        for key, row in self.rows.items():
            if fresh:
                kept, self.calls, self.kept = (self.calls, self.kept), Counter(), set(self.kept)
                old, row = row, Row(row.number, row.x, row.y, sourced=row.sourced)
                self.compute(row, COLUMNS)
                if self.odd(old):
                    row.values['parts'] = old.values['parts']
                    self.compute(row, ['weight'])
                self.calls, self.kept = kept
            plain = {'x': row.x, 'y': row.y, 'split': split_of(row.y)}
            plain |= {name: row.values[name] for name in ('made', 'more', 'other')}
            if table == 'things':
                total = sum(row.values['weight']) if row.values['weight'] else None
                found[f'k{key}'] = {**plain, 'total': total}
            elif table == 'large' and row.x > ABOVE:
                found[f'k{key}'] = {**plain, 'less': row.values['less']}
            elif table == 'parts':
                for place, (piece, weight) in enumerate(zip(row.values['parts'], row.values['weight'], strict=True)):
                    found[f'k{key}/{place}'] = {**plain, 'piece': piece, 'weight': weight}
        return found

    def number(self, key: str) -> str:
        """The store's name of a row of any table by its key there."""
        base, _, place = key.partition('/')
        return f'{self.rows[int(base[1:])].number}/{place}'


def _state(made: Any, now: Any) -> str:
    if made is None:
        return 'unrecorded'
    return 'fresh' if made == now else 'stale'
