"""What the fields of a snapshot hold: settled from types, first values and the one before; vocabularies only grow."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from mmpipe.errors import LabelError
from mmpipe.shards import Field, Snapshot
from mmpipe.snapshots.field import FieldSpec, resolve
from mmpipe.snapshots.read import key_expressions, key_of, read_rows
from mmpipe.snapshots.view import TrainingView, pooled_path
from mmpipe.store import Rowid, narrowed, pages
from mmpipe.store.expressions import aggregated


def describe(view: TrainingView, previous: Snapshot | None) -> tuple[dict[str, FieldSpec], list[Field]]:
    """Settle each field's kind, shape and dtype, from its type or from the first value there is."""
    specs, described = {}, []
    for name, spec in view.specs.items():
        example = None
        kind = spec.expression.col_type
        before = previous.fields.get(name) if previous is not None else None
        if kind.is_array_type() and (kind.shape is None or any(n is None for n in kind.shape)):
            example = _example(view, spec)
            if example is None and before is not None and before.kind in ('tensor', 'ragged'):
                shape = before.shape if before.kind == 'tensor' else (0, *before.shape)
                example = np.zeros(shape, dtype=before.dtype)
        specs[name], item = resolve(name, spec, example)
        if before is not None and item.vocabulary is not None and spec.vocabulary is None:
            item = replace(item, vocabulary=before.vocabulary or ())
        described.append(item)
    return specs, described


def _example(view: TrainingView, spec: FieldSpec) -> Any:
    """The first value of an array expression that is not null; of a pooled one, a value that is aggregated."""
    table = view.pooled[pooled_path(view.pooled, spec)] if spec.pooled else view.table
    value = aggregated(spec.expression) if spec.pooled else spec.expression
    present = narrowed(table if spec.pooled else view.query, table, value != None)  # noqa: E711 (Pixeltable overloads it)
    found = present.select(value=value).limit(1).collect()
    return found[0]['value'] if len(found) else None


def written_anew(previous: Snapshot | None, described: Sequence[Field]) -> frozenset[str]:
    """Names of the fields of which no stored value can stay: new ones, and those whose values have another form now.

    A vocabulary that grew at its end leaves the form as it is.
    """
    if previous is None:
        return frozenset()
    anew = set()
    for item in described:
        old = previous.fields.get(item.name)
        if (
            old is None
            or (old.kind, old.dtype, old.shape) != (item.kind, item.dtype, item.shape)
            or (item.vocabulary or ())[: len(old.vocabulary or ())] != (old.vocabulary or ())
        ):
            anew.add(item.name)
    return frozenset(anew)


def grow_vocabularies(
    view: TrainingView,
    specs: Mapping[str, FieldSpec],
    described: list[Field],
    rows: Sequence[tuple[Sequence[Rowid], Collection[str]]],
    page_rows: int,
) -> list[Field]:
    """Append the words that new rows bring: those of the training split first, each group in alphabetical order.

    Args:
        view: the training view.
        specs: its fields, resolved.
        described: the fields as they are stored so far.
        rows: rowids, and the fields that may be new in them.
        page_rows: rows read at a time for all fields; of words alone, more are.

    Raises:
        LabelError: a value that is no string, or no list of strings; names field and row.
    """
    open_fields = [f for f in described if f.vocabulary is not None and specs[f.name].vocabulary is None]
    seen: dict[str, dict[bool, set[str]]] = {f.name: {True: set(), False: set()} for f in open_fields}
    keys = key_expressions(view)
    for rowids, names in rows:
        fields = [item for item in open_fields if item.name in names]
        if not fields:
            continue
        expressions = {**keys, **{f'v{i}': specs[item.name].expression for i, item in enumerate(fields)}}
        if view.split is not None:
            expressions['mmpipe_split'] = view.split
        for page in pages(rowids, page_rows * 16):
            for rowid, row in read_rows(view, page, expressions).items():
                for i, item in enumerate(fields):
                    words = _words(item, row[f'v{i}'], key_of(rowid, row, keys))
                    seen[item.name][row.get('mmpipe_split') == 'train'].update(words)
    return [
        f.grown(sorted(seen[f.name][True])).grown(sorted(seen[f.name][False])) if f.name in seen else f
        for f in described
    ]


def _words(item: Field, value: Any, key: str) -> list[str]:
    words = [] if value is None else [value] if item.kind == 'label' else value
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        wanted = 'a string' if item.kind == 'label' else 'a list of strings'
        raise LabelError(
            f"field '{item.name}' holds {value!r:.60} in row '{key}', and it wants {wanted}. Correct the row."
        )
    return words
