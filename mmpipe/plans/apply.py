"""Carry out a plan: exactly what it says, or nothing."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from mmpipe.errors import DestructiveError, PlanError
from mmpipe.ledger import column_prints, keeping
from mmpipe.ledger.prints import dependents
from mmpipe.plans.backfill import Progress, backfill, mark_filled
from mmpipe.plans.plan import VALUES, Change, Plan, plan
from mmpipe.store import (
    base_of,
    carry_out_column,
    computed_columns,
    declared_models,
    failed_cells,
    next_row_id,
    path_of,
    start,
    tables_in,
    views_of,
    writer_lock,
)

_log = logging.getLogger(__name__)


def apply(
    planned: Plan, *, allow_destructive: bool = False, trust: bool = False, progress: Progress | None = None
) -> Plan:
    """Make the catalog what the plan says, and compute what it calls stale or unrecorded.

    An altered computed column is computed again for all its rows in the statement that alters it, so that no column
    mixes values of two definitions. A cell whose function raises stays null and keeps the error; it stops nothing, and
    is told in `failed` and as a warning of the logger `mmpipe.plans.apply`. A crash leaves whole statements done; a new
    plan shows what is left.

    Args:
        planned: what `mm.plan` returned.
        allow_destructive: whether changes that lose stored values may be done.
        trust: take unrecorded rows for made by the code of now, instead of making them again; for tables that were
            there before mmpipe came to them.
        progress: called as `progress('apply', done, total, 'rows')` for each column that is computed again.

    Returns:
        The plan that was applied, with `failed` filled when cells could not be computed. The table classes are bound to
        their tables afterwards.

    Raises:
        DestructiveError: the plan drops something and `allow_destructive` is False.
        PlanError: a change is unsupported, Pixeltable refuses one, or the catalog moved since the plan was made.
        BusyError: another process is applying a plan to this directory.

    >>> done = mm.apply(mm.plan(Tables, 'shop'))  # doctest: +SKIP
    >>> done.failed, mm.plan(Tables, 'shop').pending  # doctest: +SKIP
    ((), False)
    """
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
    with writer_lock(f'schema:{planned.directory}'):
        if _schema_of(plan(planned.tables, planned.directory)) != _schema_of(planned):
            raise PlanError(f"'{planned.directory}' changed since this plan was made. Make a new one, and look at it.")
        try:
            failed = (*_change_schema(pxt, planned, allow_destructive), *_compute(pxt, planned, progress, trust))
        except pxt.Error as error:
            raise PlanError(
                f"Pixeltable refused a change in '{planned.directory}': {error} Correct the class that declares it; "
                f'a new plan shows what is left to do.'
            ) from error
    for message in failed:
        _log.warning(message)
    return replace(planned, failed=failed) if failed else planned


def _schema_of(planned: Plan) -> list[Change]:
    """The changes, less the row counts of those of the schema, which an ingest in between may move."""
    return [change if change.action in VALUES else replace(change, rows=0) for change in planned.changes]


def _change_schema(pxt: Any, planned: Plan, allow_destructive: bool) -> list[str]:
    """Do the changes of the schema, and record what their statements computed."""
    if not planned.schema:
        planned.tables.update_all(planned.directory, allow_destructive=allow_destructive)
        return []
    there = [path_of(table) for table in tables_in(planned.directory) if base_of(table) is table]
    with ExitStack() as locks:
        for path in there:
            locks.enter_context(writer_lock(f'table:{path}'))
            with keeping(pxt.get_table(path)):  # tells apart what others wrote, before the versions of all rows move
                pass
        until = {path: next_row_id(pxt.get_table(path)) for path in there}
        failed = list(_carry_out(pxt, planned, allow_destructive))
        _note(pxt, planned, until)
    return failed


def _note(pxt: Any, planned: Plan, until: dict[str, int]) -> None:
    """Record what the statements of a schema change computed."""
    changed = {(c.table, c.name) for c in planned.schema if c.action in ('add', 'alter') and c.name}
    made = {(c.table, '*') for c in planned.schema if c.action in ('create', 'recreate')} | changed
    # A table that was not there had no rows to compute.
    bases = {path_of(base_of(pxt.get_table(table))) for table, _ in made} & until.keys() if until else set()
    for base in bases:
        made |= dependents(changed, column_prints(pxt.get_table(base)))
    mark_filled(bases, made, until)


def _compute(pxt: Any, planned: Plan, progress: Progress | None, trust: bool) -> Iterator[str]:
    """Compute the columns that the plan calls stale or unrecorded, and yield a message per column with failed cells."""
    columns: dict[str, list[tuple[str, str]]] = {}
    for change in planned.values:
        base = path_of(base_of(pxt.get_table(change.table)))
        columns.setdefault(base, []).append((change.table, change.name))
    for base, names in columns.items():
        table = pxt.get_table(base)
        if trust:
            with writer_lock(f'table:{base}'), keeping(table) as book:
                book.trust(names, next_row_id(table))
        yield from backfill(table, names, progress=progress)


def _carry_out(pxt: Any, planned: Plan, allow_destructive: bool) -> Iterator[str]:
    """Do it, and yield a message per column with failed cells."""
    pxt.create_dir(planned.directory, parents=True, if_exists='ignore')
    for change in reversed(planned.changes):  # views behind what they are over
        if change.action == 'recreate' or (change.action == 'drop' and not change.name):
            pxt.drop_table(change.table)
    failing: dict[str, set[str]] = {}
    # Altered columns first: what is added over one of them is then computed once.
    pending = [change for action in ('alter', 'add') for change in planned.changes if change.action == action]
    while pending:
        left = [change for change in pending if not _column(pxt, planned, change, failing)]
        if len(left) == len(pending):
            break
        pending = left
    planned.tables.update_all(planned.directory, allow_destructive=allow_destructive)
    for change in planned.changes:
        if change.action in ('create', 'recreate'):
            made = pxt.get_table(change.table)
            if made.get_base_table() is not None:  # a view is filled as it is made
                failing[change.table] = set(computed_columns(made))
    for path, columns in failing.items():
        yield from failed_cells(pxt.get_table(path), sorted(columns))


def _column(pxt: Any, planned: Plan, change: Change, failing: dict[str, set[str]]) -> bool:
    """Add or alter one column, unless `update_all` has to; note which columns have failed cells."""
    model = (declared_models(planned.tables) or {})[change.table.rsplit('/', 1)[-1]]
    table = pxt.get_table(change.table)
    columns = carry_out_column(table, model, change.name, 'alter' if change.action == 'alter' else 'add')
    paths = {path_of(each).rsplit('/', 1)[-1]: path_of(each) for each in (table, *views_of(table))} if columns else {}
    for owner, _, column in (name.partition('.') for name in columns or ()):
        failing.setdefault(paths.get(owner, change.table), set()).add(column)
    return columns is not None
