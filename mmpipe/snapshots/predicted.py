"""Fields that a model of ours wrote: to train on them would be to learn one's own mistakes."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from mmpipe.errors import SnapshotError, StoreError
from mmpipe.snapshots.view import TrainingView
from mmpipe.store.made import Made, calls_of, made_columns
from mmpipe.store.tables import base_of, path_of

PREDICTS = '_predict', '_vector'
"""Functions of `mmpipe.functions.predictions`; they are known by name, for here they are not imported."""


def predicted_fields(view: TrainingView) -> dict[str, list[str]]:
    """{field: the way from it to a column of `predict`, as `table.column`} of the fields that come from one.

    Args:
        view: that is to be frozen.
    """
    written: dict[tuple[str, str], str] = {}
    inputs: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for base in {path_of(base_of(table)): base_of(table) for table in view.sources.values()}.values():
        for made in _importable(base):
            at = (made.table, made.column)
            inputs[at] = list(made.inputs)
            run = _run_of(made.calls)
            if run is not None:
                written[at] = run
    found: dict[str, list[str]] = {}
    for name, spec in view.specs.items():
        run = _run_of(calls_of(spec.expression))
        if run is not None:
            found[name] = [f'predict(run={run!r})']
            continue
        starts = [(path, column) for path, columns in view.behind[name].items() for column in columns]
        way = _way(_owned(starts, inputs), inputs, written)
        if way is not None:
            found[name] = [f'{table}.{column}' for table, column in way] + [f'predict(run={written[way[-1]]!r})']
    return found


def refuse_predictions(view: TrainingView) -> None:
    """Refuse a field that comes from a column which a model of ours wrote.

    Raises:
        SnapshotError: one does; names field and columns.
    """
    for name, way in predicted_fields(view).items():
        raise SnapshotError(
            f"field '{name}' comes from predictions: {' <- '.join(way)}. A model trained on them would learn its own "
            f'mistakes. Name a column that people or sources filled, or pass allow_predictions=True where '
            f'pseudo-labels or features of a model are meant.'
        )


def _importable(base: Any) -> list[Made]:
    """The computed columns of a tree; none where the code of one cannot be imported, which `allow_stale` let pass."""
    try:
        return list(made_columns(base))
    except StoreError:
        return []


def _run_of(calls: Collection[tuple[Any, dict[str, Any]]]) -> str | None:
    for function, constants in calls:
        path = getattr(function, 'self_path', None) or ''
        if path.startswith('mmpipe.functions.predictions.') and path.rpartition('.')[2] in PREDICTS:
            return str(constants.get('run', '?'))
    return None


def _owned(starts: list[tuple[str, str]], known: dict[tuple[str, str], list[tuple[str, str]]]) -> list[tuple[str, str]]:
    """The columns under the table or view that declares them: a view inherits those of its base."""
    by_name: dict[str, list[tuple[str, str]]] = {}
    for at in known:
        by_name.setdefault(at[1], []).append(at)
    return [at if at in known else each for at in starts for each in ([at] if at in known else by_name.get(at[1], []))]


def _way(
    starts: list[tuple[str, str]],
    inputs: dict[tuple[str, str], list[tuple[str, str]]],
    written: dict[tuple[str, str], str],
) -> list[tuple[str, str]] | None:
    """The shortest way from some columns to one that was predicted, over those it is computed from."""
    ways = [[at] for at in starts]
    seen = set(starts)
    while ways:
        way = ways.pop(0)
        if way[-1] in written:
            return way
        for each in inputs.get(way[-1], ()):
            if each not in seen:
                seen.add(each)
                ways.append([*way, each])
    return None
