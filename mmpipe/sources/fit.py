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


@dataclass(kw_only=True)
class Row:
    """A record whose values fit the table. Not frozen, since that takes longer to make, and there is one per row."""

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


class Fit:
    """Fits the records of one source to a table; what is the same for all of them is asked once.

    Args:
        target: the table.

    Attributes:
        seen: keys so far, and the place of each.
    """

    def __init__(self, target: Target) -> None:
        self.target = target
        self.seen: dict[Key, str] = {}
        self._misplaced: dict[tuple[tuple[str, ...], tuple[str, ...]], tuple[str, str] | None] = {}
        self._roots: dict[Path, Path] = {}

    def __call__(self, record: Record) -> Row | Bad:
        """A record as a row of the table, or why it is none.

        Raises:
            SourceError: the first row of a source has a column that the table lacks; a later one is `Bad`.
        """
        target, given = self.target, record.values

        def bad(column: str, reason: str) -> Bad:
            text = '/'.join(str(given.get(name) or '') for name in target.key)[:KEY_LENGTH]
            return Bad(place=record.place, key=text, column=column, reason=reason)

        misplaced = self._first_misplaced(record)
        if misplaced is not None:
            if not self.seen:
                raise SourceError(f'{record.place}: column {misplaced[0]} {misplaced[1]}')
            return bad(*misplaced)
        for name in target.key:
            if given.get(name) in (None, ''):
                return bad(name, 'is empty, and it is the key of the row: fill it')
        values: dict[str, Any] = {}
        for name, value in given.items():
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
        key = tuple([values[name] for name in target.key])
        if key in self.seen:
            return bad(target.key[0], f'has the key of {self.seen[key]}: keys are unique, change one')
        self.seen[key] = record.place
        return Row(
            key=key, place=record.place, values=values, media=dict(record.media), root=self._root(record.root),
            downloaded=record.downloaded,
        )  # fmt: skip

    def _first_misplaced(self, record: Record) -> tuple[str, str] | None:
        """Name of the first column that cannot be filled, and why; the same for all records with the same names."""
        names = tuple(record.values), tuple(record.media)
        if names not in self._misplaced:
            reasons = ((name, _misplaced(name, record, self.target)) for name in sorted({*names[0], *names[1]}))
            self._misplaced[names] = next(((name, reason) for name, reason in reasons if reason), None)
        return self._misplaced[names]

    def _root(self, root: Path) -> Path:
        if root not in self._roots:
            self._roots[root] = root.resolve()
        return self._roots[root]


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
