"""Labels of row ids as spans: rows are inserted in runs, so a few spans tell the label of a million rows."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator

Span = tuple[int, int, int]
"""First row id, last row id, label."""


class Spans:
    """A label for some of the row ids.

    Args:
        spans: sorted, disjoint (first, last, label).

    >>> made = Spans()
    >>> made.put(range(0, 10), 0); made.put([3, 4, 7], 1); made.remove([5])
    >>> list(made)
    [(0, 2, 0), (3, 4, 1), (6, 6, 0), (7, 7, 1), (8, 9, 0)]
    >>> made.label(4), made.label(5)
    (1, None)
    """

    def __init__(self, spans: Iterable[Span] = ()) -> None:
        self._spans = [(int(first), int(last), int(label)) for first, last, label in spans]

    def __iter__(self) -> Iterator[Span]:
        return iter(self._spans)

    def __len__(self) -> int:
        return len(self._spans)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Spans) and self._spans == other._spans

    def label(self, row: int) -> int | None:
        """The label of a row id; None where it has none."""
        at = bisect_right(self._spans, row, key=lambda span: span[0]) - 1
        return self._spans[at][2] if at >= 0 and row <= self._spans[at][1] else None

    def put(self, rows: Iterable[int], label: int) -> None:
        """Give row ids a label, whatever they had."""
        new = [(first, last, label) for first, last in _runs(rows)]
        self._spans = _joined([*_without(self._spans, new), *new])

    def fill(self, rows: Iterable[int], label: int) -> None:
        """Give row ids a label where they have none."""
        new = [(first, last, label) for first, last in _runs(rows)]
        self._spans = _joined([*self._spans, *_without(new, self._spans)])

    def remove(self, rows: Iterable[int]) -> None:
        """Take the label from row ids."""
        self._spans = _without(self._spans, [(first, last, 0) for first, last in _runs(rows)])


def _runs(rows: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Row ids as runs of consecutive ones."""
    if isinstance(rows, range) and rows.step == 1:
        if rows:
            yield rows[0], rows[-1]
        return
    first = last = None
    for row in sorted(set(rows)):
        if last is not None and row == last + 1:
            last = row
            continue
        if first is not None and last is not None:
            yield first, last
        first = last = row
    if first is not None and last is not None:
        yield first, last


def _without(spans: list[Span], cut: list[Span]) -> list[Span]:
    """Spans less the row ids of others; both sorted and disjoint."""
    left: list[Span] = []
    at = 0
    for first, last, label in spans:
        while at < len(cut) and cut[at][1] < first:
            at += 1
        here = at
        while here < len(cut) and cut[here][0] <= last:
            if first < cut[here][0]:
                left.append((first, cut[here][0] - 1, label))
            first = cut[here][1] + 1
            here += 1
        if first <= last:
            left.append((first, last, label))
    return left


def _joined(spans: list[Span]) -> list[Span]:
    """Disjoint spans in order, neighbours with one label as one."""
    joined: list[Span] = []
    for first, last, label in sorted(spans):
        if joined and joined[-1][2] == label and joined[-1][1] + 1 == first:
            joined[-1] = (joined[-1][0], last, label)
        else:
            joined.append((first, last, label))
    return joined
