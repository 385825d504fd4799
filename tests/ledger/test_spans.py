"""Spans of row ids hold what a dict would."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from mmpipe.ledger.spans import Spans

rows = st.one_of(
    st.lists(st.integers(0, 30)),
    st.builds(lambda first, length: range(first, first + length), st.integers(0, 30), st.integers(0, 10)),
)
steps = st.lists(st.tuples(st.sampled_from(['put', 'fill', 'remove']), rows, st.integers(0, 2)), max_size=12)


@given(steps)
def test_spans_hold_what_a_dict_would(steps) -> None:
    spans, oracle = Spans(), {}
    for action, rows, label in steps:
        if action == 'put':
            spans.put(rows, label)
            oracle |= dict.fromkeys(rows, label)
        elif action == 'fill':
            spans.fill(rows, label)
            oracle = dict.fromkeys(rows, label) | oracle
        else:
            spans.remove(rows)
            oracle = {row: kept for row, kept in oracle.items() if row not in set(rows)}
        assert {row: spans.label(row) for row in range(-1, 45) if spans.label(row) is not None} == oracle
        held = list(spans)
        assert held == sorted(held)
        assert all(first <= last for first, last, _ in held)
        # As few as possible: neighbours with one label are one.
        assert all(a[1] + 1 < b[0] or a[2] != b[2] for a, b in pairwise(held))
    assert Spans(list(spans)) == spans
