"""What a source yields: one record per row to be, or a note of why a row cannot be read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True, kw_only=True)
class Record:
    """One row of a source, before its values are checked against the table.

    Args:
        place: where it comes from, for messages: 'items.csv line 7', or a file's path.
        values: column name to raw value; text from CSV is parsed by the type of its column.
        media: media column name to file; None where the row has no such file. A column that is left out keeps its file.
        root: directory that every media file has to lie in.
        text: whether the values are text, as from CSV, in which JSON and arrays are spelled out.
        urls: media column name to the URL of a file that is still to be downloaded; none when it is ingested.
        downloaded: media columns whose file lies in the project's media folder instead of below `root`.

    >>> Record(place='line 2', values={'key': 'mug'}, media={'photo': Path('mug.jpg')}, root=Path('.')).text
    False
    """

    place: str
    values: Mapping[str, Any]
    media: Mapping[str, Path | None] = field(default_factory=dict)
    root: Path
    text: bool = False
    urls: Mapping[str, str] = field(default_factory=dict)
    downloaded: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Bad:
    """One row of a source, or one file, that does not become a row of the table.

    Args:
        place: where it comes from, as in `Record`.
        reason: what is wrong with it, and the next move.
        key: its key, as far as it is known.
        column: the column at fault; '' for the whole row.
        path: the file at fault; '' when none is.

    >>> Bad(place='line 3', reason='names no file: fill it', column='photo').key
    ''
    """

    place: str
    reason: str
    key: str = ''
    column: str = ''
    path: str = ''


class Source(Protocol):
    """Anything that can be ingested. Bring your own: yield a `Record`, or a `Bad`, per row.

    >>> class Numbers:
    ...     name = 'numbers'
    ...     def total(self):
    ...         return 2
    ...     def records(self, *, key, media):
    ...         for x in range(2):
    ...             yield Record(place=f'number {x}', values={key[0]: str(x), 'x': x}, root=Path('.'))
    >>> [record.values for record in Numbers().records(key=['key'], media={})]
    [{'key': '0', 'x': 0}, {'key': '1', 'x': 1}]
    """

    @property
    def name(self) -> str:
        """Name for messages and for the quarantine table."""

    def total(self) -> int | None:
        """Number of records when that is cheap to know, for the progress line."""

    def records(self, *, key: list[str], media: Mapping[str, str]) -> Iterator[Record | Bad]:
        """The rows.

        Args:
            key: names of the table's primary key columns.
            media: the table's media columns, and image, video, audio or document for each.

        Returns:
            One item per row, read as they are asked for.

        Raises:
            SourceError: the source cannot be read at all.
        """
