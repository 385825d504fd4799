"""A real SuperLink and real SuperNodes, processes of their own that speak over TLS on loopback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from federation import write_clients
from flower_processes import deployment, make_certificates

import mmpipe as mm

KILLS = Path(__file__).parents[2] / 'benchmarks' / 'federated_kills.py'
TIMEOUT_S = '45'  # where tests share the cores with others
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


def killed(count, seed, folder):
    command = [sys.executable, str(KILLS), str(count), str(seed), str(folder), TIMEOUT_S]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found['kills'] == found['right'] == count, found
    assert found['others_right'], found
    assert found['finished'], found
    assert sum(found['replies']) > count, found  # of three clients, mostly two are left
    return found


@pytest.mark.slow
@pytest.mark.timeout(420)
def test_rounds_go_on_without_clients_that_are_killed_and_come_to_the_mean_of_the_others(tmp_path):
    killed(2, 0, tmp_path)


@pytest.mark.hardening
@pytest.mark.timeout(2400)
def test_a_federation_finishes_right_through_twenty_kills_of_supernodes_and_of_trainings(tmp_path):
    found = killed(20, 1, tmp_path)
    assert set(found['kinds']) == {'node', 'training'}
    assert found['killed_while_training'] > 0
    assert found['longest_round_s'] < 60
