"""Carry out a plan: exactly what it says, or nothing."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from mmpipe.errors import DestructiveError, PlanError
from mmpipe.plans.plan import Change, Plan, plan
from mmpipe.store import (
    carry_out_column,
    computed_columns,
    declared_models,
    failed_cells,
    path_of,
    start,
    views_of,
    writer_lock,
)

_log = logging.getLogger(__name__)


def apply(planned: Plan, *, allow_destructive: bool = False) -> Plan:
    """Make the catalog what the plan says.

    An altered computed column is computed again for all its rows in the statement that alters it, so that no column
    mixes values of two definitions. A cell whose function raises stays null and keeps the error; it stops nothing, and
    is told in `failed` and as a warning of the logger `mmpipe.plans.apply`. A crash leaves whole statements done; a new
    plan shows what is left.

    Args:
        planned: what `mm.plan` returned.
        allow_destructive: whether changes that lose stored values may be done.

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
        listed = '; '.join(f'{c.table}{"." + c.name if c.name else ""}: {c.detail}' for c in planned.unsupported)
        raise PlanError(
            f'{listed}. Pixeltable cannot change this in place: declare it under a new name, '
            f"or drop the table with pxt.drop_table('{planned.unsupported[0].table}') and ingest it again."
        )
    if planned.destructive and not allow_destructive:
        listed = ', '.join(f'{c.table}{"." + c.name if c.name else ""} ({c.action})' for c in planned.destructive)
        raise DestructiveError(
            f'this plan loses stored values: {listed}. Pass allow_destructive=True to agree to that.'
        )
    with writer_lock(f'schema:{planned.directory}'):
        if _schema_of(plan(planned.tables, planned.directory)) != _schema_of(planned):
            raise PlanError(f"'{planned.directory}' changed since this plan was made. Make a new one, and look at it.")
        try:
            failed = tuple(_carry_out(pxt, planned, allow_destructive))
        except pxt.Error as error:
            raise PlanError(
                f"Pixeltable refused a change in '{planned.directory}': {error} Correct the class that declares it; "
                f'a new plan shows what is left to do.'
            ) from error
    for message in failed:
        _log.warning(message)
    return replace(planned, failed=failed) if failed else planned


def _schema_of(planned: Plan) -> list[Change]:
    """The changes without their row counts, which an ingest in between may move."""
    return [replace(change, rows=0) for change in planned.changes]


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
