"""mm.report, from a run to what is printed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import pytest
from shop_snapshot import KINDS, TAGS
from torch import nn

import mmpipe as mm
from mmpipe.errors import ConfigError, DataError, LabelError
from mmpipe.models import BareModel
from mmpipe.shards import Block, Field, write_snapshot
from mmpipe.train.tasks import Task


def metrics_of(report):
    return {task.name: {name: each.value for name, each in task.metrics.items()} for task in report.tasks}


def test_metrics_are_those_of_evaluate_and_lie_in_their_intervals(run, val):
    found = mm.report(run, val)
    expected = mm.evaluate(mm.load_model(run), val)
    for name, values in expected.items():
        assert found[name].n == values.pop('n')
        assert metrics_of(found)[name] == pytest.approx(values, rel=1e-5)
    for task in found.tasks:
        for name, each in task.metrics.items():
            assert each.low < each.value < each.high, (task.name, name)
    assert (found.run, found.split, found.snapshot, found.trained_on) == (run.id, 'val', val.rows.snapshot.id, 0)


def test_it_is_the_same_again_in_any_order_and_another_seed_moves_intervals_alone(run, val, shop):
    one = mm.report(run, val, by='kind', bootstrap=200)
    assert one.to_json() == mm.report(run.path, val, by='kind', bootstrap=200).to_json()
    shuffled = mm.DataLoader(shop.split('val'), batch_size=60, shuffle=True, device='cpu')
    other = mm.report(run, shuffled, by='kind', bootstrap=200)
    for task in one.tasks:
        assert [row.key for row in other[task.name].worst] == [row.key for row in task.worst]
        for name, each in task.metrics.items():
            again = other[task.name].metrics[name]
            assert (again.low, again.value, again.high) == pytest.approx((each.low, each.value, each.high), rel=1e-5)
    seeded = mm.report(run, val, by='kind', bootstrap=200, seed=1)
    assert metrics_of(seeded) == metrics_of(one)
    assert seeded['price'].metrics['mae'].low != one['price'].metrics['mae'].low


def test_parts_by_a_field_that_the_model_does_not_read_have_the_metrics_of_these_rows(run, val, shop):
    found = mm.report(run, val, by=['kind', 'tags', 'split', 'weight'], bootstrap=0)
    model = mm.load_model(run)
    for word in KINDS:
        rows = val.rows.where('kind', word)
        expected = mm.evaluate(model, mm.DataLoader(rows, batch_size=8, device='cpu'))
        for each in found.slices:
            if (each.by, each.name) == ('kind', word):
                values = {name: estimate.value for name, estimate in each.metrics.items()}
                assert each.n == expected[each.task]['n']
                assert values == pytest.approx(
                    {name: value for name, value in expected[each.task].items() if name != 'n'}, rel=1e-5
                )
    assert {each.by for each in found.slices} == {'kind', 'tags', 'split', 'weight'}


def test_worst_rows_are_those_that_predict_says_are_furthest(run, val):
    found = mm.report(run, val, worst=3, bootstrap=0)
    said = mm.predict(mm.load_model(run), val)
    prices, there = val.rows.read('price')
    gap = np.where(there, np.abs(said['price'] - prices), -1)
    keys = np.array(said['_key'])[np.argsort(-gap)[:3]].tolist()
    assert [row.key for row in found['price'].worst] == keys
    assert found['price'].worst[0].truth == pytest.approx(float(prices[gap.argmax()]))


def test_printed_it_is_narrow_and_as_json_it_is_plain(run, val, tmp_path):
    found = mm.report(run, val, by=['note', 'kind'], bootstrap=50)
    lines = str(found).splitlines()
    assert max(map(len, lines)) <= 100
    assert lines[0].startswith(f"report of run {run.id} on 60 rows of split 'val', snapshot ")
    assert found.save(tmp_path / 'out', plots=False) == [tmp_path / 'out' / 'report.json']
    stored = json.loads((tmp_path / 'out' / 'report.json').read_text())
    assert stored == found.to_json()
    assert stored['tasks'][0]['metrics']['accuracy']['value'] == found['kind'].metrics['accuracy'].value
    assert len(stored['curves']['kind loss (train)']) == 4


def test_rows_the_run_was_trained_on_are_told(run, shop):
    rows = shop.rows()
    found = mm.report(run, mm.DataLoader(rows, batch_size=64, device='cpu'), bootstrap=0)
    assert found.trained_on == 180
    assert 'the run was trained on 180 of these rows' in str(found)
    assert found.split is None


def test_groups_are_drawn_whole(run, val):
    groups = [int(key[-4:]) // 40 for key in val.rows.keys.tolist()]
    rows, grouped = mm.report(run, val), mm.report(run, val, group=groups)
    assert metrics_of(rows) == metrics_of(grouped)
    assert rows['price'].metrics['mae'].low != grouped['price'].metrics['mae'].low
    one = mm.report(run, val, group=[1] * len(val.rows))
    assert one['price'].metrics['mae'].low is None
    assert mm.report(run, val, group='note', bootstrap=100).group == 'note'  # each its own, and some missing


def test_batches_that_are_no_loader_and_a_model_that_is_bare(shop):
    class Middle(nn.Module):
        def forward(self, title):
            return {'price': title.sum(1) * 0 + 100, 'kind': title[:, :3]}

    tasks = [mm.regression('price'), mm.classification('kind', 3)]
    model = BareModel(Middle(), inputs='title', tasks=tasks)
    loader = mm.DataLoader(shop.split('val'), batch_size=16, device='cpu')
    known, batches = mm.report(model, loader, bootstrap=50), mm.report(model, list(loader), bootstrap=50)
    assert known.tasks[0] == batches.tasks[0]
    assert (batches.run, batches.snapshot, batches.split) == (None, None, None)
    # Words of the field, since the task has none.
    assert set(known['kind'].mistakes.classes) <= set(KINDS)
    assert {row.truth for row in batches['kind'].worst} <= {'0', '1', '2'}
    parted = mm.report(model, list(loader), by={'half': [i < 30 for i in range(60)]}, bootstrap=0)
    assert {each.name for each in parted.slices} == {'True', 'False'}
    only = mm.report(model, loader, tasks=tasks[:1], bootstrap=0)
    assert [task.name for task in only.tasks] == ['price']


@dataclass(frozen=True, kw_only=True)
class Drawing(Task):
    """A task of another kind: 2 x 2 pixels, each 0 or 1."""

    kind = 'drawing'

    @property
    def output_shape(self):
        return (2, 2)

    def loss(self, output, target, mask, *, std=1.0):
        each = nn.functional.binary_cross_entropy_with_logits(output, target.float(), reduction='none')
        return each.mean((1, 2)).where(mask, 0.0).sum(), mask.sum().float()

    def metrics(self, output, target):
        return {'right': float(((output > 0) == (target > 0)).mean()) if len(target) else None}


def test_a_task_of_another_kind_has_its_metrics_intervals_and_worst_rows(tmp_path):
    draw = np.random.default_rng(0)
    fields = [Field(name=name, kind='tensor', dtype='float32', shape=(2, 2)) for name in ('x', 'drawing')]
    x = draw.normal(size=(40, 2, 2)).astype('f4')
    target = (x + draw.normal(size=x.shape) > 0).astype('f4')
    columns = {'x': list(x), 'drawing': list(target)}
    snapshot = write_snapshot(tmp_path / 'd', fields, Block(keys=[str(i) for i in range(40)], columns=columns))
    model = BareModel(nn.Identity(), inputs='x', tasks=[Drawing(field='drawing', name='drawing')])
    loader = mm.DataLoader(snapshot.rows(), batch_size=16, device='cpu')
    found = mm.report(model, loader, by={'half': [i < 20 for i in range(40)]}, bootstrap=100)
    task = found['drawing']
    expected = mm.evaluate(model, loader)['drawing']
    assert (task.kind, task.n, task.calibration, task.mistakes) == ('drawing', 40, None, None)
    for name in ('loss', 'right'):
        each = task.metrics[name]
        assert each.value == pytest.approx(expected[name], rel=1e-5)
        assert each.low < each.value < each.high
    assert found.slices[0].compared == 'loss'
    losses = np.log1p(np.exp(-np.where(target > 0, x, -x))).mean((1, 2))
    assert [int(row.key) for row in task.worst] == np.argsort(-losses)[:20].tolist()
    assert max(map(len, str(found).splitlines())) <= 100


@pytest.fixture
def made(tmp_path):
    """Reports of a model that says x, on a snapshot of given classes and numbers."""

    def report(kinds, x, *, vocabulary=('a', 'b', 'c'), **options):
        x = np.asarray(x, dtype=np.float32).reshape(-1, 3)
        fields = [
            Field(name='x', kind='tensor', dtype='float32', shape=(3,)),
            Field(name='kind', kind='label', vocabulary=vocabulary),
        ]
        keys = [f'{i:06d}' for i in range(len(x))]
        snapshot = write_snapshot(
            tmp_path / f'{len(os.listdir(tmp_path))}', fields,
            Block(keys=keys, columns={'x': list(x), 'kind': list(kinds)}, splits=['val'] * len(x)),
        )  # fmt: skip
        model = BareModel(nn.Identity(), inputs='x', tasks=[mm.classification('kind', ('a', 'b', 'c'))])
        loader = mm.DataLoader(snapshot.split('val'), batch_size=4096, device='cpu')
        return mm.report(model, loader, **options)

    return report


def test_a_task_without_a_labelled_row_says_so(made):
    found = made([None, None], np.zeros(6), by='kind')
    (task,) = found.tasks
    assert (task.n, task.calibration, task.mistakes, task.worst, found.slices) == (0, None, None, (), ())
    assert {name: each.value for name, each in task.metrics.items()} == {
        'loss': None,
        'accuracy': None,
        'macro_f1': None,
    }
    assert 'no row has a label for kind' in str(found)


def test_one_row_and_one_class_have_metrics_without_intervals(made, tmp_path):
    found = made(['b'], [0, 3, 0], by='kind')
    accuracy = found['kind'].metrics['accuracy']
    assert (accuracy.value, accuracy.low, accuracy.high) == (1, None, None)
    assert found.slices[0].few
    assert 'all labelled rows of kind are of one class' in str(found)
    assert found['kind'].mistakes.unseen == ('a', 'c')
    assert found.save(tmp_path / 'out')


def test_a_hundred_thousand_rows(made):
    draw = np.random.default_rng(0)
    kinds = np.array(['a', 'b', 'c'])[draw.integers(0, 3, 100_000)].tolist()
    found = made(kinds, draw.normal(size=300_000), bootstrap=20)
    assert found['kind'].n == 100_000
    low, high = found['kind'].metrics['accuracy'].low, found['kind'].metrics['accuracy'].high
    assert low < found['kind'].metrics['accuracy'].value < high
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(2 / 9 / 1e5), rel=0.5)


def test_labels_and_arguments_that_do_not_fit_are_refused(made, run, val):
    with pytest.raises(LabelError, match="row '000000' of the evaluation rows has kind = 3"):
        made(['d'], [0, 0, 0], vocabulary=('a', 'b', 'c', 'd'))
    with pytest.raises(ConfigError, match="temperature= names the task 'kinds'; there are kind, price, tags"):
        mm.report(run, val, temperature={'kinds': 2.0})
    with pytest.raises(ConfigError, match='bootstrap=-1'):
        mm.report(run, val, bootstrap=-1)
    with pytest.raises(DataError, match=r"images='title': a field of encoded images .* it is tensor \[8\]"):
        mm.report(run, val, images='title')
    with pytest.raises(ConfigError, match='has no tasks'):
        mm.report(nn.Linear(1, 1), val)


def test_a_vocabulary_that_grew_by_words_without_rows_is_no_trouble(shop, tmp_path):
    fields = [
        Field(name='title', kind='tensor', dtype='float32', shape=(8,)),
        Field(name='tags', kind='labels', vocabulary=(*TAGS, 'new')),
    ]
    columns = {'title': list(np.random.default_rng(0).normal(size=(20, 8)).astype('f4')), 'tags': [['old'], []] * 10}
    grown = write_snapshot(tmp_path / 'grown', fields, Block(keys=[str(i) for i in range(20)], columns=columns))
    model = mm.MultitaskModel(encoders={'title': mm.encoders.vector(8, 8)}, tasks=[mm.multilabel('tags', TAGS)])
    loader = mm.DataLoader(grown.rows(), batch_size=8, device='cpu')
    found = mm.report(model, loader, bootstrap=20)
    assert [each.label for each in found['tags'].mistakes] == list(TAGS)
    assert found['tags'].metrics['map'].value == pytest.approx(mm.evaluate(model, loader)['tags']['map'])


SCRIPT = """
import json, sys
import torch
import mmpipe as mm

shards, run, meeting, rank = *sys.argv[1:4], int(sys.argv[4])
torch.set_num_threads(1)
torch.distributed.init_process_group('gloo', init_method=f'file://{meeting}', rank=rank, world_size=2)
rows = mm.open_snapshot(shards).split('val').take(range(56))
model = mm.load_model(run)
found = []
for some in (rows, rows.take([0])):
    loader = mm.DataLoader(some, batch_size=7, device='cpu')
    found.append(mm.report(model, loader, by='kind', bootstrap=100).to_json())
    found.append(mm.report(model, list(loader), bootstrap=100).to_json())
with open(f'{meeting}-{rank}.json', 'w') as file:
    json.dump(found, file)
torch.distributed.destroy_process_group()
"""


def nearly(value):
    if isinstance(value, dict):
        return {key: nearly(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [nearly(each) for each in value]
    return pytest.approx(value, rel=1e-4, abs=1e-6) if isinstance(value, float) else value


def test_two_ranks_report_what_one_does_also_where_one_has_no_row(run, shop, tmp_path):
    script = tmp_path / 'ranks.py'
    script.write_text(SCRIPT)
    environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
    command = [sys.executable, script, shop.root, run.path, tmp_path / 'meet']
    ranks = [
        subprocess.Popen([*map(str, command), str(rank)], env=environment, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    said = [process.communicate(timeout=120)[1] for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], said
    first, second = (json.loads((tmp_path / f'meet-{rank}.json').read_text()) for rank in range(2))
    assert first == second
    # 4 steps of 14 rows: the ranks' batches are those of one process, so that rounding does not part equal outputs.
    model, rows = mm.load_model(run), shop.split('val').take(range(56))
    for some, known, batches in ((rows, *first[:2]), (rows.take([0]), *first[2:])):
        loader = mm.DataLoader(some, batch_size=7, device='cpu')
        assert known == nearly(mm.report(model, loader, by='kind', bootstrap=100).to_json())
        assert batches['rows'] == len(some)
        alone = mm.report(model, loader, bootstrap=0).to_json()['tasks']
        for mine, theirs in zip(alone, batches['tasks'], strict=True):
            assert [row['loss'] for row in theirs['worst']] == nearly([row['loss'] for row in mine['worst']])
            assert theirs['mistakes'] == nearly(mine['mistakes'])
