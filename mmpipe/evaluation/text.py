"""A report as lines of text, at most 100 characters wide."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from mmpipe.evaluation.bootstrap import Estimate
from mmpipe.evaluation.mistakes import Confusion, LabelCounts, Residuals
from mmpipe.evaluation.slices import FEW, Slice
from mmpipe.wording import how_many

if TYPE_CHECKING:
    from mmpipe.evaluation.results import Report, TaskReport

WIDTH = 100
SHOWN = 5  # mistakes and worst rows of a task


def lines_of(report: Report) -> Iterator[str]:
    """The lines, without line ends."""
    for line in _lines(report):
        yield cut(line, WIDTH)


def cut(text: str, width: int) -> str:
    """At most so many characters, the last of them an ellipsis where some are left out.

    >>> cut('a long story', 8)
    'a long …'
    """
    return text if len(text) <= width else f'{text[: width - 1]}…'


def number(value: float | None) -> str:
    """Four digits or so.

    >>> number(0.12345), number(12345.6), number(None)
    ('0.1235', '12,346', '-')
    """
    if value is None:
        return '-'
    if value and not 1e-4 <= abs(value) < 1e6:
        return f'{value:.3e}'
    return f'{value:,.0f}' if abs(value) >= 1e4 else f'{value:.1f}' if abs(value) >= 1000 else f'{value:.4g}'


def _lines(report: Report) -> Iterator[str]:
    of = f'run {report.run}' if report.run else 'model'
    where = f" of split '{report.split}'" if report.split else ''
    snapshot = f', snapshot {report.snapshot}' if report.snapshot else ''
    yield f'report of {of} on {how_many(report.rows, "row")}{where}{snapshot}'
    if report.bootstrap:
        what = f'groups by {report.group}' if report.group else 'rows'
        yield f'  [95 % intervals] by {how_many(report.bootstrap, "resample")} of {what}'
    for note in report.notes:
        yield f'  note: {note}'
    for task in report.tasks:
        yield ''
        yield from _task(task, report)
    for by in dict.fromkeys(each.by for each in report.slices):
        yield ''
        yield from _slices(by, [each for each in report.slices if each.by == by])


def _task(task: TaskReport, report: Report) -> Iterator[str]:
    yield f'{task.name}: {task.kind}, {how_many(task.n, "labelled row")}'
    for name, estimate in task.metrics.items():
        yield f'  {cut(name, 24):<24} {_estimate(estimate)}'.rstrip()
    if task.calibration is not None:
        found, heat = task.calibration, report.temperature.get(task.name)
        at = f', at temperature {heat:.3g}' if heat is not None else ''
        yield (
            f'  {"calibration":<24} ECE {number(found.ece)}, by equal mass {number(found.ece_mass)} '
            f'({len(found.bins)} bins); Brier {number(found.brier)}{at}'
        )
    yield from _mistakes(task.mistakes)
    longest = min(28, max((len(row.key) for row in task.worst[:SHOWN]), default=0))
    for i, row in enumerate(task.worst[:SHOWN]):
        head = 'worst rows' if i == 0 else ''
        said = '' if row.truth is None else f'  {_value(row.truth)} -> {_value(row.predicted)}{_sure(row.probability)}'
        yield f'  {head:<24} {cut(row.key, longest):<{longest}}  loss {number(row.loss)}{said}'


def _mistakes(found: Any) -> Iterator[str]:
    if isinstance(found, Confusion):
        for i, (count, truth, predicted) in enumerate(found.pairs()[:SHOWN]):
            yield f'  {"taken for another" if i == 0 else "":<24} {truth} -> {predicted}: {count:,}'
        if found.unseen:
            yield f'  {"classes without a row":<24} {", ".join(found.unseen)}'
    elif isinstance(found, Residuals):
        inner = [(share, value) for share, value in found.quantiles if 0 < share < 1]
        shares = '/'.join(f'{100 * share:.0f}' for share, _ in inner)
        values = ', '.join(number(value) for _, value in inner)
        yield f'  {"residuals":<24} {shares} %: {values}; mean {number(found.mean)}'
    elif found:
        yield from _labels(found)


def _labels(found: tuple[LabelCounts, ...]) -> Iterator[str]:
    worst = sorted((each for each in found if each.fp + each.fn), key=lambda each: -(each.fp + each.fn))
    for i, each in enumerate(worst[:SHOWN]):
        head = 'most mistaken labels' if i == 0 else ''
        yield f'  {head:<24} {cut(each.label, 24):<24} tp {each.tp:,}, fp {each.fp:,}, fn {each.fn:,}, tn {each.tn:,}'


def _slices(by: str, slices: list[Slice]) -> Iterator[str]:
    yield f'by {by}'
    yield f'  {"task":<12} {"part":<22} {"n":>7}  {"metric":<9} {"value":<26} {"vs whole":>8}'
    last = ''
    for each in slices:
        metric = each.metrics.get(each.compared, Estimate(value=None))
        mark = 'few' if each.few else '' if each.p is None else _p(each.p)
        gap = '' if each.difference is None else f'{each.difference:+.3g}'
        task = each.task if each.task != last else ''
        last = each.task
        yield (
            f'{"*" if each.differs else " "} {cut(task, 12):<12} {cut(each.name, 22):<22} {each.n:>7,}  '
            f'{each.compared:<9} {_estimate(metric):<26} {gap:>8} {mark}'
        ).rstrip()
    if any(each.differs for each in slices):
        yield '  * differs from the whole: of the marked parts of this report, at most 5 % by chance'
    if any(each.few for each in slices):
        yield f'  few: less than {FEW} rows, not compared'


def _estimate(estimate: Estimate) -> str:
    if isinstance(estimate.value, list):
        return ', '.join(number(value) for value in estimate.value)
    if estimate.low is None:
        return number(estimate.value)
    return f'{number(estimate.value):<8} [{number(estimate.low)}, {number(estimate.high)}]'


def _p(value: float) -> str:
    return 'p<0.001' if value < 0.001 else f'p {value:.3f}'


def _value(value: Any) -> str:
    if isinstance(value, list):
        return '{' + ', '.join(value) + '}'
    return value if isinstance(value, str) else number(value)


def _sure(probability: Any) -> str:
    if probability is None or probability == []:
        return ''
    each = probability if isinstance(probability, list) else [probability]
    return f' ({", ".join(f"{100 * value:.0f} %" for value in each)})'
