"""The server takes any strategy of Flower's, goes on without clients that fail, and leaves a run."""

from __future__ import annotations

import pytest
import torch
from federation import ROUNDS, batches, build_plain, client, server
from shop_snapshot import write_shop

import mmpipe as mm
from mmpipe.errors import ConfigError, MmpipeError, TrainError
from mmpipe.federated.exchange import shared_names, to_arrays
from mmpipe.models.rebuild import run_weights

strategies = pytest.importorskip('flwr.serverapp.strategy')


def accuracy(strategy, roots, tmp_path, *, poison=None, rounds=6):
    """Of the global model on a shop that no client has, with one client that poisons."""
    trainer = mm.Trainer(runs=tmp_path, lr=0.02, epochs=2)
    apps = [client(tmp_path, trainer=trainer, mods=[] if poison is None or number else [poison]) for number in range(4)]
    other = write_shop(tmp_path / 'other', 400, seed=99, holes=0.0)
    app = server(tmp_path, strategy, rounds=rounds, val=lambda: batches(other, 'val'))
    run = mm.federated.simulate(app, apps, roots)
    return run.history()[-1]['server']['kind.accuracy']


def poison(message, context, call_next):
    """Send the update turned round and ten times as large."""
    from flwr.app import Array, ArrayRecord

    came = {name: array.numpy().copy() for name, array in message.content['arrays'].items()}
    reply = call_next(message, context)
    sent = {name: came[name] - 10 * (array.numpy() - came[name]) for name, array in reply.content['arrays'].items()}
    reply.content['arrays'] = ArrayRecord({name: Array(value) for name, value in sent.items()})
    return reply


def test_a_median_withstands_a_poisoning_client_and_a_mean_does_not(roots, tmp_path):
    honest = accuracy(strategies.FedAvg(), roots, tmp_path / 'honest')
    poisoned = accuracy(strategies.FedAvg(), roots, tmp_path / 'mean', poison=poison)
    robust = accuracy(strategies.FedMedian(), roots, tmp_path / 'median', poison=poison)
    krum = accuracy(strategies.Krum(num_malicious_nodes=1), roots, tmp_path / 'krum', poison=poison)
    assert honest > 0.8
    assert poisoned < honest - 0.3
    assert min(robust, krum) > max(honest - 0.15, poisoned + 0.2)


@pytest.mark.parametrize(
    'make',
    [
        lambda: strategies.FedAdam(eta=0.01),
        lambda: strategies.FedAvgM(server_momentum=0.5),
        lambda: strategies.FedTrimmedAvg(beta=0.25),
        lambda: strategies.Bulyan(num_malicious_nodes=0),
    ],
    ids=['FedAdam', 'FedAvgM', 'FedTrimmedAvg', 'Bulyan'],
)
def test_other_strategies_run_as_they_are(make, roots, tmp_path):
    run = mm.federated.simulate(server(tmp_path, make()), client(tmp_path), roots)
    assert run.status == 'finished'
    assert set(run.metrics) == {'kind'}


def test_a_round_goes_on_without_clients_that_fail(roots, tmp_path):
    def failing(snapshot, split):
        raise OSError('the disk is gone')

    bad = mm.federated.client_app(build_plain, failing, trainer=mm.Trainer(runs=tmp_path))
    apps = [client(tmp_path / 'three') for _ in range(3)]
    some = mm.federated.simulate(server(tmp_path, strategies.FedAvg()), [*apps, bad], roots)
    three = mm.federated.simulate(server(tmp_path, strategies.FedAvg()), apps, roots[:3])
    for name, tensor in run_weights(some).items():
        torch.testing.assert_close(tensor, run_weights(three)[name], rtol=1e-6, atol=1e-7)


def test_a_client_that_leaves_between_rounds_is_missed_and_comes_back(roots, tmp_path):
    trained = []
    grid = mm.federated.in_process_grid(
        [client(tmp_path)] * 4, roots, listen=lambda message: trained.append(message.metadata.src_node_id)
    )
    away = {1: {3, 5}, 2: set()}

    def between(turn, arrays):
        asked.append({node for node in trained if node != 1})
        trained.clear()
        grid.away = away.get(turn, set())

    asked: list[set[int]] = []
    plain = build_plain()
    start = to_arrays(plain.state_dict(), shared_names(plain, 'local'))
    strategies.FedAvg().start(grid, start, num_rounds=3, evaluate_fn=between)
    assert asked == [set(), {2, 3, 4, 5}, {2, 4}, {2, 3, 4, 5}]


def test_a_federation_in_which_nobody_trained_is_an_error_and_a_failed_run(roots, tmp_path):
    def failing(snapshot, split):
        raise OSError('the disk is gone')

    bad = mm.federated.client_app(build_plain, failing, trainer=mm.Trainer(runs=tmp_path))
    with pytest.raises(TrainError, match='no training of clients could be put together'):
        mm.federated.simulate(server(tmp_path, strategies.FedAvg()), bad, roots)
    assert mm.open_run(tmp_path / 'federated' / '0001').status == 'failed'


def test_the_run_gives_the_model_its_metrics_per_round_and_a_start_for_another(roots, tmp_path):
    first = mm.federated.simulate(server(tmp_path, strategies.FedAvg()), client(tmp_path), roots)
    assert [line['round'] for line in first.history()] == list(range(1, ROUNDS + 1))
    assert first.metrics['kind']['accuracy'] == first.history()[-1]['evaluate']['kind.accuracy']
    model = mm.load_model(first)
    assert set(model.state_dict()) == set(build_plain().state_dict())
    sent = []
    again = server(tmp_path, strategies.FedAvg(), initial=first)
    mm.federated.simulate(again, client(tmp_path), roots, listen=sent.append)
    begun = sent[0].content['arrays']
    for name, tensor in model.named_parameters():
        torch.testing.assert_close(torch.tensor(begun[name].numpy()).reshape(tensor.shape), tensor.detach())


def test_what_cannot_work_is_refused_when_the_app_is_made(tmp_path):
    with pytest.raises(ConfigError, match=r'a strategy of flwr.serverapp.strategy'):
        server(tmp_path, 'FedAvg')
    with pytest.raises(ConfigError, match='rounds=0'):
        server(tmp_path, strategies.FedAvg(), rounds=0)


def test_a_strategy_that_waits_for_more_clients_than_there_are_is_an_error(roots, tmp_path):
    with pytest.raises(ConfigError, match=r'more than the 1 node here.* min_available_nodes=1'):
        mm.federated.simulate(server(tmp_path, strategies.FedAvg()), client(tmp_path), roots[:1])
    assert mm.open_run(tmp_path / 'federated' / '0001').status == 'failed'


def test_another_version_of_flower_is_refused_where_private_names_are_used(roots, tmp_path, monkeypatch):
    from mmpipe.federated import engine

    monkeypatch.setattr(engine.metadata, 'version', lambda name: '1.50.0')
    with pytest.raises(MmpipeError, match=r"written for Flower 1.41, and 1.50.0 is installed: pip install 'flwr==1.41"):
        mm.federated.simulate(server(tmp_path, strategies.FedAvg()), client(tmp_path), roots)


def test_telemetry_is_off():
    from flwr.supercore import telemetry

    assert telemetry.FLWR_TELEMETRY_ENABLED == '0'
