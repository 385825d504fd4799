"""Which checkpoints stay."""

from __future__ import annotations

from collections.abc import Mapping

LOWER_IS_BETTER = ('loss', 'mae', 'rmse')


def which_to_keep(
    scores: Mapping[int, float | None], *, newest: int = 1, every: int | None = None, best: bool = False
) -> set[int]:
    """The steps whose checkpoints are not deleted.

    Args:
        scores: {step of a complete checkpoint: how good it is, the higher the better, or None where that is not known}.
        newest: so many of the last ones, at least one.
        every: those of steps that this divides, too.
        best: the best one, too; of several the newest.

    >>> sorted(which_to_keep({10: 0.5, 20: 0.7, 30: 0.6, 40: None}, best=True))
    [20, 40]
    >>> sorted(which_to_keep(dict.fromkeys(range(10, 70, 10)), newest=2, every=30))
    [30, 50, 60]
    """
    steps = sorted(scores)
    kept = set(steps[-max(newest, 1) :])
    if every is not None:
        kept |= {step for step in steps if step % every == 0}
    known = [(score, step) for step, score in scores.items() if score is not None]
    if best and known:
        kept.add(max(known)[1])
    return kept


def score_of(metrics: Mapping[str, Mapping[str, float | None]], which: str) -> float | None:
    """How good metrics are, the higher the better; None where they do not say.

    Args:
        metrics: {task: {metric: value}}.
        which: 'task.metric'; losses and errors count as better where they are lower. With a `-` before it, so does any
            other.

    >>> score_of({'kind': {'accuracy': 0.9}}, 'kind.accuracy'), score_of({'price': {'rmse': 2.0}}, 'price.rmse')
    (0.9, -2.0)
    >>> score_of({'kind': {'ece': 0.1}}, '-kind.ece'), score_of({}, 'kind.accuracy')
    (-0.1, None)
    """
    task, _, metric = which.removeprefix('-').rpartition('.')
    value = metrics.get(task, {}).get(metric)
    if value is None:
        return None
    return -value if which.startswith('-') or metric in LOWER_IS_BETTER else value
