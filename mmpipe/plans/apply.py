"""Carry out a plan: exactly what it says, or nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from mmpipe.errors import DestructiveError, PlanError
from mmpipe.plans.plan import Change, Plan, plan
from mmpipe.store import start, writer_lock


def apply(planned: Plan, *, allow_destructive: bool = False) -> Plan:
    """Make the catalog what the plan says.

    An altered computed column is computed again for all its rows in the statement that alters it, so that no column
    mixes values of two definitions. A crash leaves whole statements done; a new plan shows what is left.

    Args:
        planned: what `mm.plan` returned.
        allow_destructive: whether changes that lose stored values may be done.

    Returns:
        The plan that was applied. The table classes are bound to their tables afterwards.

    Raises:
        DestructiveError: the plan drops something and `allow_destructive` is False.
        PlanError: a change is unsupported, Pixeltable refuses one, or the catalog moved since the plan was made.
        BusyError: another process is applying a plan to this directory.
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
            _carry_out(pxt, planned, allow_destructive)
        except pxt.Error as error:
            raise PlanError(
                f"Pixeltable refused a change in '{planned.directory}': {error} Correct the class that declares it; "
                f'a new plan shows what is left to do.'
            ) from error
    return planned


def _schema_of(planned: Plan) -> list[Change]:
    """The changes without their row counts, which an ingest in between may move."""
    return [replace(change, rows=0) for change in planned.changes]


def _carry_out(pxt: Any, planned: Plan, allow_destructive: bool) -> None:
    pxt.create_dir(planned.directory, parents=True, if_exists='ignore')
    for change in reversed(planned.changes):  # views behind what they are over
        if change.action == 'recreate' or (change.action == 'drop' and not change.name):
            pxt.drop_table(change.table)
    for change in planned.changes:
        if change.action == 'alter':
            table = pxt.get_table(change.table)
            model = planned.tables.__registered_models__[change.table.rsplit('/', 1)[-1]]
            _alter(table, model, change.name)
    planned.tables.update_all(planned.directory, allow_destructive=allow_destructive)


def _alter(table: Any, model: Any, column: str) -> None:
    """`update_all` changes the expression and leaves the old values; this computes them in the same statement."""
    from pixeltable.catalog.model.diff import base_query_columns, user_columns
    from pixeltable.catalog.model.resolution import resolve_model_value_expr
    from pixeltable.exprs import Expr

    value = Expr.from_object(user_columns(model)[column]['value'])
    assert value is not None  # only a computed column is altered
    value = value.copy()
    origin: Literal['base_query', 'model_body'] = 'base_query' if column in base_query_columns(model) else 'model_body'
    table.alter_computed_column(**{column: resolve_model_value_expr(table._tbl_path, value, origin)})
