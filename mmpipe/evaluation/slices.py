"""Metrics of parts of the rows, and which parts differ from the whole by more than chance.

A part of n rows is compared with what n rows drawn at random from the whole give: the share of 2,000 random parts (more
where many parts are compared) that lie at least as far from the whole is its p value (a permutation test: Good,
Permutation Tests, 2000; with the observed part counted among them, Phipson, Smyth 2010). That holds for small parts and
for parts that are all right, too, where an interval says nothing. Where rows come in groups, a random part is made of
whole groups, the last of them cut, which is right for parts that do not cut groups, and careful for others.

One metric per task is compared: accuracy, micro F1, mean absolute error, or else the loss. Of all parts of a report
that are compared, those marked hold at most 5 % of false ones in the mean (Benjamini, Hochberg: Controlling the False
Discovery Rate, 1995). Parts of less than 10 rows are not compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mmpipe.data.loader import DataLoader
from mmpipe.errors import ConfigError, DataError
from mmpipe.evaluation.bootstrap import Estimate, estimates, generator, intervals, numbered
from mmpipe.evaluation.outputs import Labelled
from mmpipe.evaluation.weighted import known_kind, weighted
from mmpipe.train.tasks import Classification, Multilabel, Regression

FEW = 10  # rows, below which a part is marked and not compared
PARTS = 30  # of one column that are told apart; the rest is one part
BINS = 4  # of a number that takes more values than PARTS
FALSE_SHARE = 0.05
RANDOM_PARTS = 2000

By = str | Callable[[Any], Sequence[Any]] | np.ndarray | Sequence[Any]


@dataclass(frozen=True, kw_only=True)
class Slice:
    """A part of the rows that have a task's label.

    Args:
        by: what the rows were parted by.
        name: which part.
        task: whose metrics.
        n: rows.
        metrics: of these rows, with intervals from resampling these rows.
        few: fewer than 10 rows.
        compared: the metric that is compared with the whole.
        difference: of it from the whole; None where either is not defined.
        p: share of random parts as far from the whole; None where it was not compared.
        differs: it is marked: among the marked ones of the report, at most 5 % are false in the mean.
    """

    by: str
    name: str
    task: str
    n: int
    metrics: Mapping[str, Estimate]
    few: bool
    compared: str
    difference: float | None
    p: float | None = None
    differs: bool = False


def columns_of(by: Any, loader: Any, rows: int) -> dict[str, list[Any]]:
    """What to part the rows by: for each name a value per row; a list where a row is in several parts.

    Args:
        by: a name, several of them, or {name: ...}. Each a field of the snapshot of kind label, labels, string or
            scalar; 'split'; a function of `loader.rows`; or values, one per row of `loader.rows`.
        loader: of the split.
        rows: how many there are.

    Raises:
        ConfigError: values of another number, or names without an `mm.DataLoader`.
        DataError: no such field, or of another kind.

    >>> from mmpipe.data.collate import example_rows
    >>> columns_of(['kind', 'split'], DataLoader(example_rows(), batch_size=2, device='cpu'), 2)
    {'kind': ['dog', 'cat'], 'split': ['train', 'train']}
    """
    return {name: _column(name, what, loader, rows) for name, what in _named(by).items()}


def parts_of(values: Sequence[Any]) -> dict[str, np.ndarray]:
    """Parts of rows by the value that they have.

    Words and truth values: a part each, the largest first; of more than 30, the smallest are one part. Numbers (to six
    digits) in rising order; of more than 30 values: four parts of about as many rows. Missing ones are a part by
    themselves.

    Args:
        values: one per row; None where missing; a list where a row is in several parts.

    Returns:
        {name of the part: bool `[n]`}

    >>> {name: mask.tolist() for name, mask in parts_of(['red', 'blue', 'red', None]).items()}
    {'red': [True, False, True, False], 'blue': [False, True, False, False], '(missing)': [False, False, False, True]}
    """
    several = any(isinstance(value, list | tuple | set | frozenset) for value in values)
    present = [value for value in values if value is not None]
    numbers = not several and present and all(isinstance(v, int | float) and not isinstance(v, bool) for v in present)
    if numbers and len(set(present)) > PARTS:
        return _binned(values)
    held: list[set[str]] = []
    for value in values:
        inside = value if isinstance(value, list | tuple | set | frozenset) else () if value is None else (value,)
        held.append({_word(each) for each in inside})
    counts: dict[str, int] = {}
    for words in held:
        for word in sorted(words):
            counts[word] = counts.get(word, 0) + 1
    if numbers:
        names = [_word(value) for value in sorted(set(present))]
    else:
        names = sorted(counts, key=lambda word: (-counts[word], word))
    kept = names if len(names) <= PARTS else names[: PARTS - 1]
    found = {name: np.array([name in words for words in held], dtype=bool) for name in kept}
    if len(kept) < len(names):
        rest = set(names[len(kept) :])
        found[f'(others: {len(rest):,} values)'] = np.array([bool(words & rest) for words in held], dtype=bool)
    missing = np.array([value is None or (several and not words) for value, words in zip(values, held, strict=True)])
    if missing.any():
        name = '(none)' if several else '(missing)'
        found[name] = missing.astype(bool) | found.get(name, False)  # somebody may have written that word
    return found


def slices_of(
    found: Labelled, by: str, parts: Mapping[str, np.ndarray], groups: np.ndarray, *, times: int, seed: int
) -> list[Slice]:
    """Metrics of each part for one task; p values and marks come from `compared`.

    Args:
        found: labelled rows, at least one.
        by: what the rows were parted by.
        parts: {name: bool `[N]` over all rows}.
        groups: of all rows, `[N]`.
        times: resamples; 0 for no intervals.
        seed: of random numbers.
    """
    name = compared_metric(found)
    whole = _of(found, name)
    slices = []
    for part, mask in parts.items():
        some = found.take(mask[found.rows])
        if len(some) == 0:
            continue
        measure = weighted(some)
        draw = generator(seed, found.task.name, by, part)
        between = intervals(measure, numbered(groups[some.rows]), times=times, draw=draw)
        values = {key: None if np.isnan(v[0]) else float(v[0]) for key, v in measure(np.ones((1, len(some)))).items()}
        here = values.get(name)
        slices.append(
            Slice(
                by=by,
                name=part,
                task=found.task.name,
                n=len(some),
                metrics=estimates(dict(values), between),
                few=len(some) < FEW,
                compared=name,
                difference=None if here is None or whole is None else here - whole,
            )
        )
    return slices


def compared(
    slices: Sequence[Slice], found: Mapping[str, Labelled], groups: np.ndarray, *, seed: int
) -> tuple[Slice, ...]:
    """The slices of a report with p values, and with marks at those that differ.

    Args:
        slices: of any tasks.
        found: labelled rows by task.
        groups: of all rows, `[N]`.
        seed: of random numbers.
    """
    testable = [
        i for i, each in enumerate(slices)
        if not each.few and each.difference is not None and each.n < len(found[each.task])
    ]  # fmt: skip
    # The smallest p value has to be able to pass for one of all.
    times = max(RANDOM_PARTS, int(2 * len(testable) / FALSE_SHARE))
    p = np.ones(len(slices))
    for task in {slices[i].task for i in testable}:
        mine = [i for i in testable if slices[i].task == task]
        sizes = np.array([slices[i].n for i in mine])
        differences = np.array([slices[i].difference for i in mine], dtype=np.float64)
        draw = generator(seed, task, 'parts')
        p[mine] = permutation_p(found[task], groups, sizes, differences, times=times, draw=draw)
    marked = set(np.array(testable)[discoveries(p[testable])].tolist()) if testable else set()
    return tuple(
        replace(each, p=float(p[i]), differs=i in marked) if i in testable else each for i, each in enumerate(slices)
    )


def permutation_p(
    found: Labelled,
    groups: np.ndarray,
    sizes: np.ndarray,
    differences: np.ndarray,
    *,
    times: int,
    draw: np.random.Generator,
) -> np.ndarray:
    """Share of random parts of some size that are at least as far from the whole.

    Args:
        found: labelled rows.
        groups: of all rows, `[N]`.
        sizes: int `[k]`, rows of the parts.
        differences: `[k]` of the compared metric from the whole.
        times: how many random parts.
        draw: random numbers.

    Returns:
        p values `[k]`.
    """
    upper, lower, final = _sums(found)
    whole = final(upper.sum() / lower.sum()) if lower.sum() else 0.0
    group = numbered(groups[found.rows])
    order = np.argsort(group, kind='stable')
    counts = np.bincount(group)
    alone = len(counts) == len(found)
    beyond = np.zeros(len(sizes), dtype=np.int64)
    limit = np.abs(differences) - 1e-9 * np.maximum(np.abs(differences), abs(whole))  # equal up to rounding counts
    longest = int(sizes.max())
    for _ in range(times):
        if alone:
            taken = draw.permutation(len(found))
        else:
            shuffled = draw.permutation(len(counts))
            place = np.empty(len(counts), dtype=np.int64)
            place[shuffled] = np.arange(len(counts))
            taken = order[np.argsort(place[group[order]], kind='stable')]
        taken = taken[:longest]
        above, below = upper[taken].cumsum()[sizes - 1], lower[taken].cumsum()[sizes - 1]
        value = final(np.divide(above, below, out=np.zeros(len(sizes)), where=below > 0))
        beyond += np.abs(value - whole) >= limit
    return (1 + beyond) / (1 + times)


def discoveries(p: np.ndarray, *, share: float = FALSE_SHARE) -> np.ndarray:
    """Which of several tests to believe, so that of those believed at most `share` are false in the mean.

    Those with the k smallest p values, for the largest k at which the k-th of them is at most `share * k / m`
    (Benjamini, Hochberg 1995, procedure 1).

    Args:
        p: p values `[m]`.
        share: of false ones.

    Returns:
        bool `[m]`.

    >>> discoveries(np.array([0.01, 0.04, 0.9, 0.02])).tolist()
    [True, False, False, True]
    """
    order = np.argsort(p, kind='stable')
    passing = np.flatnonzero(p[order] <= share * np.arange(1, len(p) + 1) / max(len(p), 1))
    result = np.zeros(len(p), dtype=bool)
    result[order[: passing[-1] + 1 if len(passing) else 0]] = True
    return result


def compared_metric(found: Labelled) -> str:
    """The metric of a task by which parts are compared with the whole."""
    names: dict[Any, str] = {Classification: 'accuracy', Multilabel: 'micro_f1', Regression: 'mae'}
    return names.get(known_kind(found.task), 'loss')


def _sums(found: Labelled) -> tuple[np.ndarray, np.ndarray, Callable[[Any], Any]]:
    """The compared metric as a ratio of sums over rows: (numerators, denominators, what to make of the ratio)."""
    ones = np.ones(len(found))
    name = compared_metric(found)
    if name == 'accuracy':
        return (found.output.argmax(axis=1) == found.target).astype(np.float64), ones, lambda ratio: ratio
    if name == 'micro_f1':
        predicted, target = found.output > 0, found.target > 0
        total = predicted.sum(axis=1) + target.sum(axis=1)
        return 2.0 * (predicted & target).sum(axis=1), total.astype(np.float64), lambda ratio: ratio
    if name == 'mae':
        return np.abs(found.output.astype(np.float64) - found.target), ones, lambda ratio: ratio
    return found.loss.astype(np.float64), ones, lambda ratio: ratio


def _of(found: Labelled, name: str) -> float | None:
    value = weighted(found)(np.ones((1, len(found))))[name][0]
    return None if np.isnan(value) else float(value)


def _named(by: Any) -> dict[str, Any]:
    if isinstance(by, Mapping):
        return dict(by)
    several = [by] if isinstance(by, str) or callable(by) else list(by)
    named = {}
    for what in several:
        if isinstance(what, str):
            named[what] = what
        elif callable(what):
            named[getattr(what, '__name__', type(what).__name__)] = what
        else:
            raise ConfigError(
                f'by= holds a {type(what).__name__}: give names of fields, functions of the rows, or {{name: values}}, '
                f"as in by={{'age': ages}}."
            )
    return named


def _column(name: str, what: Any, loader: Any, rows: int) -> list[Any]:
    known = isinstance(loader, DataLoader)
    if isinstance(what, str) or callable(what):
        if not known:
            raise ConfigError(f'by={name!r} needs an mm.DataLoader, whose rows are known; or give {{name: values}}.')
        values = _field(what, loader.rows) if isinstance(what, str) else what(loader.rows)
    else:
        values = what
    listed = values.tolist() if isinstance(values, np.ndarray) else list(values)
    if len(listed) != rows:
        raise ConfigError(
            f'by={name!r} gives {len(listed):,} values for {rows:,} rows: one per row, in the order of '
            f'{"loader.rows" if known else "the batches"}, is meant.'
        )
    return [_missing_as_none(value) for value in listed]


def _field(name: str, rows: Any) -> Any:
    if name == 'split' and name not in rows.fields:
        return rows.system('_split')
    if name in rows.fields and rows.fields[name].kind == 'labels':
        words = rows.fields[name].vocabulary or ()
        values, valid = rows.read(name)
        return [[words[c] for c in np.flatnonzero(v)] if ok else None for v, ok in zip(values, valid, strict=True)]
    if name in rows.fields and rows.fields[name].kind not in ('label', 'string', 'scalar'):
        raise DataError(
            f'by={name!r}: the field is of kind {rows.fields[name].kind}, and rows are parted by label, labels, string '
            f'or scalar. Give a function of the rows that makes values of it, as in by=lambda rows: [...].'
        )
    return rows.words(name)


def _missing_as_none(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and value != value else value


def _binned(values: Sequence[Any]) -> dict[str, np.ndarray]:
    numbers = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    there = ~np.isnan(numbers)
    bounds = np.unique(np.quantile(numbers[there], np.linspace(0, 1, BINS + 1), method='nearest'))
    place = np.clip(np.searchsorted(bounds, numbers, side='right') - 1, 0, len(bounds) - 2)
    found = {}
    for i in range(len(bounds) - 1):
        last = i == len(bounds) - 2
        name = f'{bounds[i]:.4g} to {"" if last else "<"}{bounds[i + 1]:.4g}'
        found[name if name not in found else f'{name} ({i + 1})'] = there & (place == i)
    if not there.all():
        found['(missing)'] = ~there
    return found


def _word(value: Any) -> str:
    return f'{value + 0.0:.6g}' if isinstance(value, float) else str(value) or '(empty)'  # -0.0 is 0
