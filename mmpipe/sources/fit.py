"""Fit a record to the table: every value as its column wants it, the key found, or the reason why it is no row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmpipe.errors import BadInputError, SourceError
from mmpipe.sources.origin import ORIGIN
from mmpipe.sources.readers import KEY_LENGTH
from mmpipe.sources.record import Bad, Record
from mmpipe.sources.values import parse

Key = tuple[Any, ...]


@dataclass(frozen=True, kw_only=True)
class Row:
    """A record whose values fit the table."""

    key: Key
    place: str
    values: dict[str, Any]
    media: dict[str, Path | None]
    root: Path
    downloaded: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        """The key as text, for messages."""
        return '/'.join(str(part) for part in self.key)


@dataclass(frozen=True, kw_only=True)
class Target:
    """What rows have to fit.

    Args:
        path: catalog path of the table.
        key: names of its primary key columns.
        types: its stored, non-computed columns with their Pixeltable types.
        media: its media columns, and image, video, audio or document for each.
        computed: names of its computed columns, for messages.
        source: name of the source, for the `origin` of its rows.
    """

    path: str
    key: list[str]
    types: Mapping[str, Any]
    media: Mapping[str, str]
    computed: frozenset[str] = frozenset()
    source: str = ''


def fit(record: Record, target: Target, seen: dict[Key, str]) -> Row | Bad:
    """A record as a row of the table, or why it is none.

    Args:
        record: one row of a source.
        target: the table.
        seen: keys of this source so far, and the place of each; the record's own is added.

    Raises:
        SourceError: the first row of a source has a column that the table lacks; a later one is `Bad`.
    """
    key_text = '/'.join(str(record.values.get(name) or '') for name in target.key)[:KEY_LENGTH]

    def bad(column: str, reason: str) -> Bad:
        return Bad(place=record.place, key=key_text, column=column, reason=reason)

    given = {**record.values, **record.media}
    for name in sorted(given):
        reason = _misplaced(name, record, target)
        if reason and not seen:
            raise SourceError(f'{record.place}: column {name} {reason}')
        if reason:
            return bad(name, reason)
    lacking = [name for name in target.key if record.values.get(name) in (None, '')]
    if lacking:
        return bad(lacking[0], 'is empty, and it is the key of the row: fill it')
    values: dict[str, Any] = {}
    for name, value in record.values.items():
        try:
            values[name] = parse(value, target.types[name], text=record.text)
        except BadInputError as error:
            return bad(name, str(error))
    for name in target.key:
        if isinstance(values[name], str) and len(values[name]) > KEY_LENGTH:
            return bad(
                name, f'is a key of {len(values[name])} characters, and only the first 256 are compared: shorten it'
            )
    for name, file in record.media.items():
        if file is None and not target.types[name].nullable:
            return bad(
                name, 'names no file, and the column may not be null: fill it, or declare the column as `| None`'
            )
    key = tuple(values[name] for name in target.key)
    if key in seen:
        return bad(target.key[0], f'has the key of {seen[key]}: keys are unique, change one')
    seen[key] = record.place
    return Row(
        key=key, place=record.place, values=values, media=dict(record.media), root=record.root.resolve(),
        downloaded=record.downloaded,
    )  # fmt: skip


def absent(row: Row, target: Target) -> str | None:
    """The first column that a new row needs and this one does not mention."""
    given = row.values.keys() | row.media.keys()
    return next((name for name, kind in target.types.items() if not kind.nullable and name not in given), None)


def _misplaced(name: str, record: Record, target: Target) -> str:
    """Why a column cannot be filled from a source; '' when it can."""
    if name == ORIGIN:
        return f"is written by mmpipe itself in '{target.path}': rename or drop it in the source"
    if name in target.computed:
        return f"is computed in '{target.path}', not ingested: drop it from the source"
    if name not in target.types:
        have = ', '.join(column for column in target.types if column != ORIGIN)
        return f"is not in '{target.path}', which has {have}: rename or drop it in the source"
    if name in target.media and name in record.values:
        return f"of '{target.path}' holds files: a Source gives them in Record.media"
    if name not in target.media and name in record.media:
        return f"of '{target.path}' holds no files: a Source gives its value in Record.values"
    return ''
