"""A client's round is `Trainer.fit`, from the weights that came, on rows of its own."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from federation import ROUNDS, batches, build, build_plain, client, server

import mmpipe as mm
from mmpipe.errors import ConfigError
from mmpipe.federated.client import _mixed
from mmpipe.models.encoders.pretrained import do_weights_follow
from mmpipe.models.rebuild import run_weights
from mmpipe.runs import list_runs, update_run
from mmpipe.runs.lock import training

strategies = pytest.importorskip('flwr.serverapp.strategy')


def by_hand(root, runs, weights, turn, trainer):
    loader = batches(mm.open_snapshot(root), 'train').fresh(seed=_mixed(0, turn))
    trainer = dataclasses.replace(trainer, runs=runs, seed=_mixed(0, turn))
    return run_weights(trainer.fit(build_plain, loader, weights=weights))


def test_fedavg_is_the_mean_of_trainings_by_hand(roots, tmp_path):
    trainer = mm.Trainer(lr=0.02)
    run = mm.federated.simulate(server(tmp_path, strategies.FedAvg(), seed=3), client(tmp_path), roots)
    from mmpipe.train.random_numbers import seed_generators

    with torch.random.fork_rng():
        seed_generators(torch.device('cpu'), 3)
        weights = build_plain().state_dict()
    for turn in range(1, ROUNDS + 1):
        each = [by_hand(root, tmp_path / 'hand', weights, turn, trainer) for root in roots]
        weights = {name: torch.stack([one[name] for one in each]).mean(dim=0) for name in weights}
    for name, tensor in run_weights(run).items():
        torch.testing.assert_close(tensor, weights[name], rtol=1e-5, atol=1e-6)


def test_a_round_is_a_run_of_the_client_and_only_the_last_ones_keep_weights(roots, tmp_path):
    apps = [client(tmp_path / str(number), keep_runs=1) for number in range(4)]
    mm.federated.simulate(server(tmp_path, strategies.FedAvg(), rounds=3), apps, roots)
    runs = [mm.open_run(tmp_path / '0' / 'client' / f'{number:04d}') for number in (1, 2, 3)]
    assert [run.record['federated']['round'] for run in runs] == [1, 2, 3]
    assert [run.snapshot['root'] for run in runs] == [roots[0]] * 3
    assert [run.newest_checkpoint() is not None for run in runs] == [False, False, True]


def test_clients_that_share_a_folder_of_runs_drop_only_weights_of_their_own(roots, tmp_path):
    run = mm.federated.simulate(
        server(tmp_path, strategies.FedAvg(), rounds=3), client(tmp_path, keep_runs=2), roots[:3]
    )
    assert run.status == 'finished'
    runs = [mm.open_run(folder) for folder in list_runs('client', runs=tmp_path)]
    kept = [(each.snapshot['root'], each.record['federated']['round']) for each in runs if each.newest_checkpoint()]
    assert sorted(kept) == sorted((root, turn) for root in roots[:3] for turn in (2, 3))


def test_weights_of_a_run_that_is_still_trained_are_not_dropped(roots, tmp_path):
    def round_of(keep_runs):
        alone = strategies.FedAvg(min_train_nodes=1, min_evaluate_nodes=1, min_available_nodes=1)
        app = client(tmp_path, keep_runs=keep_runs)
        mm.federated.simulate(server(tmp_path, alone, rounds=1), app, roots[:1])

    round_of(9)
    round_of(9)
    first = update_run(mm.open_run(tmp_path / 'client' / '0001'), status='running')
    with training(first):
        round_of(1)
    runs = [mm.open_run(folder) for folder in list_runs('client', runs=tmp_path)]
    assert [each.newest_checkpoint() is not None for each in runs] == [True, False, True]


def test_of_the_models_that_a_round_makes_only_the_trained_one_reads_pretrained_weights(roots, tmp_path):
    skips = []

    def factory():
        skips.append(do_weights_follow())
        return build_plain()

    alone = strategies.FedAvg(min_train_nodes=1, min_available_nodes=1, fraction_evaluate=0.0)
    app = client(tmp_path, factory)
    mm.federated.simulate(server(tmp_path, alone, rounds=1), app, roots[:1])
    assert skips == [True, False]  # one for names and shapes


def test_every_round_has_an_order_of_its_own(roots):
    loader = batches(mm.open_snapshot(roots[0]), 'train')
    orders = [[key for batch in loader.fresh(seed=_mixed(0, turn)) for key in batch['_key']] for turn in (1, 2, 1)]
    assert orders[0] == orders[2] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1])


def test_local_buffers_go_on_from_round_to_round_and_differ_between_clients(roots, tmp_path):
    apps = [client(tmp_path / str(number), build) for number in range(4)]
    mm.federated.simulate(server(tmp_path, strategies.FedAvg(), build), apps, roots)
    name = 'encoders.title.standardize.mean'
    means = [
        [run_weights(mm.open_run(tmp_path / str(number) / 'client' / f'{turn:04d}'))[name] for turn in (1, 2)]
        for number in range(2)
    ]
    assert torch.equal(*means[0])
    assert torch.equal(*means[1])
    assert not torch.equal(means[0][0], means[1][0])


def test_the_server_may_set_the_learning_rate_of_a_round(roots, tmp_path):
    app = server(tmp_path, strategies.FedAvg(), rounds=1, train_config={'lr': 0.5, 'epochs': 2})
    mm.federated.simulate(app, client(tmp_path), roots)
    run = mm.open_run(tmp_path / 'client' / '0001')
    assert (run.record['trainer']['lr'], run.record['trainer']['epochs']) == (0.5, 2)


def test_what_cannot_work_is_refused_when_the_app_is_made(tmp_path):
    with pytest.raises(ConfigError, match='function that makes the model'):
        mm.federated.client_app(build_plain(), batches, trainer=mm.Trainer())
    with pytest.raises(ConfigError, match=r"client_app\(weight='all'\)"):
        client(tmp_path, weight='all')
    with pytest.raises(ConfigError, match=r"client_app\(buffers='no'\)"):
        client(tmp_path, buffers='no')
