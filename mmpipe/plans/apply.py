"""Carry out a plan: exactly what it says, or nothing."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

from mmpipe.errors import DestructiveError, PlanError
from mmpipe.ledger import Print, column_prints, keeping
from mmpipe.ledger.prints import ColumnName, dependents, inputs_of
from mmpipe.plans.backfill import Part, Progress, backfill, mark_filled
from mmpipe.plans.plan import COMPUTED, INDEX, VALUES, Change, Plan, plan
from mmpipe.plans.ray_engine import RayColumn, RayEngine, RayFill, engine_of, filling
from mmpipe.store import (
    base_of,
    carry_out_column,
    computed_columns,
    declared_models,
    failed_cells,
    id_of,
    machine_failure,
    next_row_id,
    path_of,
    start,
    tables_in,
    told_plainly,
    writer_lock,
)
from mmpipe.store.expressions import column_id

_log = logging.getLogger(__name__)


@told_plainly()
def apply(
    planned: Plan,
    *,
    allow_destructive: bool = False,
    trust: bool = False,
    columns: Iterable[Any] | None = None,
    where: Any = None,
    limit: int | None = None,
    max_failed: float = 0.5,
    engine: str | RayEngine = 'local',
    progress: Progress | None = None,
) -> Plan:
    """Make the catalog what the plan says, and compute what it adds, alters, or calls stale or unrecorded.

    Columns are computed chunk by chunk, each a transaction of its own: a kill takes one back, and the next plan shows
    what is left. A cell whose function raises stays null and keeps the error; it stops nothing, and is told in `failed`
    and as a warning of the logger `mmpipe.plans.apply`. Views are filled in the statement that makes them.

    Args:
        planned: what `mm.plan` returned.
        allow_destructive: whether changes that lose stored values may be done.
        trust: take unrecorded rows for made by the code of now, instead of making them again; for tables that were
            there before mmpipe came to them.
        columns: compute only these, and what they read: columns as in `Products.embedding`, or 'products.embedding'.
            The schema is changed whole; what is not computed is stale in the next plan.
        where: compute only rows that fulfil this Pixeltable expression over a table or view, and none of other tables.
        limit: compute at most so many rows of each table, the oldest first: to see what a function does.
        max_failed: stop when more cells of a column fail: their number, or, below 1, their share of those tried, once
            32 were.
        engine: 'local', or 'ray', or a `RayEngine` that says how much of Ray: cells of `@cached` functions are computed
            there first, into the result cache, and read from it here. Needs `$MMPIPE_RESULT_CACHE_GB`.
        progress: called as `progress('apply', done, total, 'rows')` for each column that is computed; with Ray as
            `progress('ray', done, total, 'cells')` before.

    Returns:
        The plan that was applied, with `failed` filled when cells could not be computed, and `ray` with what Ray did
        of each column. The table classes are bound to their tables afterwards.

    Raises:
        DestructiveError: the plan drops something and `allow_destructive` is False.
        FailureBudgetError: too many cells of a column failed; names the first and its error. What was made stays.
        PlanError: a change is unsupported, Pixeltable refuses one, the catalog moved since the plan was made, or
            `columns` names what is no computed column.
        ConfigError: a `limit`, `max_failed` or `engine` that is not possible, or no result cache for Ray to fill.
        MissingExtraError: Ray is not installed.
        BusyError: another process is applying a plan to this directory.

    >>> done = mm.apply(mm.plan(Tables, 'shop'))  # doctest: +SKIP
    >>> done.failed, mm.plan(Tables, 'shop').pending  # doctest: +SKIP
    ((), False)
    """
    part = Part(where=where, limit=limit, max_failed=max_failed)
    chosen_engine = engine_of(engine)
    pxt = start()
    if planned.unsupported:
        moves: dict[str, list[str]] = {}
        for change in planned.unsupported:
            what = f'{change.table}.{change.name}' if change.name else change.table
            moves.setdefault(change.instead, []).append(f'{what} ({change.detail})')
        listed = ' '.join(f'{", ".join(whats)}: {move}.' for move, whats in moves.items())
        raise PlanError(f'Pixeltable cannot change this in place, and nothing was changed. {listed}')
    if planned.destructive and not allow_destructive:
        listed = ', '.join(f'{c.table}{"." + c.name if c.name else ""} ({c.action})' for c in planned.destructive)
        raise DestructiveError(
            f'this plan loses stored values: {listed}. To agree to that: --yes on the command line, or '
            f'allow_destructive=True in Python.'
        )
    with writer_lock(f'schema:{planned.directory}'), filling(chosen_engine, part, progress) as fill:
        if _schema_of(plan(planned.tables, planned.directory)) != _schema_of(planned):
            raise PlanError(f"'{planned.directory}' changed since this plan was made. Make a new one, and look at it.")
        try:
            left = _change_columns(pxt, planned)
            failed: list[str] = []
            if columns is None and any(change.action in ('create', 'recreate') for change in planned.changes):
                # A view is filled as it is made, from what it reads: that comes first, or the view is made twice.
                failed += _compute(pxt, planned, None, part, progress, trust, fill)
            failed += _make_tables(pxt, planned, left, allow_destructive)
            chosen = None if columns is None else _chosen(pxt, planned.directory, columns)
            failed += _compute(pxt, planned, chosen, part, progress, trust, fill)
        except pxt.Error as error:
            if machine_failure(error):
                raise
            raise PlanError(
                f"Pixeltable refused a change in '{planned.directory}': {error} Correct the class that declares it; "
                f'a new plan shows what is left to do.'
            ) from error
    for message in failed:
        _log.warning(message)
    done = replace(planned, failed=tuple(failed)) if failed else planned
    return done if fill is None else replace(done, ray=_on_ray(planned, fill))


def _schema_of(planned: Plan) -> list[Change]:
    """The changes without estimates, and less the row counts of those of the schema, which an ingest may move."""
    changes = [replace(change, seconds=None, at_most=False) for change in planned.changes]
    return [change if change.action in VALUES else replace(change, rows=0) for change in changes]


@contextmanager
def _schema_changes(pxt: Any, planned: Plan) -> Iterator[set[ColumnName]]:
    """Tell apart the rows there are before and after; gives a set for (path, column) of what is computed inside."""
    there = [path_of(table) for table in tables_in(planned.directory) if base_of(table) is table]
    added = [(c.table, c.name) for c in planned.changes if c.action == 'add' and c.rows and c.detail != INDEX]
    with ExitStack() as locks:
        until: dict[str, int] = {}
        for path in there:
            locks.enter_context(writer_lock(f'table:{path}'))
            table = pxt.get_table(path)
            with keeping(table) as book:  # tells apart what others wrote, before the versions of all rows move
                until[path] = next_row_id(table)
                names = [name for name in added if name[0] in book.tables and name not in book.prints]
                book.unfilled(names, until[path])
        filled: set[ColumnName] = set()
        yield filled
        # A table that was not there had no rows to compute.
        bases = {path_of(base_of(pxt.get_table(table))) for table, _ in filled} & until.keys() if until else set()
        mark_filled(bases, filled, until)


def _chosen(pxt: Any, directory: str, columns: Iterable[Any]) -> set[ColumnName]:
    """(path, column) of columns that were named, and of those they read."""
    found: set[ColumnName] = set()
    tables = tables_in(directory)
    prints: dict[ColumnName, Print] = {}
    for base in (table for table in tables if base_of(table) is table):
        prints |= column_prints(base)
    for each in columns:
        if isinstance(each, str):
            name = tuple(f'{directory}/{each}'.rsplit('.', 1))
        else:
            owner, column = column_id(each) or ('', '')
            name = next((path_of(table) for table in tables if id_of(table) == owner), ''), column
        if name not in prints or not name[-1]:
            known = ', '.join(f'{path.rsplit("/", 1)[-1]}.{column}' for path, column in prints if column)
            raise PlanError(f"columns: {each} is no stored computed column of '{directory}'; there are {known}.")
        found |= {(name[0], name[1]), *inputs_of((name[0], name[1]), prints)}
    return found


def _on_ray(planned: Plan, fill: RayFill) -> tuple[RayColumn, ...]:
    """What became of each column with Ray, those of new views among them."""
    found = dict(fill.reports)
    for change in planned.changes:
        name, what = (change.table, change.name), f'{change.table}.{change.name}'
        if change.action in ('create', 'recreate'):
            made = f'{change.table}.*'
            found[name] = RayColumn(column=made, why='in the statement that makes the table or view')
        elif change.action in COMPUTED and change.rows and change.detail != INDEX and name not in found:
            found[name] = RayColumn(column=what, why='since it was not chosen, or was added in one statement')
    return tuple(found.values())


def _compute(
    pxt: Any,
    planned: Plan,
    chosen: set[ColumnName] | None,
    part: Part,
    progress: Progress | None,
    trust: bool,
    fill: RayFill | None,
) -> Iterator[str]:
    """Compute what the plan adds, alters, calls stale or unrecorded; yields a message per column with failed cells."""
    changed = {(c.table, c.name) for c in planned.schema if c.action in ('add', 'alter') and c.name}
    told = {(c.table, c.name) for c in planned.values}
    bases = {path_of(base_of(pxt.get_table(path))): None for path, _ in sorted(changed | told)}
    for base in bases:
        table = pxt.get_table(base)
        prints = column_prints(table)
        names = (changed | told | dependents(changed, prints)) & prints.keys()
        names = names if chosen is None else names & chosen
        if trust:
            with writer_lock(f'table:{base}'), keeping(table) as book:
                book.trust(names & told, next_row_id(table))
        yield from backfill(table, names, part=part, progress=progress, before=fill)


def _change_columns(pxt: Any, planned: Plan) -> list[Change]:
    """Drop tables and views, add and alter columns without computing them; returns the columns it could not."""
    if not planned.schema:
        return []
    with _schema_changes(pxt, planned):
        pxt.create_dir(planned.directory, parents=True, if_exists='ignore')
        for change in reversed(planned.changes):  # views behind what they are over
            if change.action == 'recreate' or (change.action == 'drop' and not change.name):
                pxt.drop_table(change.table)
        # Altered columns first: what is added over one of them is then made from it.
        pending = [change for action in ('alter', 'add') for change in planned.changes if change.action == action]
        models = declared_models(planned.tables) or {}
        while pending:
            left = [
                change
                for change in pending
                if not carry_out_column(
                    pxt.get_table(change.table),
                    models[change.table.rsplit('/', 1)[-1]],
                    change.name,
                    'alter' if change.action == 'alter' else 'add',
                )
            ]
            if len(left) == len(pending):
                break
            pending = left
    return pending


def _make_tables(pxt: Any, planned: Plan, left: list[Change], allow_destructive: bool) -> list[str]:
    """Create tables and views, and the columns that are left; returns a message per column of a view that failed."""
    if not planned.schema:
        planned.tables.bind_all(planned.directory)
        return []
    failed: list[str] = []
    with _schema_changes(pxt, planned) as filled:
        planned.tables.update_all(planned.directory, allow_destructive=allow_destructive)
        filled |= {(change.table, change.name) for change in left}
        for change in planned.changes:
            if change.action in ('create', 'recreate'):
                filled.add((change.table, '*'))
                made = pxt.get_table(change.table)
                if made.get_base_table() is not None:  # a view is filled as it is made
                    failed += failed_cells(made, sorted(computed_columns(made)))
    return failed
