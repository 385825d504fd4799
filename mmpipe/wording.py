"""Counts in sentences, and tables of text."""

from __future__ import annotations

from collections.abc import Sequence


def how_many(count: int, one: str, several: str = '') -> str:
    """A count with its noun.

    Args:
        count: how many there are.
        one: the noun for one of them.
        several: the noun for any other number; `one` with an s when left out.

    >>> how_many(1, 'cell'), how_many(0, 'cell'), how_many(2000, 'entry', 'entries')
    ('1 cell', '0 cells', '2,000 entries')
    """
    return f'{count:,} {one if count == 1 else several or one + "s"}'


def table_of(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows in columns, as wide as what is longest in them.

    >>> print(table_of(['run', 'loss'], [['shop/0001', '0.5']]))
    run        loss
    shop/0001  0.5
    """
    lines = [list(head), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return '\n'.join(
        '  '.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )
