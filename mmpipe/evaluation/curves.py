"""Losses and metrics of a run over its steps."""

from __future__ import annotations

from mmpipe.runs import Run


def curves_of(run: Run) -> dict[str, tuple[tuple[int, float], ...]]:
    """What metrics.jsonl says of whole epochs.

    Args:
        run: trained or being trained.

    Returns:
        {'task loss (train)', 'task loss (val)', 'task metric (val)', ...: ((step, value), ...)}, without what was
        not defined.

    >>> from mmpipe.train.example import example_run
    >>> sorted(curves_of(example_run()))
    ['kind loss (train)']
    """
    found: dict[str, list[tuple[int, float]]] = {}
    for line in run.history():
        for task, loss in (line.get('train') or {}).items():
            found.setdefault(f'{task} loss (train)', []).append((line['step'], loss))
        for task, scores in (line.get('val') or {}).items():
            for name, value in scores.items():
                if name != 'n':
                    found.setdefault(f'{task} {name} (val)', []).append((line['step'], value))
    present = {name: tuple(pair for pair in pairs if isinstance(pair[1], int | float)) for name, pairs in found.items()}
    return {name: pairs for name, pairs in present.items() if pairs}
