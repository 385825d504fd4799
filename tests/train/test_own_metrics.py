"""Metrics of the user's own in mm.evaluate: those of torchmetrics give what ours give."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from shop_snapshot import KINDS, TAGS

import mmpipe as mm
from mmpipe.errors import ConfigError


def build() -> mm.MultitaskModel:
    return mm.MultitaskModel(
        encoders={'title': mm.encoders.vector(8, 8)},
        tasks=[mm.classification('kind', KINDS), mm.multilabel('tags', TAGS), mm.regression('price')],
        hidden=8,
    )


@pytest.fixture(scope='module')
def model(shop):
    torch.manual_seed(0)
    model = build()
    model.fit_buffers(mm.DataLoader(shop.split('train'), batch_size=16, device='cpu').seen)
    return model


@pytest.fixture
def val(shop):
    return mm.DataLoader(shop.split('val'), batch_size=5, device='cpu')


class Count:
    """Rows, by a class without torch."""

    def reset(self):
        self.rows = 0

    def update(self, predicted, target):
        assert len(predicted) == len(target)
        self.rows += len(target)

    def compute(self):
        return {'rows': self.rows, 'nothing': float('nan')}


def test_torchmetrics_on_labelled_rows_give_our_own_numbers(model, val):
    t = pytest.importorskip('torchmetrics')
    there = t.classification
    metrics = {
        'kind': {
            'accuracy_theirs': there.MulticlassAccuracy(3, average='micro'),
            'f1_theirs': there.MulticlassF1Score(3, average='macro'),
            'recall': there.MulticlassRecall(3, average='none'),
        },
        'tags': {
            'f1_theirs': there.MultilabelF1Score(4, average='micro'),
            'map_theirs': there.MultilabelAveragePrecision(4, average='macro'),
        },
        'price': {'all': t.MetricCollection({'mae': t.MeanAbsoluteError(), 'r2': t.R2Score()})},
    }
    found = mm.evaluate(model, val, metrics=metrics)
    plain = mm.evaluate(model, val)
    for task, own in metrics.items():
        assert {name: found[task][name] for name in plain[task]} == plain[task]
        assert not any(getattr(each, 'update_called', False) for each in own.values())  # reset afterwards
    kind, tags, price = found['kind'], found['tags'], found['price']
    assert kind['accuracy_theirs'] == pytest.approx(kind['accuracy'])
    assert kind['f1_theirs'] == pytest.approx(kind['macro_f1'])
    assert len(kind['recall']) == 3
    assert tags['f1_theirs'] == pytest.approx(tags['micro_f1'])
    assert tags['map_theirs'] == pytest.approx(tags['map'])
    assert price['all.mae'] == pytest.approx(price['mae'])
    assert price['all.r2'] == pytest.approx(price['r2'], abs=1e-5)


def test_any_object_of_the_contract_is_given_labelled_rows_alone(model, val, shop):
    found = mm.evaluate(model, val, metrics={'price': {'count': Count()}})['price']
    assert found['count.rows'] == found['n'] == shop.split('val').read('price')[1].sum() < len(val.rows)
    assert found['count.nothing'] is None
    json.dumps(found, allow_nan=False)


def test_without_rows_a_metric_is_none_and_its_object_is_not_asked(model):
    assert mm.evaluate(model, [], metrics={'price': {'count': Count()}})['price']['count'] is None


def test_in_a_report_it_has_an_interval(model, val):
    t = pytest.importorskip('torchmetrics')
    found = mm.report(model, val, bootstrap=200, metrics={'price': {'theirs': t.MeanAbsoluteError()}})
    ours, theirs = (found['price'].metrics[name] for name in ('mae', 'theirs'))
    assert (theirs.value, theirs.low, theirs.high) == pytest.approx((ours.value, ours.low, ours.high), rel=1e-5)


def test_what_is_no_metric_of_these_tasks_is_refused(model, val):
    for metrics, said in (
        ({'prize': {'count': Count()}}, "names the task 'prize'; there are kind, tags, price"),
        ({'price': {'mae': Count()}}, "has a metric 'mae' already"),
        ({'price': {'count': 3}}, 'is a int without update, compute, reset'),
    ):
        with pytest.raises(ConfigError, match=said):
            mm.evaluate(model, val, metrics=metrics)


SCRIPT = """
import json, sys
import torch, torchmetrics
sys.path[:0] = sys.argv[5:]
import mmpipe as mm
from test_own_metrics import Count, build

shards, weights, meeting, rank = *sys.argv[1:4], int(sys.argv[4])
torch.set_num_threads(1)
torch.distributed.init_process_group('gloo', init_method=f'file://{meeting}', rank=rank, world_size=2)
model = build()
from mmpipe.models.weights_file import load_weights, put_weights
put_weights(model, load_weights(weights), source='test')
rows = mm.open_snapshot(shards).split('val')
class Sum(torchmetrics.SumMetric):
    def update(self, predicted, target):
        super().update(target)
metrics = {'price': {'sum': Sum(), 'count': Count()}, 'kind': {'auroc': torchmetrics.classification.MulticlassAUROC(3)}}
asks = metrics['price']['sum'].distributed_available_fn
found = [mm.evaluate(model, mm.DataLoader(some, batch_size=5, device='cpu'), metrics=metrics)
         for some in (rows.take(range(23)), rows.take([1]))]
assert metrics['price']['sum'].distributed_available_fn is asks
with open(f'{meeting}-{rank}.json', 'w') as file:
    json.dump(found, file)
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_over_ranks_each_row_counts_once(model, shop, tmp_path):
    t = pytest.importorskip('torchmetrics')
    from mmpipe.models.weights_file import save_weights

    save_weights(model, tmp_path / 'model.safetensors')
    script = tmp_path / 'ranks.py'
    script.write_text(SCRIPT)
    folders = [os.path.dirname(__file__), *(path for path in sys.path if path.endswith('support'))]
    command = [sys.executable, script, shop.root, tmp_path / 'model.safetensors', tmp_path / 'meet']
    ranks = [
        subprocess.Popen(
            [*map(str, command), str(rank), *folders],
            env={**os.environ, 'OMP_NUM_THREADS': '1'}, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    said = [process.communicate(timeout=120)[1] for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], said
    first, second = (json.loads((tmp_path / f'meet-{rank}.json').read_text()) for rank in range(2))
    assert first == second
    rows = shop.split('val').take(range(23))
    prices, there = rows.read('price')
    assert first[0]['price']['sum'] == pytest.approx(float(prices[there].sum()))
    assert first[0]['price']['count.rows'] == there.sum()
    alone = mm.evaluate(
        model, mm.DataLoader(rows, batch_size=5, device='cpu'),
        metrics={'kind': {'auroc': t.classification.MulticlassAUROC(3)}},
    )  # fmt: skip
    assert first[0]['kind']['auroc'] == pytest.approx(alone['kind']['auroc'], rel=1e-5)
