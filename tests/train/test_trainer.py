"""Training a model and recording how."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from shop_snapshot import KINDS, TAGS, write_shop
from torch import nn
from torch.utils.data import DataLoader as TorchDataLoader

from mmpipe.data import DataLoader, ShardDataset, transforms
from mmpipe.errors import ConfigError, DataError, LabelError, ModelError, RunError, TrainError
from mmpipe.models import BareModel, MultitaskModel, encoders, load_model
from mmpipe.runs import ChangedSourceWarning, open_run, update_run
from mmpipe.train import Trainer, classification, evaluate, multilabel, predict, regression

TASKS = [classification('kind', KINDS), regression('price'), multilabel('tags', TAGS)]


def build(*, hidden=16, tasks=TASKS, dropout=0.1):
    return MultitaskModel(
        encoders={
            'title': encoders.vector(8, 16, dropout=dropout),
            'frames': encoders.sequence(4, 8, dropout=dropout),
        },
        tasks=list(tasks), hidden=hidden, dropout=dropout,
    )  # fmt: skip


def build_every_modality():
    return MultitaskModel(
        encoders={
            'photo': encoders.image(8, width=8),
            'title': encoders.vector(8, 8),
            'frames': encoders.sequence(4, 8),
            'mel': encoders.spectrogram(16, 8, width=8),
            'weight': encoders.vector(1, 8),
        },
        tasks=TASKS, hidden=16, modality_dropout=0.2,
    )  # fmt: skip


def build_two_tasks():
    return build(tasks=TASKS[:2])


def build_no_dropout():
    return build(dropout=0.0)


def loaders(snapshot, batch_size=16, **options):
    train = DataLoader(snapshot.split('train'), batch_size=batch_size, shuffle=True, device='cpu', **options)
    return train, DataLoader(snapshot.split('val'), batch_size=32, device='cpu', **options)


def weights(run):
    return load_model(run).state_dict()


def assert_equal_weights(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


@pytest.fixture
def trainer(tmp_path):
    return Trainer(epochs=2, runs=tmp_path / 'runs', lr=3e-3)


def test_every_modality_and_kind_of_task_trains_and_the_model_is_rebuilt_from_the_run(shop, trainer):
    train, val = loaders(shop, transforms={'photo': transforms.image(crop=12, flip=True)})
    run = trainer.fit(build_every_modality, train, val)
    assert run.status == 'finished'
    assert run.id == 'shop/0001'
    model = load_model(run)
    assert not model.training
    val = loaders(shop, transforms={'photo': transforms.image(crop=12, flip=True)})[1]
    assert evaluate(model, val) == run.metrics
    assert set(run.metrics) == {'kind', 'price', 'tags'}


def test_training_learns(tmp_path):
    snapshot = write_shop(tmp_path / 'shop', 240, holes=0.1)
    run = Trainer(epochs=25, lr=5e-3, runs=tmp_path).fit(build, *loaders(snapshot, 32))
    assert run.metrics['kind']['accuracy'] > 0.7
    assert run.metrics['price']['r2'] > 0.5
    assert run.metrics['tags']['map'] > 0.7


def test_the_record_says_what_was_trained_on_what(shop, trainer):
    train, val = loaders(shop)
    run = trainer.fit(build, train, val, args={'hidden': 8}, name='demo')
    record = json.loads((run.path / 'run.json').read_text())
    assert run.id == record['id'] == 'demo/0001'
    assert record['factory']['qualname'] == 'build'
    assert record['factory']['args'] == {'hidden': 8}
    assert record['snapshot'] == {'id': shop.id, 'root': shop.root, 'versions': {}}
    assert record['rows']['train'] == len(train.rows)
    assert record['trainer']['lr'] == 3e-3
    assert record['parent'] is None
    assert record['cannot'] == {}
    assert record['versions']['torch'] == torch.__version__.split('+')[0]
    assert run.trained_on(train.rows.hashes).all()
    assert not run.trained_on(val.rows.hashes).any()
    epochs = [line for line in run.history() if 'epoch' in line]
    assert [line['epoch'] for line in epochs] == [0, 1]
    assert epochs[-1]['val'] == run.metrics


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(shop, tmp_path):
    def train(seed):
        torch.manual_seed(np.random.default_rng().integers(2**31))  # what the caller did to the generator is no matter
        return weights(Trainer(epochs=2, runs=tmp_path, seed=seed).fit(build, *loaders(shop)))

    one, two, other = train(0), train(0), train(1)
    assert_equal_weights(one, two)
    assert not torch.equal(one['fusion.layers.0.weight'], other['fusion.layers.0.weight'])


def test_the_generators_and_loaders_of_the_caller_are_left_alone(shop, trainer):
    train, val = loaders(shop)
    before = torch.random.get_rng_state()
    trainer.fit(build, train, val)
    assert torch.equal(before, torch.random.get_rng_state())
    assert train.state_dict()['epoch'] == 0


def test_accumulated_micro_batches_weigh_every_label_alike(shop, tmp_path):
    """One batch of 24 and three of 8 are the same step, although labels are spread unevenly over the three."""
    results = []
    for batch_size, accumulate in ((24, 1), (8, 3)):
        trainer = Trainer(epochs=2, runs=tmp_path, accumulate=accumulate, log_every=1, lr=1e-3)
        run = trainer.fit(build_no_dropout, *loaders(shop, batch_size))
        results.append(([line['loss'] for line in run.history() if 'loss' in line], weights(run)))
    (losses, one), (accumulated, two) = results
    assert losses == pytest.approx(accumulated, abs=1e-5)
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=1e-4, rtol=1e-3)


def test_bf16_trains_with_weights_in_float32(shop, tmp_path):
    run = Trainer(epochs=2, runs=tmp_path, precision='bf16').fit(build, *loaders(shop))
    assert all(value.dtype in (torch.float32, torch.bool) for value in weights(run).values())
    assert np.isfinite(run.metrics['price']['rmse'])
    # The mean of the price is 100: bf16 would round it to a multiple of 0.5.
    output = predict(load_model(run), loaders(shop)[1], precision='bf16')['price']
    assert output.dtype == np.float32
    assert (output * 2 != np.round(output * 2)).any()


def test_buffers_are_fitted_on_the_training_rows_only(shop, trainer):
    run = trainer.fit(build, *loaders(shop))
    found = weights(run)
    values, valid = shop.split('train').read('price')
    assert found['heads.price.standardize.mean'] == pytest.approx(values[valid].mean(), rel=1e-5)
    assert found['heads.price.standardize.std'] == pytest.approx(values[valid].std(), rel=1e-5)


def test_a_step_without_a_label_of_a_task_leaves_its_head_as_it_was(shop, tmp_path):
    rows = shop.split('train')
    unlabelled = rows.take(np.flatnonzero(~rows.read('price')[1]))
    base = Trainer(epochs=1, runs=tmp_path, weight_decay=0.5).fit(build, *loaders(shop))
    # Continued on rows that have no price at all but one: drop that one in the last, smaller batch.
    labelled = int(np.flatnonzero(rows.read('price')[1])[0])
    positions = [*np.flatnonzero(~rows.read('price')[1]), labelled]
    train = DataLoader(rows.take(positions), batch_size=len(unlabelled), device='cpu', shuffle=False, drop_last=True)
    run = Trainer(epochs=3, runs=tmp_path, weight_decay=0.5, log_every=1).fit(build, train, continue_from=base)
    before, after = weights(base), weights(run)
    for name in before:
        if name.startswith('heads.price'):
            assert torch.equal(before[name], after[name]), name
    assert not torch.equal(before['heads.kind.linear.weight'], after['heads.kind.linear.weight'])
    assert all(np.isfinite(line['loss']) for line in run.history() if 'loss' in line)


def test_a_step_without_any_label_changes_nothing_at_all(shop, tmp_path):
    rows = shop.split('train')
    price = rows.read('price')[1]
    positions = [*np.flatnonzero(~price), int(np.flatnonzero(price)[0])]
    train = DataLoader(rows.take(positions), batch_size=len(positions) - 1, device='cpu', drop_last=True)
    base = Trainer(epochs=1, runs=tmp_path).fit(build_price, *loaders(shop))
    trainer = Trainer(epochs=2, runs=tmp_path, weight_decay=0.5, log_every=1, clip=1.0)
    run = trainer.fit(build_price, train, continue_from=base)
    assert_equal_weights(weights(base), weights(run))
    assert [line['loss'] for line in run.history() if 'loss' in line] == [0.0, 0.0]
    assert [line['train'] for line in run.history() if 'epoch' in line] == [{'price': None}] * 2


def build_price():
    return build(tasks=TASKS[1:2])


def test_a_loss_that_is_not_finite_stops_with_the_task_and_the_step(shop, tmp_path):
    with pytest.raises(TrainError, match=r'loss of .*price.* is not finite at step'):
        Trainer(epochs=60, runs=tmp_path, lr=1e18, log_every=1).fit(build_no_dropout, *loaders(shop))
    run = open_run('shop', runs=tmp_path)
    assert run.status == 'failed'
    assert 'not finite' in run.record['error']


def test_progress_counts_rows_of_all_epochs(shop, tmp_path):
    seen = []
    trainer = Trainer(epochs=3, max_steps=7, runs=tmp_path, progress=lambda *what: seen.append(what))
    trainer.fit(build, *loaders(shop, 24))  # 72 rows: 3 steps an epoch
    assert [done for _, done, _, _ in seen] == [24, 48, 72, 96, 120, 144, 168]
    assert {(stage, total, unit) for stage, _, total, unit in seen} == {('train', 168, 'rows')}


def test_a_module_of_ones_own_trains_in_place_and_its_run_says_what_it_cannot_do(shop, trainer):
    module = nn.Linear(8, 3)
    before = module.weight.detach().clone()
    run = trainer.fit(BareModel(module, inputs='title', tasks=TASKS[:1]), *loaders(shop))
    assert not torch.equal(before, module.weight)
    assert 'BareModel was passed' in run.cannot['rebuild']
    with pytest.raises(RunError, match='cannot be rebuilt'):
        load_model(run)
    run = trainer.fit(lambda: build(), *loaders(shop))
    assert 'lambda' in run.cannot['rebuild']


def test_a_module_that_takes_batches_trains_with_tasks_given_to_fit(shop, trainer):
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(8, 3)

        def forward(self, batch):
            return {'kind': self.layer(batch['title'])}

    run = trainer.fit(Own(), *loaders(shop), tasks=TASKS[:1])
    assert run.metrics['kind']['n'] > 0
    with pytest.raises(ConfigError, match='has no tasks'):
        trainer.fit(Own(), *loaders(shop))


def test_a_run_where_a_model_is_meant_is_an_error_that_says_what_to_pass(shop, trainer):
    train, val = loaders(shop)
    run = trainer.fit(build, train)
    for wrong in (run, run.path, 'shop/0001'):
        for use in (evaluate, predict, lambda model, loader: evaluate(model, loader, tasks=TASKS)):
            with pytest.raises(ConfigError, match=r'is no model: pass mm\.load_model\(run\)'):
                use(wrong, val)
    with pytest.raises(ConfigError, match=r'<Run shop/0001: finished>: pass a factory with continue_from=run'):
        trainer.fit(run, train)
    with pytest.raises(ConfigError, match=r'that of a run is mm\.load_model\(run\)'):
        BareModel(run, inputs='title', tasks=TASKS[:1])


def test_bad_labels_missing_fields_and_wrong_loaders_are_refused_before_a_run_is_made(shop, trainer, tmp_path):
    train, val = loaders(shop)
    few = DataLoader(shop.split('train'), batch_size=8, device='cpu', fields=['title', 'kind'])
    with pytest.raises(LabelError, match="'sku-"):
        trainer.fit(build, train, val, args={}, tasks=[classification('kind', 2)])
    with pytest.raises(DataError, match=r"'frames'.*train loader"):
        trainer.fit(build, few, val)
    with pytest.raises(ConfigError, match=r'mm\.DataLoader'):
        trainer.fit(build, TorchDataLoader(ShardDataset(shop.split('train'))), val)
    with pytest.raises(ConfigError, match='survive JSON'):
        trainer.fit(build, train, val, args={'tasks': TASKS})
    with pytest.raises(ConfigError, match=r'not an nn\.Module'):
        trainer.fit(dict, train, val)
    with pytest.raises(TrainError, match='no batch to train on'):
        trainer.fit(build, DataLoader(shop.split('train'), batch_size=500, drop_last=True, device='cpu'), name='x')
    assert not (tmp_path / 'runs' / 'shop').exists()


@pytest.mark.parametrize(
    'options',
    [
        {'epochs': 0},
        {'lr': 0},
        {'precision': 'int8'},
        {'skip_nonfinite': -1},
        {'balancing': 'equal'},
        {'callbacks': [print]},
        {'accumulate': 0},
        {'schedule': 'step'},
        {'warmup': -1},
        {'epochs': 1.5},
    ],
)
def test_settings_that_cannot_work_are_refused_early(options):
    with pytest.raises(ConfigError):
        Trainer(**options)


def test_source_that_changed_or_fits_no_more_is_told(shop, trainer):
    run = trainer.fit(build, *loaders(shop))
    changed = update_run(run, factory={**run.record['factory'], 'fingerprint': '0' * 64})
    with pytest.warns(ChangedSourceWarning, match='shop/0001'):
        load_model(changed)
    update_run(run, factory={**run.record['factory'], 'args': {'hidden': 99}})
    with pytest.raises(ModelError, match='do not fit'):
        load_model(run)


def test_predictions_come_in_the_order_of_the_loader(shop, trainer):
    run = trainer.fit(build, *loaders(shop))
    _, val = loaders(shop)
    found = predict(load_model(run), val)
    assert found['_key'] == list(val.rows.keys)
    assert found['kind'].shape == (len(val.rows), 3)


def test_evaluation_of_a_split_without_labels_is_none_not_nan(shop, trainer):
    run = trainer.fit(build, *loaders(shop))
    rows = shop.split('val')
    rows = rows.take(np.flatnonzero(~rows.read('price')[1]))
    found = evaluate(load_model(run), DataLoader(rows, batch_size=8, device='cpu'))
    assert found['price'] == {'loss': None, 'mae': None, 'rmse': None, 'r2': None, 'n': 0}
    assert found['kind']['n'] == int(rows.read('kind')[1].sum())


@pytest.mark.gpu
@pytest.mark.parametrize('precision', ['fp32', 'bf16'])
def test_on_cuda_training_gives_what_the_cpu_gives(shop, tmp_path, precision):
    found = []
    for device in ('cpu', 'cuda'):
        train = DataLoader(shop.split('train'), batch_size=16, shuffle=True, device=device)
        val = DataLoader(shop.split('val'), batch_size=32, device=device)
        trainer = Trainer(epochs=3, runs=tmp_path, precision=precision)
        torch.manual_seed(0)
        model = build_no_dropout()  # on the CPU both times: a device has random numbers of its own
        found.append(trainer.fit(model, train, val).metrics['price']['rmse'])
    assert found[0] == pytest.approx(found[1], rel=0.05)
