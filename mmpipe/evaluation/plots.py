"""A report as pictures: reliability, confusion, parts, curves, worst rows. Needs the extra `plots`."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmpipe.durable import write_bytes
from mmpipe.errors import require
from mmpipe.evaluation.fonts import families_for
from mmpipe.evaluation.mistakes import Confusion, Residuals
from mmpipe.evaluation.slices import Slice
from mmpipe.evaluation.text import cut, number

if TYPE_CHECKING:
    from mmpipe.evaluation.results import Report, TaskReport

BLUE, ORANGE, GREY = '#2b6cb0', '#d9730d', '#8a8a8a'
NAMES = 26  # characters of a class or part that are written
MOST = 40  # classes of a confusion matrix; of more, the most mistaken ones
DOTS = 110  # per inch


def require_plots() -> None:
    """Check that matplotlib is installed.

    Raises:
        MissingExtraError: with the command that installs it.

    >>> require_plots()
    """
    require('plots', 'matplotlib', why='drawing a report')


def draw(report: Report, folder: Path) -> list[Path]:
    """Write every plot that the report has something for.

    Args:
        report: what to draw.
        folder: that is there; plots of an earlier report are removed.

    Returns:
        The files: reliability, confusion, labels and residuals per task, slices per column, curves, and the worst rows.
    """
    require_plots()
    import matplotlib

    for old in folder.glob('report-*.png'):
        old.unlink()
    files: list[Path] = []
    # Words are taken as they are: a $ begins no formula.
    settings: Any = {
        'font.family': families_for(_texts(report)), 'font.size': 9, 'axes.spines.top': False,
        'axes.spines.right': False, 'text.parse_math': False, 'axes.unicode_minus': False,
    }  # fmt: skip
    with matplotlib.rc_context(settings):
        for name, figure in _plots(report):
            path = folder / f'report-{_file_name(name)}.png'
            if path in files:  # two names that differ in what no file name can hold
                path = path.with_stem(f'{path.stem}-{len(files)}')
            with io.BytesIO() as content:
                figure.savefig(content, format='png', dpi=DOTS)
                write_bytes(path, content.getbuffer())
            files.append(path)
    return files


def _plots(report: Report) -> Iterator[tuple[str, Any]]:
    """(name, figure) one after the other."""
    for task in report.tasks:
        if task.calibration is not None:
            yield f'reliability-{task.name}', reliability_plot(task)
        if isinstance(task.mistakes, Confusion):
            yield f'confusion-{task.name}', confusion_plot(task)
        elif isinstance(task.mistakes, Residuals):
            yield f'residuals-{task.name}', residuals_plot(task)
        elif task.mistakes:
            yield f'labels-{task.name}', labels_plot(task)
        if report.thumbnails and task.worst:
            yield f'worst-{task.name}', worst_plot(task, report)
    for by in dict.fromkeys(each.by for each in report.slices):
        yield f'slices-{by}', slices_plot(report, by)
    if report.curves:
        yield 'curves', curves_plot(report)


def _texts(report: Report) -> list[str]:
    texts = [text for each in report.slices for text in (each.by, each.name, each.task)] + list(report.curves)
    for task in report.tasks:
        texts.append(task.name)
        if isinstance(task.mistakes, Confusion):
            texts += task.mistakes.classes
        elif isinstance(task.mistakes, tuple):
            texts += [each.label for each in task.mistakes]
        texts += [str(part) for row in task.worst for part in (row.key, row.truth, row.predicted)]
    return texts


def reliability_plot(task: TaskReport) -> Any:
    """What was said against what was found, over how many rows said it."""
    found = task.calibration
    assert found is not None
    figure = _figure(5.0, 5.6)
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    used = [each for each in found.bins if each.n]
    axes.plot([0, 1], [0, 1], '--', color=GREY, linewidth=1, label='as often as said')
    axes.plot([each.said for each in used], [each.found for each in used], 'o-', color=BLUE, label='found')
    for each in used:
        axes.plot([each.said, each.said], [each.said, each.found], color=ORANGE, linewidth=1)
    axes.set(ylabel='share that is right', ylim=(-0.02, 1.02), xlim=(0, 1))
    axes.set_title(f'{cut(task.name, 40)}: ECE {number(found.ece)}, Brier {number(found.brier)}', loc='left')
    axes.legend(loc='upper left', frameon=False)
    edges = np.array([*(each.low for each in found.bins), 1.0])
    below.bar(edges[:-1], [each.n for each in found.bins], np.diff(edges), align='edge', color=BLUE, alpha=0.6)
    below.set(xlabel='probability that the model gives', ylabel='how many')
    return figure


def confusion_plot(task: TaskReport) -> Any:
    """Rows by class and predicted class; colours are shares of the class."""
    found = task.mistakes
    assert isinstance(found, Confusion)
    counts, words = np.array(found.counts), list(found.classes)
    left_out = len(words) - MOST
    if left_out > 0:
        wrong = counts.sum(axis=0) + counts.sum(axis=1) - 2 * counts.diagonal()
        kept = np.sort(np.argsort(-wrong, kind='stable')[:MOST])
        counts, words = counts[np.ix_(kept, kept)], [words[c] for c in kept]
    many = len(words)
    cell = 0.5 if many <= 12 else 0.34
    names = [cut(word, NAMES) for word in words]
    margin = 0.09 * max(map(len, names)) + 0.8
    figure = _figure(max(4.2, margin + cell * many + 0.9), max(3.6, margin + cell * many + 0.6))
    axes = figure.subplots()
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros(counts.shape), where=totals > 0)
    image = axes.imshow(shares, cmap='Blues', vmin=0, vmax=1)
    axes.set_xticks(range(many), names, rotation=90 if many > 6 or max(map(len, names)) > 6 else 0)
    axes.set_yticks(range(many), names)
    axes.set(xlabel='predicted', ylabel='true')
    rest = f' (the {MOST} most mistaken of {len(found.classes)})' if left_out > 0 else ''
    axes.set_title(f'{cut(task.name, 30)}, {task.n:,} rows{rest}', loc='left')
    size = 6.5 if many > 12 else 8.5
    for i, j in zip(*np.nonzero(counts), strict=True):
        shade = 'white' if shares[i, j] > 0.55 else 'black'
        axes.text(j, i, _compact(int(counts[i, j])), ha='center', va='center', color=shade, size=size)
    figure.colorbar(image, ax=axes, fraction=0.04, pad=0.02, label='share of the class')
    return figure


def labels_plot(task: TaskReport) -> Any:
    """Right, wrong and missed predictions of each label."""
    found = sorted(task.mistakes, key=lambda each: each.tp + each.fn)[-2 * MOST :]  # type: ignore[arg-type]
    figure = _figure(7.0, 1.3 + 0.24 * len(found))
    axes = figure.subplots()
    place = np.arange(len(found))
    right, missed, wrong = (np.array([getattr(each, part) for each in found]) for part in ('tp', 'fn', 'fp'))
    axes.barh(place, right, color=BLUE, label='has it, predicted')
    axes.barh(place, missed, left=right, color=GREY, label='has it, missed')
    axes.barh(place, -wrong, color=ORANGE, label='does not have it, predicted')
    axes.axvline(0, color='black', linewidth=0.8)
    axes.set_yticks(place, [cut(each.label, NAMES) for each in found])
    axes.set(xlabel='rows', ylim=(-0.6, len(found) - 0.4))
    _whole_numbers(axes.xaxis)
    axes.set_title(f'{cut(task.name, 40)}, {task.n:,} rows', loc='left')
    figure.legend(loc='outside lower center', ncols=3, frameon=False)
    return figure


def residuals_plot(task: TaskReport) -> Any:
    """Quantiles of prediction less truth."""
    found = task.mistakes
    assert isinstance(found, Residuals)
    figure = _figure(6.0, 2.4)
    axes = figure.subplots()
    at = dict(found.quantiles)
    bar = {'color': BLUE, 'solid_capstyle': 'butt'}
    axes.plot([at[0.0], at[1.0]], [0, 0], color=GREY, linewidth=1)
    axes.plot([at[0.05], at[0.95]], [0, 0], linewidth=4, alpha=0.5, label='90 % of the rows', **bar)
    axes.plot([at[0.25], at[0.75]], [0, 0], linewidth=12, label='half of the rows', **bar)
    axes.plot([at[0.5]], [0], 'o', color='white', markeredgecolor=BLUE, label='median')
    axes.axvline(0, color='black', linewidth=0.8, linestyle='--')
    axes.set(yticks=[], xlabel='predicted less true, in the unit of the target', ylim=(-1, 1))
    axes.set_title(f'{cut(task.name, 40)}, {task.n:,} rows', loc='left')
    figure.legend(loc='outside lower center', ncols=3, frameon=False)
    return figure


def slices_plot(report: Report, by: str) -> Any:
    """The compared metric of each part with its interval, beside the whole, a panel per task."""
    mine: dict[str, list[Slice]] = {}
    for each in report.slices:
        if each.by == by:
            mine.setdefault(each.task, []).append(each)
    heights = [len(slices) + 1.5 for slices in mine.values()]
    figure = _figure(7.4, 0.7 + 0.26 * sum(heights) + 0.55 * len(mine))
    panels = figure.subplots(len(mine), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (name, slices) in zip(panels, mine.items(), strict=True):
        metric = slices[0].compared
        whole = report[name].metrics[metric]
        for at, each in enumerate(reversed(slices)):
            estimate = each.metrics.get(metric)
            if estimate is None or estimate.value is None:
                continue
            colour = ORANGE if each.differs else GREY if each.few else BLUE
            if estimate.low is not None:
                axes.plot([estimate.low, estimate.high], [at, at], color=colour, linewidth=1.5)
            axes.plot([estimate.value], [at], 'o', color=colour, markerfacecolor='white' if each.few else colour)
        if isinstance(whole.value, float):
            axes.axvline(whole.value, color='black', linewidth=0.8, linestyle='--')
        if whole.low is not None:
            axes.axvspan(whole.low, whole.high, color='black', alpha=0.07, linewidth=0)
        names = [f'{cut(each.name, NAMES)} ({each.n:,})' for each in reversed(slices)]
        axes.set_yticks(range(len(slices)), names)
        axes.set(ylim=(-0.7, len(slices) - 0.3), xlabel=metric)
        axes.set_title(f'{cut(name, 40)} by {cut(by, 30)}', loc='left')
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color='black', linestyle='--', linewidth=0.8, label='all rows'),
        Line2D([], [], color=BLUE, marker='o', label='part (rows)'),
        Line2D([], [], color=ORANGE, marker='o', label='differs'),
        Line2D([], [], color=GREY, marker='o', markerfacecolor='white', label='few rows'),
    ]
    figure.legend(handles=handles, loc='outside lower center', ncols=4, frameon=False)
    return figure


def curves_plot(report: Report) -> Any:
    """Losses and metrics over steps, one panel for each kind of number of each task."""
    panels: dict[str, list[str]] = {}
    for name in report.curves:
        panels.setdefault(name.rpartition(' (')[0], []).append(name)
    across = min(3, len(panels))
    down = math.ceil(len(panels) / across)
    figure = _figure(3.3 * across, 2.5 * down)
    every = figure.subplots(down, across, squeeze=False).ravel()
    for axes in every[len(panels) :]:
        axes.set_axis_off()
    for axes, (title, names) in zip(every, panels.items(), strict=False):
        for name in names:
            steps, values = zip(*report.curves[name], strict=True)
            train = name.endswith('(train)')
            style = 'o' if len(steps) == 1 else '-'
            axes.plot(steps, values, style, color=GREY if train else BLUE, label='train' if train else 'val')
        axes.set_title(cut(title, 34), loc='left')
        axes.set_xlabel('step')
        _whole_numbers(axes.xaxis)
        axes.locator_params(axis='x', nbins=4)
        if len(names) > 1:
            axes.legend(frameon=False)
    return figure


def worst_plot(task: TaskReport, report: Report) -> Any:
    """A sheet of the rows with the highest loss; a grey square for those without a picture."""
    across = min(5, len(task.worst))
    down = math.ceil(len(task.worst) / across)
    figure = _figure(2.0 * across, 2.6 * down + 0.3)
    every = figure.subplots(down, across, squeeze=False).ravel()
    for axes in every:
        axes.set(xticks=[], yticks=[])
        axes.set_box_aspect(1)
        axes.set_frame_on(False)
    for axes, row in zip(every, task.worst, strict=False):
        picture = report.thumbnails.get(row.key)
        if picture is None:
            axes.set_facecolor('#f0f0f0')
            axes.set_frame_on(True)
            axes.spines[:].set_visible(False)
            axes.text(0.5, 0.5, 'no picture', ha='center', va='center', color=GREY, transform=axes.transAxes)
        else:
            axes.imshow(_squared(picture))
        lines = [cut(row.key, 24)]
        if row.truth is not None:
            lines += [f'is {_short(row.truth)}', f'said {_short(row.predicted)}']
        axes.set_title('\n'.join([*lines, f'loss {number(row.loss)}']), size=7.5, loc='left')
    figure.suptitle(f'{cut(task.name, 40)}: highest loss', x=0.01, ha='left')
    return figure


def _squared(picture: np.ndarray) -> np.ndarray:
    """With white above and below, or on both sides."""
    high, wide = picture.shape[:2]
    side = max(high, wide)
    square = np.full((side, side, 3), 255, dtype=np.uint8)
    top, left = (side - high) // 2, (side - wide) // 2
    square[top : top + high, left : left + wide] = picture
    return square


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout='constrained')


def _whole_numbers(axis: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True))


def _short(value: Any) -> str:
    if isinstance(value, list):
        value = ', '.join(value) or 'nothing'
    return cut(value if isinstance(value, str) else number(value), 20)


def _compact(count: int) -> str:
    """At most four characters of a count.

    >>> _compact(950), _compact(12_345), _compact(1_234_567)
    ('950', '12k', '1.2M')
    """
    if count < 1000:
        return str(count)
    scale, unit = (1000, 'k') if count < 999_500 else (1_000_000, 'M')
    return f'{count / scale:.1f}{unit}' if count / scale < 9.95 else f'{count / scale:.0f}{unit}'


def _file_name(name: str) -> str:
    """A name of letters, digits, `.`, `_` and `-` of any script.

    >>> _file_name('slices-a/b')
    'slices-a_b'
    """
    return re.sub(r'[^\w.-]', '_', name)[:100]
