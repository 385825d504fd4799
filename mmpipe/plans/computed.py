"""Which cells a command computed: the functions count themselves, the schema says which columns they fill."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmpipe.store import column_functions


def cells_by_column(tables: Any, counts: Mapping[str, int]) -> dict[str, int]:
    """Counted function calls as cells of columns.

    Args:
        tables: base class made by `pxt.model_base()`.
        counts: function name to cells, as `mmpipe.functions.counts()` gives them.

    Returns:
        'table.column' to cells, for every computed column whose function counts itself. Columns that share a function
        share a key, 'items.photo_vector + frames.vector', since a call does not know for which of them it is.
    """
    columns: dict[str, list[str]] = {}
    for column, function in column_functions(tables).items():
        columns.setdefault(function, []).append(column)
    return {' + '.join(names): counts.get(function, 0) for function, names in columns.items()}
