"""Rows of a source that are stored just as it has them: found by one statement of SQL and an `lstat` of each file."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np

from mmpipe.sources.fit import Key, Row, Target
from mmpipe.sources.origin import ORIGIN, Folders
from mmpipe.store import rows_with_keys
from mmpipe.store.plain import is_plain, plain_rows

PROBE_ROWS, SLICE_ROWS = 32, 32
SLOW_S = 0.0003  # per row: a local disk takes a hundredth of it, so only files on a network are worth a thread each


def changed_rows(
    table: Any, rows: Sequence[Row], target: Target, pool: ThreadPoolExecutor
) -> tuple[list[Row], list[Key]]:
    """The rows that are not stored just so, in order, and the keys of those among them that are stored at all.

    Whoever writes them looks at them again, as a whole: here a row in doubt is a changed one, and why is not asked.

    Args:
        table: Pixeltable table.
        rows: different keys each.
        target: what is known of the table.
        pool: threads, for files that take long to answer.
    """
    columns = [name for name in _names(row.values for row in rows) if name not in target.key]
    plain = [name for name in columns if is_plain(target.types[name])]
    media = _names(row.media for row in rows)
    members = [(ORIGIN, 'media', name, part) for name in media for part in ('path', 'stamp')]
    stored = plain_rows(table, [row.key for row in rows], plain, members=members)
    same_values = partial(_same_values, {name: i for i, name in enumerate(plain)})
    same_files = partial(_same_files, {name: len(plain) + 2 * i for i, name in enumerate(media)}, Folders())
    known = [(row, old) for row in rows if (old := stored.get(row.key)) is not None and same_values(row, old)]
    left = {row.key for (row, _), same in zip(known, _each(same_files, known, pool), strict=True) if same}
    others = [name for name in columns if name not in plain]
    if others and left:
        whole = rows_with_keys(table, list(left), others)
        left -= {row.key for row in rows if row.key in left and not _same_others(others, row, whole.get(row.key))}
    rest = [row for row in rows if row.key not in left]
    return rest, [row.key for row in rest if row.key in stored]


def is_same(stored: Any, value: Any) -> bool:
    """Whether a stored value is the one that a source gives.

    >>> is_same(np.zeros(2), np.zeros(2)), is_same(1.0, 1), is_same('a', None)
    (True, True, False)
    """
    if isinstance(stored, np.ndarray) or isinstance(value, np.ndarray):
        return np.array_equal(stored, value)
    return stored == value


def _names(given: Iterable[Mapping[str, Any]]) -> list[str]:
    """Every name that some mappings have, each once; in most sources all have the same."""
    return list(dict.fromkeys(name for names in dict.fromkeys(map(tuple, given)) for name in names))


def _same_values(places: Mapping[str, int], row: Row, stored: Sequence[Any]) -> bool:
    return all(stored[places[name]] == value for name, value in row.values.items() if name in places)


def _same_others(names: Sequence[str], row: Row, stored: Mapping[str, Any] | None) -> bool:
    return stored is not None and all(is_same(stored[name], row.values[name]) for name in names if name in row.values)


def _same_files(places: Mapping[str, int], folders: Folders, item: tuple[Row, Sequence[Any]]) -> bool:
    row, stored = item
    for name, file in row.media.items():
        path, stamp = stored[places[name]], stored[places[name] + 1]
        if file is None or path is None or stamp is None:
            if any(each is not None for each in (file, path, stamp)):
                return False
        elif not folders.hold(file, path, stamp, folders.downloads if name in row.downloaded else row.root):
            return False
    return True


def _each(function: Callable[[Any], bool], items: Sequence[Any], pool: ThreadPoolExecutor) -> list[bool]:
    """A function of every item; on many threads when the first ones take long."""
    started = time.monotonic()
    found = [function(item) for item in items[:PROBE_ROWS]]
    if time.monotonic() - started <= SLOW_S * len(found):
        return found + [function(item) for item in items[PROBE_ROWS:]]
    slices = [items[start : start + SLICE_ROWS] for start in range(PROBE_ROWS, len(items), SLICE_ROWS)]
    for part in pool.map(lambda part: [function(item) for item in part], slices):
        found += part
    return found
