"""A real SuperLink and real SuperNodes, processes of their own that speak over TLS on loopback."""

from __future__ import annotations

import random
import time

import pytest
from federation import write_clients
from flower_processes import deployment, kill_group, make_certificates

import mmpipe as mm

CODE = """
import sys
sys.path.insert(0, {support!r})
from federation import client as client_of, server as server_of
from flwr.serverapp.strategy import FedAvg

client = client_of({runs!r})
server = server_of({runs!r}, FedAvg(min_train_nodes={least}, min_evaluate_nodes={least}, min_available_nodes={least}),
                   rounds={rounds}, timeout={timeout})
"""


def code(tmp_path, *, rounds, least, timeout=60.0):
    from pathlib import Path

    support = str(Path(__file__).parents[1] / 'support')
    return CODE.format(support=support, runs=str(tmp_path / 'runs'), rounds=rounds, least=least, timeout=timeout)


def until(condition, *, seconds, what):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f'{what} did not come in {seconds} s'
        time.sleep(0.2)


def the_run(tmp_path):
    return mm.open_run(tmp_path / 'runs' / 'federated' / '0001')


@pytest.mark.slow
@pytest.mark.timeout(420)
def test_two_supernodes_train_over_tls_as_in_one_process(tmp_path):
    roots = write_clients(tmp_path / 'shops', 2)
    with deployment(tmp_path / 'flower', code(tmp_path, rounds=2, least=2)) as flower:
        for number, root in enumerate(roots):
            flower.node(number, root)
        run = flower.submit()
        assert flower.wait(run, seconds=300) == 'finished:completed', flower.log('link')
    over_the_wire = the_run(tmp_path)
    from federation import client, server
    from flwr.serverapp.strategy import FedAvg

    here = mm.federated.simulate(server(tmp_path / 'here', FedAvg()), client(tmp_path / 'here'), roots)
    assert over_the_wire.status == 'finished'
    theirs, ours = (mm.load_model(each).state_dict() for each in (over_the_wire, here))
    assert all(((theirs[name] - ours[name]).abs() < 1e-5).all() for name in ours)


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_supernode_that_does_not_know_the_authority_takes_no_part(tmp_path):
    (root,) = write_clients(tmp_path / 'shops', 1)
    (tmp_path / 'stranger').mkdir()
    stranger, _, _ = make_certificates(tmp_path / 'stranger')
    with deployment(tmp_path / 'flower', code(tmp_path, rounds=1, least=1)) as flower:
        until(lambda: 'running on https://' in flower.log('link'), seconds=60, what='the SuperLink')
        flower.node(0, root, authority=stranger)
        until(lambda: 'certificate' in flower.log('node-0').lower(), seconds=60, what='the refusal')
        assert 'SuperNode ID' not in flower.log('node-0')


@pytest.mark.hardening
@pytest.mark.timeout(900)
def test_a_client_killed_at_random_costs_its_part_of_a_round(tmp_path):
    roots = write_clients(tmp_path / 'shops', 3)
    draw = random.Random(0)
    with deployment(tmp_path / 'flower', code(tmp_path, rounds=4, least=2, timeout=45.0)) as flower:
        nodes = [flower.node(number, root) for number, root in enumerate(roots)]
        run = flower.submit()
        clients = tmp_path / 'runs' / 'client'
        until(lambda: clients.is_dir() and any(clients.iterdir()), seconds=120, what='the first training')
        time.sleep(draw.uniform(0, 10))  # the moment is what is random
        kill_group(nodes[draw.randrange(3)])
        assert flower.wait(run, seconds=600) == 'finished:completed', flower.log('link')
    found = the_run(tmp_path)
    assert found.status == 'finished'
    assert int(found.newest_checkpoint().name) == 4
    assert mm.load_model(found) is not None
