"""Differential privacy is Flower's; what is stated for it is recomputed here by another way."""

from __future__ import annotations

import importlib.util
import math

import numpy as np
import pytest
from federation import build_plain, client, server

import mmpipe as mm
from mmpipe.errors import ConfigError
from mmpipe.federated import central_dp, gaussian_epsilon, local_dp

strategies = pytest.importorskip('flwr.serverapp.strategy')
NUMBERS = [(1.0, 1, 1e-5), (4.0, 10, 1e-5), (0.7, 100, 1e-3), (30.0, 3, 1e-6)]


@pytest.fixture(autouse=True)
def known_noise():
    before = np.random.get_state()
    np.random.seed(0)
    yield
    np.random.set_state(before)


@pytest.mark.parametrize(('noise', 'releases', 'delta'), NUMBERS)
def test_epsilon_is_the_least_over_the_orders_of_renyi_privacy(noise, releases, delta):
    orders = 1 + np.geomspace(1e-4, 1e5, 200_000)
    least = (orders * releases / (2 * noise**2) + math.log(1 / delta) / (orders - 1)).min()
    assert gaussian_epsilon(noise, releases=releases, delta=delta).epsilon == pytest.approx(least, rel=1e-6)


@pytest.mark.skipif(not importlib.util.find_spec('dp_accounting'), reason='flwr[dp] is not installed')
@pytest.mark.parametrize(('noise', 'releases', 'delta'), NUMBERS)
def test_flowers_own_accountant_says_no_more(noise, releases, delta):
    from flwr.serverapp import (
        GaussianPrivacyEvent,
        NeighboringRelation,
        PrivacyConfig,
        RdpAccountant,
        SamplingMethod,
    )

    config = PrivacyConfig(delta, 4, NeighboringRelation.ADD_OR_REMOVE_ONE, SamplingMethod.NO_AMPLIFICATION)
    theirs = RdpAccountant(config)
    theirs.compose(GaussianPrivacyEvent(noise, 4, 4), releases)
    ours = gaussian_epsilon(noise, releases=releases, delta=delta).epsilon
    assert 0.6 * ours < theirs.get_epsilon(delta) <= ours * (1 + 1e-9)


def private(roots, tmp_path, *, lr, **settings):
    sent = []
    strategy = central_dp(strategies.FedAvg(), **{'clients': 4, 'delta': 1e-3, 'clipping_norm': 0.5, **settings})
    app = client(tmp_path, trainer=mm.Trainer(runs=tmp_path, lr=lr))
    run = mm.federated.simulate(server(tmp_path, strategy, rounds=3), app, roots, listen=sent.append)
    asked = [m for m in sent if m.metadata.src_node_id == 1 and m.metadata.message_type == 'train']
    return run, [np.concatenate([a.numpy().ravel() for a in m.content['arrays'].values()]) for m in asked[::4]]


def test_the_noise_on_the_mean_is_as_stated_and_the_run_records_epsilon(roots, tmp_path):
    run, models = private(roots, tmp_path, lr=1e-6, noise_multiplier=2.0)
    steps = np.diff(models, axis=0)
    assert (steps != 0).all()  # the parameter that is a single number has its noise, too
    assert steps.std() == pytest.approx(2.0 * 0.5 / 4, rel=0.3)
    stated = gaussian_epsilon(2.0, releases=3, delta=1e-3)
    assert run.record['privacy'] == {'epsilon': pytest.approx(stated.epsilon), 'delta': 1e-3}


def test_updates_are_clipped_before_they_are_averaged(roots, tmp_path):
    _, models = private(roots, tmp_path, lr=1.0, noise_multiplier=1e-6)
    assert (np.linalg.norm(np.diff(models, axis=0), axis=1) <= 0.5 * 1.001).all()


def test_a_round_that_a_client_missed_is_left_out_since_its_noise_would_be_too_small(roots, tmp_path):
    def failing(snapshot, split):
        raise OSError

    bad = mm.federated.client_app(build_plain, failing, trainer=mm.Trainer(runs=tmp_path))
    strategy = central_dp(strategies.FedAvg(), noise_multiplier=1.0, clipping_norm=1.0, clients=4, delta=1e-3)
    with pytest.raises(mm.MmpipeError, match='could be put together'):
        mm.federated.simulate(server(tmp_path, strategy), [client(tmp_path)] * 3 + [bad], roots)
    assert strategy.privacy_spent().epsilon == 0


def test_the_budget_ends_a_federation(roots, tmp_path):
    limit = gaussian_epsilon(2.0, releases=2, delta=1e-3).epsilon * 1.01
    with pytest.raises(Exception, match='would exceed max_epsilon'):
        private(roots, tmp_path, lr=0.01, noise_multiplier=2.0, max_epsilon=limit)
    run = mm.open_run(tmp_path / 'federated' / '0001')
    assert run.status == 'failed'
    assert int(run.newest_checkpoint().name) == 2  # what was paid for is kept


def test_local_noise_is_on_each_message_and_clients_need_not_trust_the_server(roots, tmp_path):
    mod, spent = local_dp(noise_multiplier=3.0, clipping_norm=0.5, rounds=1, delta=1e-5)
    sent = []
    trainer = mm.Trainer(runs=tmp_path, lr=1e-6)
    app = client(tmp_path, trainer=trainer, mods=[mod])
    mm.federated.simulate(server(tmp_path, strategies.FedAvg(), rounds=1), app, roots, listen=sent.append)
    asked, answered = (
        [
            np.concatenate([a.numpy().ravel() for a in m.content['arrays'].values()])
            for m in sent
            if m.metadata.message_type == 'train' and (m.metadata.src_node_id == 1) == from_server
        ]
        for from_server in (True, False)
    )
    noise = np.array(answered) - np.array(asked)
    assert (noise != 0).all()
    assert noise.std() == pytest.approx(3.0 * 2 * 0.5, rel=0.3)  # two clipped updates can lie two norms apart
    assert spent.epsilon == gaussian_epsilon(3.0, releases=1, delta=1e-5).epsilon


def test_accounting_goes_on_from_its_state_and_answers_for_other_deltas():
    from flwr.serverapp import GaussianPrivacyEvent

    one, other = (
        central_dp(strategies.FedAvg(), noise_multiplier=2.0, clipping_norm=1.0, clients=4, delta=1e-4).accountant
        for _ in range(2)
    )
    one.compose(GaussianPrivacyEvent(2.0, 4, 4), 5)
    other.load_state_dict(one.state_dict())
    assert other.num_releases == 5
    assert other.get_epsilon(1e-6) == one.get_epsilon(1e-6) > one.get_privacy_spent().epsilon
    assert one.get_delta(one.get_epsilon(1e-6)) == pytest.approx(1e-6)


def test_what_the_formula_does_not_cover_is_refused():
    settings = {'noise_multiplier': 1.0, 'clipping_norm': 1.0, 'clients': 4, 'delta': 1e-3}
    with pytest.raises(ConfigError, match=r'FedAvg.aggregate_train'):
        central_dp(strategies.FedMedian(), **settings)
    with pytest.raises(ConfigError, match='noise multiplier must be positive'):
        central_dp(strategies.FedAvg(), **{**settings, 'noise_multiplier': 0.0})
    with pytest.raises(ConfigError, match='between 0 and 1'):
        gaussian_epsilon(1.0, releases=1, delta=2.0)
