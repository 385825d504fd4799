"""Rows that an earlier ingest of a source brought in, and that the source no longer has."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Literal

from mmpipe.errors import SourceError
from mmpipe.sources.fit import Key, Target
from mmpipe.sources.origin import ORIGIN
from mmpipe.sources.readers import KEY_LENGTH
from mmpipe.sources.record import Bad, Source
from mmpipe.store import delete_rows, keys_where

Prune = bool | Literal['all']
CHUNK_ROWS = 1024
SHOWN = 3


def whole_name(source: Source) -> str:
    """Name of the source, or of the one that it is a part of: what a row's `origin` says."""
    return getattr(source, 'part_of', None) or source.name


def gone_rows(table: Any, source: Source, seen: Collection[Key], bad: Sequence[Bad]) -> tuple[list[Key], int]:
    """Keys of the rows that are gone from a source that was read to its end, and how many of its rows are stored.

    A row that the source has and that is bad is not gone. A part of a source tells nothing of the rest.
    """
    if getattr(source, 'part_of', None) is not None:
        return [], 0
    known = keys_where(table, ORIGIN, 'source', source.name)
    kept = {entry.key for entry in bad}
    return [key for key in known if key not in seen and _text(key)[:KEY_LENGTH] not in kept], len(known)


def prune_rows(
    table: Any, target: Target, source: Source, gone: Sequence[Key], known: int, bad: Sequence[Bad], prune: Prune
) -> int:
    """Delete rows that are gone, and their rows in views; returns how many.

    Raises:
        SourceError: it would be more than half of what the source brought in before, or a row that cannot be read may
            be one of them, or the source is a part of another; nothing was deleted.
    """
    if getattr(source, 'part_of', None) is not None:
        raise SourceError(f"'{source.name}' is a part of a source, and cannot tell what is gone: prune with the whole")
    if not gone:
        return 0
    which = listed(first_keys(gone), len(gone))
    said = f"'{target.path}': {len(gone)} of {known} rows from '{source.name}' are gone from it ({which})"
    if prune != 'all' and 2 * len(gone) > known:
        raise SourceError(
            f'{said}, which is more than half, so none was removed; all else was ingested. Check the source; if it is '
            f"right, prune='all' (`mmpipe ingest --prune-all`) removes them."
        )
    # A key that is not text may be written in another way in a row that is bad.
    exact = all(target.types[name].is_string_type() for name in target.key)
    nameless = next((entry for entry in bad if not entry.key or not exact), None)
    if prune != 'all' and nameless is not None:
        raise SourceError(
            f'{said}, and {nameless.place} is bad and may be one of them, so none was removed; all else was ingested. '
            f"Mend it, or remove them all the same with prune='all' (`mmpipe ingest --prune-all`)."
        )
    return sum(delete_rows(table, gone[start : start + CHUNK_ROWS]) for start in range(0, len(gone), CHUNK_ROWS))


def first_keys(keys: Sequence[Key]) -> tuple[str, ...]:
    """The first few keys as text."""
    return tuple(_text(key) for key in keys[:SHOWN])


def listed(keys: Sequence[str], count: int) -> str:
    """The first of some keys, and how many more there are.

    >>> listed(['a', 'b'], 5)
    "'a', 'b', 3 more"
    """
    more = [f'{count - len(keys)} more'] if count > len(keys) else []
    return ', '.join([*(f"'{key}'" for key in keys), *more])


def _text(key: Key) -> str:
    return '/'.join(str(part) for part in key)
