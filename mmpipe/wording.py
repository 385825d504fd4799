"""Counts in sentences."""

from __future__ import annotations


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
