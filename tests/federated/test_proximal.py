"""FedProx: the client's pull towards the weights of the round."""

from __future__ import annotations

import pytest
import torch
from federation import batches, build, build_plain, client, server
from torch import nn

import mmpipe as mm
from mmpipe.federated.proximal import Proximal
from mmpipe.models.rebuild import run_weights

strategies = pytest.importorskip('flwr.serverapp.strategy')


def distance(root, runs, mu, **settings):
    """How far a training goes from where it began."""
    start = build_plain().state_dict()
    trainer = mm.Trainer(runs=runs, epochs=4, lr=0.05, balancing=Proximal('fixed', mu=mu), **settings)
    found = run_weights(trainer.fit(build_plain, batches(mm.open_snapshot(root), 'train'), weights=start))
    return sum(float((found[name] - start[name]).square().sum()) for name in start) ** 0.5


def test_a_harder_pull_keeps_a_client_nearer(roots, tmp_path):
    far, near, nearest = (distance(roots[0], tmp_path, mu) for mu in (0.0, 1.0, 100.0))
    assert far > near > nearest


def test_the_gradient_is_mu_times_the_way_gone_whatever_the_micro_batches():
    weight = nn.Parameter(torch.tensor([1.0, -2.0]))
    pulled = Proximal('fixed', mu=0.5)
    pulled.prepare([])
    step = {'parameters': [weight], 'scale': lambda loss: loss}
    pulled.backward({'kind': weight.sum()}, share=1.0, **step)
    weight.data += torch.tensor([3.0, 1.0])
    weight.grad = None
    total = sum(pulled.backward({'kind': 0.25 * weight.sum()}, share=0.25, **step) for _ in range(4))
    torch.testing.assert_close(weight.grad, torch.ones(2) + 0.5 * torch.tensor([3.0, 1.0]))
    torch.testing.assert_close(total, weight.detach().sum() + 0.25 * torch.tensor(10.0))


def test_weights_that_a_balancing_learns_are_not_pulled():
    pulled = Proximal('uncertainty', mu=1e6)
    pulled.prepare([mm.classification('kind', 3)])
    own = list(pulled.parameters())
    assert own
    for _ in range(2):
        own[0].grad = None
        pulled.backward({'kind': torch.tensor(1.0)}, share=1.0, parameters=own, scale=lambda loss: loss)
        own[0].data += 1.0
    assert abs(float(own[0].grad)) < 1


def test_the_strategy_tells_clients_and_they_record_it(roots, tmp_path):
    app = server(tmp_path, strategies.FedProx(proximal_mu=0.3), build)
    mm.federated.simulate(app, client(tmp_path, build), roots)
    run = mm.open_run(tmp_path / 'client' / '0001')
    assert run.record['trainer']['balancing'] == 'mmpipe.federated.proximal.Proximal(fixed, mu=0.3)'
