"""What would change in the catalog if the declared table classes were applied: a value to read, print and apply."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from mmpipe.errors import SchemaError
from mmpipe.home import check_directory
from mmpipe.ledger import Book
from mmpipe.store import (
    base_of,
    declared_models,
    file_of,
    path_of,
    refusal,
    refused_addition,
    start,
    told_plainly,
    views_of,
)
from mmpipe.wording import how_many

if TYPE_CHECKING:
    from mmpipe.plans.ray_engine import RayColumn

MARKERS = {
    'create': '+', 'add': '+', 'alter': '~', 'drop': '-', 'recreate': '±', 'unsupported': '!', 'stale': '~',
    'unrecorded': '?',
}  # fmt: skip
VALUES = ('stale', 'unrecorded')  # changes of values, not of the schema
INDEX = 'index'
COMPUTED = ('add', 'alter', *VALUES)
_RUN = re.compile(r"(?<=_predict\(run=')[^']*|(?<=_vector\(run=')[^']*")  # of mmpipe.functions.predictions
NEW_COLUMN = (
    'declare it under a new name; or, to keep the name, delete it from its class with the columns that read it, change '
    'filters that do, run `mmpipe apply` with --yes, then declare all of it again'
)
NEW_TABLE = 'put it back as it was, or declare the table under a new name and ingest into it'


@dataclass(frozen=True, kw_only=True)
class Change:
    """One change to a table, view, column or index.

    Args:
        action: create (a table), add, alter or drop (a column or index), recreate (a view whose iterator or filter
            changed: its rows are computed again), unsupported (mmpipe and Pixeltable cannot do it in place), stale (a
            computed column with rows made by other code, parameters, weights or inputs than now), unrecorded (with rows
            that mmpipe did not write, so that nobody knows what made them).
        table: path of the table or view.
        name: column or index; '' for the table itself.
        detail: what it becomes, as Pixeltable prints it.
        rows: rows whose cells will be computed; 0 where none are.
        instead: what to do instead of an unsupported change.
        seconds: how long it may take by the rates of the last run; None where nothing was run yet.
        at_most: whether that rate is of whole rows, with all columns, as they were ingested.
    """

    action: str
    table: str
    name: str = ''
    detail: str = ''
    rows: int = 0
    instead: str = ''
    seconds: float | None = None
    at_most: bool = False

    @property
    def destructive(self) -> bool:
        """Whether stored values are lost by it."""
        return self.action in ('drop', 'recreate')

    def __str__(self) -> str:
        what = f'{self.table}.{self.name}' if self.name else self.table
        rows = how_many(self.rows, 'row') if self.rows else ''
        rows += f', {_about(self.seconds, self.at_most)}' if rows and self.seconds is not None else ''
        line = f'{MARKERS[self.action]} {what:<32} {self.action:<12} {self.detail:<56} {rows}'.rstrip()
        return f'{line}\n    instead: {self.instead}' if self.instead else line


def _about(seconds: float, at_most: bool) -> str:
    """An estimate in words.

    >>> _about(0.2, False), _about(42.4, True), _about(7000, False)
    ('under 1 s', 'at most 42 s', 'about 2 h')
    """
    if seconds < 1:
        return 'under 1 s'
    size, unit = (seconds, 's') if seconds < 100 else (seconds / 60, 'min') if seconds < 6000 else (seconds / 3600, 'h')
    return f'{"at most" if at_most else "about"} {size:.0f} {unit}'


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The difference between table classes and a catalog directory. Made by `mm.plan`, carried out by `mm.apply`.

    Args:
        directory: catalog directory.
        changes: what `apply` would do, in order.
        unchanged: paths of the tables and views that stay as they are.
        undeclared: paths of the tables and views of the directory that no class declares; they stay, too.
        tables: the declared base class, made by `pxt.model_base()`.
        failed: once applied, a message per computed column with cells whose function raised, with the next move.
        ray: once applied with Ray, a `RayColumn` per computed column.
    """

    directory: str
    changes: tuple[Change, ...]
    unchanged: tuple[str, ...]
    tables: Any
    undeclared: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    ray: tuple[RayColumn, ...] = ()

    @property
    def pending(self) -> bool:
        """Whether there is anything to apply."""
        return bool(self.changes)

    @property
    def schema(self) -> tuple[Change, ...]:
        """The changes of tables and columns, without those of values alone."""
        return tuple(change for change in self.changes if change.action not in VALUES)

    @property
    def values(self) -> tuple[Change, ...]:
        """The columns whose values are to be computed again, or for the first time by mmpipe."""
        return tuple(change for change in self.changes if change.action in VALUES)

    @property
    def destructive(self) -> tuple[Change, ...]:
        """The changes that lose stored values."""
        return tuple(change for change in self.changes if change.destructive)

    @property
    def unsupported(self) -> tuple[Change, ...]:
        """The changes that cannot be applied."""
        return tuple(change for change in self.changes if change.action == 'unsupported')

    def __str__(self) -> str:
        others = [f'= {path:<32} not declared; stays' for path in self.undeclared]
        if not self.changes:
            same = how_many(len(self.unchanged), 'table or view is', 'tables and views are')
            return '\n'.join([f'{self.directory}: nothing to do, {same} as declared.', *others])
        counts = {action: sum(c.action == action for c in self.changes) for action in MARKERS}
        said = ', '.join(
            f'{count} {action}' if action in (*VALUES, 'unsupported') else f'{count} to {action}'
            for action, count in counts.items()
            if count
        )
        said += f', {_about(*self._estimate)}' if self._estimate is not None else ''
        lost = len(self.destructive)
        tail = f'{lost} of them {"loses" if lost == 1 else "lose"} stored values.' if lost else 'Nothing is dropped.'
        tail = 'It cannot be applied.' if self.unsupported else tail
        return '\n'.join(
            [
                f'{self.directory}: {said}, {len(self.unchanged)} unchanged. {tail}',
                *map(str, self.changes),
                *others,
                *self.failed,
                *map(str, self.ray),
            ]
        )

    @property
    def seconds(self) -> float | None:
        """How long the computing may take by the rates of the last run; None where a rate is not known."""
        return None if self._estimate is None else self._estimate[0]

    @property
    def _estimate(self) -> tuple[float, bool] | None:
        """Seconds, and whether it may be less; changes of whole tables are not among it."""
        changes = [c for c in self.changes if c.rows and c.action in COMPUTED and c.detail != INDEX]
        known = [change.seconds for change in changes if change.seconds is not None]
        if not known or len(known) < len(changes):
            return None
        return sum(known), any(change.at_most for change in changes)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            'directory': self.directory,
            'pending': self.pending,
            'seconds': self.seconds,
            'changes': [{**asdict(change), 'destructive': change.destructive} for change in self.changes],
            'unchanged': list(self.unchanged),
            'undeclared': list(self.undeclared),
            'failed': list(self.failed),
            'ray': [column.to_json() for column in self.ray],
        }


@told_plainly()
def plan(tables: Any, directory: str, *, values: bool = True) -> Plan:
    """Compare table classes, and the code behind their columns, with what is in a catalog directory. Reads only.

    Args:
        tables: base class made by `pxt.model_base()`, with the table classes declared under it.
        directory: catalog directory, such as 'shop'; it need not exist yet.
        values: look for columns whose values the code would make otherwise now, too.

    Returns:
        The plan. `print(plan)` shows it with a marker per change: + create or add, ~ alter or compute again, - drop,
        ± drop and make again, ! not possible, ? not known to mmpipe; and = for what is there but not declared.

    Raises:
        ConfigError: Pixeltable takes no directory of that name.
        SchemaError: `tables` is not such a base class, holds no table, or declares what Pixeltable would refuse.

    >>> print(mm.plan(Tables, 'shop'))  # doctest: +SKIP
    shop: 1 to create, 0 unchanged. Nothing is dropped.
    + shop/products  create  table with 5 columns, 1 computed
    """
    pxt = start()
    check_directory(directory)
    models = declared_models(tables)
    if models is None:
        raise SchemaError(f'{tables!r:.80} is not made by pxt.model_base(): pass the base class of your table classes')
    if not models:
        raise SchemaError(
            'no table class is declared under this pxt.model_base(): import the module that declares them'
        )
    for name, model in models.items():
        _refuse(model, f'{directory}/{name}', new=False)
    try:
        diffs = tables.get_model_diff(directory)
        found = {diff.path: list(_changes(pxt, diff, models[name])) for name, diff in diffs.items()}
    except pxt.Error as error:
        raise SchemaError(
            f"the tables declared for '{directory}' do not fit the catalog: {error} Rename the table or column, or "
            f'remove what is there under its name.'
        ) from error
    for name, diff in diffs.items():
        if not diff.exists:
            _refuse(models[name], diff.path, new=True)
    if values:
        _values(pxt, found)
    _recreate_views_above(pxt, found)
    return Plan(
        directory=directory,
        changes=tuple(change for changes in found.values() for change in changes),
        unchanged=tuple(path for path, changes in found.items() if not changes),
        tables=tables,
        undeclared=tuple(path for path in _there(pxt, directory) if path not in found),
    )


def _refuse(model: Any, path: str, *, new: bool) -> None:
    """Raise for what Pixeltable would refuse in the middle of an apply."""
    found = refusal(model, new=new)
    if found is not None:
        column, reason = found
        place = f'{file_of(model)}: ' if file_of(model) else ''
        what, move = (f", column '{column}'", 'Rename the column') if column else ('', 'Correct the class')
        raise SchemaError(f"{place}class {model.__name__}, table '{path}'{what}: {reason.rstrip('.')}. {move}.")


def _there(pxt: Any, directory: str) -> list[str]:
    """Paths of the tables and views of a directory, those of directories inside it left out."""
    return sorted(pxt.list_tables(directory, recursive=False)) if directory in pxt.list_dirs() else []


def _values(pxt: Any, found: dict[str, list[Change]]) -> None:
    """Columns with rows that other code made, or nobody knows which; of tables and columns that stay as they are."""
    there = {path for path, changes in found.items() if not any(c.action in ('create', 'recreate') for c in changes)}
    bases = {path_of(base_of(pxt.get_table(path))) for path in there}
    for base in sorted(bases):
        book = Book(pxt.get_table(base))
        book.settle()
        for path in book.tables.keys() & found.keys():
            found[path] = [_with_estimate(change, book) for change in found[path]]
        for state in book.states():
            if state.table not in there or any(change.name == state.column for change in found[state.table]):
                continue
            why, name = state.why, state.column
            if not name and state.stale:
                detail = f'its iterator: {why}'
                found[state.table] = [Change(action='recreate', table=state.table, detail=detail, rows=state.stale)]
                there.remove(state.table)
            elif name and state.stale:
                change = Change(action='stale', table=state.table, name=name, detail=why, rows=state.stale)
                found[state.table].append(_with_estimate(change, book))
            if name and state.unrecorded:
                why = 'rows that mmpipe did not write'
                change = Change(action='unrecorded', table=state.table, name=name, detail=why, rows=state.unrecorded)
                found[state.table].append(_with_estimate(change, book))


def _with_estimate(change: Change, book: Book) -> Change:
    """A change of computed values with the seconds it may take."""
    if not (change.rows and change.name) or change.action not in COMPUTED or change.detail == INDEX:
        return change
    seconds, at_most = book.seconds(change.table, change.name, change.rows)
    return replace(change, seconds=seconds, at_most=at_most)


def _recreate_views_above(pxt: Any, found: dict[str, list[Change]]) -> None:
    """A view that is made again takes the views over it along; one that nobody declares is dropped with it."""
    again = [change.table for changes in list(found.values()) for change in changes if change.action == 'recreate']
    for base in again:
        for view in views_of(pxt.get_table(base)):
            path, why = path_of(view), f'its base {base} is made again'
            if path not in found:
                change = Change(action='drop', table=path, detail=f'not declared, and {why}', rows=view.count())
                found[path] = [change]
            elif not any(change.action == 'recreate' for change in found[path]):
                found[path] = [Change(action='recreate', table=path, detail=why, rows=view.count())]


def _changes(pxt: Any, diff: Any, model: Any) -> Iterator[Change]:
    if not diff.exists:
        computed = sum(1 for op in diff.ops if op.target == 'column' and op.details and op.details.value)
        columns = how_many(sum(op.target == 'column' for op in diff.ops), 'column')
        detail = (
            f'{diff.kind} with {columns}, {computed} computed' if diff.ops else f'{diff.kind} with no column of its own'
        )
        yield Change(action='create', table=diff.path, detail=detail)
        return
    structural = [op for op in diff.ops if op.severity == 'unsupported']
    if structural and diff.kind == 'view' and all(op.name in ('iterator', 'view_filter') for op in structural):
        rows = pxt.get_table(diff.path).count()
        detail = '; '.join(f'{op.name}: {op.existing} -> {op.model}' for op in structural)
        yield Change(action='recreate', table=diff.path, detail=detail, rows=rows)
        return
    rows = pxt.get_table(diff.path).count() if diff.ops else 0
    for op in diff.ops:
        if op.severity == 'unsupported':
            yield _unsupported(diff, op)
            continue
        refused = None
        if op.target == 'column' and op.op == 'add':
            refused = refused_addition(model, op.name, rows=rows, view=diff.kind == 'view')
        if refused is not None:
            yield Change(action='unsupported', table=diff.path, name=op.name, detail=refused[0], instead=refused[1])
            continue
        name = op.name or ', '.join(op.details.index_ref.columns)
        value = op.details.value if op.details else None
        if op.op == 'alter':
            detail = _altered(str(op.details.previous_value), str(value))
        elif op.target == 'index':
            detail = INDEX
        else:
            detail = value or (op.details.type if op.details else None) or ''
        computed = rows if op.op != 'drop' and (value or op.target == 'index') else 0
        yield Change(action=op.op, table=diff.path, name=name, detail=detail, rows=computed)


def _altered(before: str, now: str) -> str:
    """What became of an expression: of another run's predictions the runs alone, where all else is as it was.

    >>> _altered("_predict(run='shop/0007', image_0=photo)", "_predict(run='shop/0008', image_0=photo)")
    'run shop/0007 -> shop/0008'
    >>> _altered('a + 1', 'a + 2')
    'a + 1 -> a + 2'
    """
    old, new = _RUN.findall(before), _RUN.findall(now)
    if old != new and len(set(old)) == len(set(new)) == 1 and _RUN.sub('', before) == _RUN.sub('', now):
        return f'run {old[0]} -> {new[0]}'
    return f'{before} -> {now}'


def _unsupported(diff: Any, op: Any) -> Change:
    if op.target != 'column':
        return Change(action='unsupported', table=diff.path, detail=op.description or '', instead=NEW_TABLE)
    changed = '; '.join(f'{name}: {op.existing[name]} -> {value}' for name, value in op.model.items())
    move = NEW_TABLE if 'primary_key' in op.model or op.existing.get('primary_key') else NEW_COLUMN
    return Change(action='unsupported', table=diff.path, name=op.name, detail=changed, instead=move)
