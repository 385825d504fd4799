"""Plots are written, and can be read: no label lies over another, and words have their characters."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

import mmpipe as mm
from mmpipe import errors
from mmpipe.errors import ConfigError, MissingExtraError
from mmpipe.evaluation import plots
from mmpipe.evaluation.bootstrap import Estimate
from mmpipe.evaluation.fonts import families_for
from mmpipe.evaluation.mistakes import mistakes
from mmpipe.evaluation.results import TaskReport
from mmpipe.evaluation.slices import Slice

pytest.importorskip('matplotlib')
LONG = 'a class with a name that is much too long to be written'


def overlapping(texts, renderer):
    """Pairs of texts that lie over each other, among those that are seen."""
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in texts if text.get_text().strip()]
    return [(a, b) for i, (a, one) in enumerate(boxes) for b, two in boxes[:i] if one.overlaps(two)]


def drawn(figure):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return canvas.get_renderer()


def ticks_of(axis):
    """Labels of an axis that are drawn: those within its limits."""
    low, high = sorted(axis.get_view_interval())
    places = zip(
        axis.get_ticklocs(), axis.get_ticklabels(), strict=False
    )  # fewer where an axis shares those of another
    return [label for place, label in places if low <= place <= high]


def assert_readable(figure):
    """No two labels of an axis overlap, and every text lies inside the picture."""
    renderer = drawn(figure)
    texts = [text for legend in figure.legends for text in legend.get_texts()]
    for axes in figure.axes:
        if axes.axison:
            for axis in (axes.xaxis, axes.yaxis):
                ticks = ticks_of(axis)
                assert overlapping(ticks, renderer) == []
                texts += [*ticks, axis.label]
        texts += [axes.title, axes._left_title, *axes.texts]
    width, height = figure.canvas.get_width_height()
    for text in texts:
        if text.get_text().strip():
            box = text.get_window_extent(renderer)
            assert box.x0 >= -1, text
            assert box.y0 >= -1, text
            assert box.x1 <= width + 1, text
            assert box.y1 <= height + 1, text


def task_of(labelled, task, output, target, words, **more):
    found = labelled(task, output, target)
    return TaskReport(name=task.name, kind=task.kind, n=len(found), metrics={}, mistakes=mistakes(found, words), **more)


@pytest.mark.parametrize(('classes', 'rows'), [(2, 9), (10, 2_000_000), (30, 5000), (42, 5000)])
def test_confusion_matrices_can_be_read(labelled, classes, rows):
    words = [f'{LONG} {c}' if c % 3 == 0 else f'class {c}' for c in range(classes)]
    draw = np.random.default_rng(0)
    task = mm.classification('kind', classes)
    report = task_of(
        labelled, task, draw.normal(size=(min(rows, 5000), classes)), draw.integers(0, classes, min(rows, 5000)), words
    )
    if rows > 5000:  # counts of seven digits
        counts = tuple(tuple(1234 * n for n in line) for line in report.mistakes.counts)
        report = TaskReport(
            name='kind', kind='classification', n=rows, metrics={},
            mistakes=type(report.mistakes)(classes=report.mistakes.classes, counts=counts, unseen=()),
        )  # fmt: skip
    figure = plots.confusion_plot(report)
    assert_readable(figure)
    cells = figure.axes[0].texts
    assert overlapping(cells[:60], drawn(figure)) == []
    assert len(figure.axes[0].get_xticks()) == min(classes, 40)


def test_labels_residuals_and_parts_can_be_read(labelled):
    draw = np.random.default_rng(0)
    words = [f'{LONG} {c}' for c in range(30)]
    task = mm.multilabel('tags', 30)
    assert_readable(
        plots.labels_plot(task_of(labelled, task, draw.normal(size=(99, 30)), draw.random((99, 30)) < 0.3, words))
    )
    assert_readable(
        plots.residuals_plot(task_of(labelled, mm.regression('price'), draw.normal(size=50), np.zeros(50, 'f4'), []))
    )


def test_parts_of_every_size_can_be_read():
    def part(task, i, *, few=False, differs=False):
        estimate = Estimate(value=0.5 + i / 100, low=0.4 + i / 100, high=0.6 + i / 100)
        return Slice(
            by='shop', name=f'{LONG} {i}', task=task, n=10**i if i < 6 else 3, metrics={'accuracy': estimate},
            few=few, compared='accuracy', difference=0.0, differs=differs,
        )  # fmt: skip

    whole = Estimate(value=0.5, low=0.45, high=0.55)
    for many in (1, 30):
        report = mm.Report(
            run=None, snapshot=None, split=None, rows=1, trained_on=None, bootstrap=10, group=None, seed=0,
            tasks=tuple(
                TaskReport(name=name, kind='classification', n=1, metrics={'accuracy': whole}) for name in ('a', 'b')
            ),
            slices=tuple(part(name, i, few=i == 7, differs=i == 8) for name in ('a', 'b') for i in range(many)),
        )  # fmt: skip
        assert_readable(plots.slices_plot(report, 'shop'))


def test_a_report_writes_every_plot_as_png_and_replaces_those_before(run, val, tmp_path):
    found = mm.report(run, val, by=['kind', 'split'], bootstrap=50, images='photo', worst=7)
    (tmp_path / 'report-old.png').touch()
    files = found.save(tmp_path)
    names = {path.name for path in files}
    assert names == {'report.json'} | {
        f'report-{name}.png'
        for name in (
            'reliability-kind', 'reliability-tags', 'confusion-kind', 'labels-tags', 'residuals-price', 'worst-kind',
            'worst-tags', 'worst-price', 'slices-kind', 'slices-split', 'curves',
        )
    }  # fmt: skip
    assert {path.name for path in tmp_path.iterdir()} == names
    for path in files[1:]:
        with Image.open(path) as image:
            assert image.format == 'PNG'
            low, high = image.convert('L').getextrema()
            assert high - low > 100  # something is drawn
    assert json.loads(files[0].read_text())['run'] == run.id
    for task in found.tasks:
        assert_readable(plots.worst_plot(task, found))
        if task.calibration:
            assert_readable(plots.reliability_plot(task))
    assert_readable(plots.curves_plot(found))


def test_thumbnails_are_the_stored_pictures_of_the_worst_rows(run, val):
    found = mm.report(run, val, bootstrap=0, images='photo', worst=4)
    photos, there = val.rows.read('photo')
    place = {key: i for i, key in enumerate(val.rows.keys.tolist())}
    worst = {row.key for task in found.tasks for row in task.worst}
    assert set(found.thumbnails) == {key for key in worst if there[place[key]]}
    for key, image in found.thumbnails.items():
        assert (image == photos[place[key]].transpose(1, 2, 0)).all()
    assert 'thumbnails' not in found.to_json()


def test_encoded_pictures_are_made_small_and_bad_ones_left_out(tmp_path):
    import io

    from mmpipe.evaluation.thumbnails import thumbnails_of
    from mmpipe.shards import Block, Field, write_snapshot

    content = io.BytesIO()
    Image.new('RGB', (300, 200), (255, 0, 0)).save(content, 'JPEG')
    snapshot = write_snapshot(
        tmp_path / 'pictures', [Field(name='raw', kind='binary')],
        Block(keys=['a', 'b', 'c'], columns={'raw': [content.getvalue(), b'no picture', None]}),
    )  # fmt: skip
    loader = mm.DataLoader(snapshot.rows(), batch_size=3, device='cpu')
    found = thumbnails_of(loader, 'raw', ['c', 'b', 'a'])
    assert list(found) == ['a']
    assert found['a'].shape == (85, 128, 3)
    assert found['a'][40, 60, 0] > 240


def test_words_of_any_script_get_a_font_that_has_them_where_one_is_installed():
    from matplotlib import font_manager
    from matplotlib.ft2font import FT2Font

    assert families_for(['cat', 'кот', 'γάτα']) == ['DejaVu Sans']
    words = ['猫', 'गाय', 'แมว', 'кот']
    families = families_for(words)
    charmaps = [
        FT2Font(entry.fname).get_charmap() for entry in font_manager.fontManager.ttflist if entry.name in families
    ]
    upright = [
        FT2Font(entry.fname).get_charmap()
        for entry in font_manager.fontManager.ttflist
        if entry.style == 'normal' and entry.weight == 400
    ]
    for each in map(ord, ''.join(words)):
        if any(each in charmap for charmap in upright):
            assert any(each in charmap for charmap in charmaps), chr(each)


def test_without_matplotlib_the_extra_is_named_before_anything_is_written(run, val, tmp_path, monkeypatch):
    find = errors.importlib.util.find_spec
    monkeypatch.setattr(
        errors.importlib.util, 'find_spec', lambda name, *rest: None if name == 'matplotlib' else find(name, *rest)
    )
    found = mm.report(run, val, bootstrap=0)
    with pytest.raises(MissingExtraError, match=r"pip install 'mmpipe\[plots\]'"):
        found.save(tmp_path / 'out')
    assert not (tmp_path / 'out').exists()
    assert found.save(tmp_path / 'out', plots=False)


def test_a_folder_that_cannot_be_made_is_told(run, val, tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(ConfigError, match='cannot hold a report'):
        mm.report(run, val, bootstrap=0).save(tmp_path / 'file' / 'out')
