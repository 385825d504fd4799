"""Processes of a training that are killed, stopped or fail: the others say who it was, and the run goes on."""

from __future__ import annotations

import importlib.util
import os
import signal
import time
from pathlib import Path
from types import ModuleType

import pytest

from mmpipe.runs import open_run
from mmpipe.train.group import process_group

SCRIPT = Path(__file__).parents[2] / 'benchmarks' / 'scale_kills.py'
WAYS = {'fsdp': {'parallel': {'dp_shard': 2}}, 'ddp': {}, 'ddp_in_pieces': {'sharded': True}}


@pytest.fixture(scope='module')
def kills() -> ModuleType:
    spec = importlib.util.spec_from_file_location('scale_kills', SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check(found: dict, count: int) -> None:
    assert found['kills'] == found['survived'] == count
    assert found['longest_s'] < 60
    assert found['status'] == 'finished'
    assert found['same_rows'] == found['steps']
    assert found['difference'] <= 1e-6


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize('way', WAYS)
def test_after_kills_each_row_counts_once_and_the_weights_are_those_of_an_undisturbed_run(kills, tmp_path, way):
    check(kills.drive(tmp_path, 2, 1, WAYS[way]), 2)


@pytest.mark.hardening
@pytest.mark.timeout(1800)
def test_a_rank_is_killed_twenty_times(kills, tmp_path):
    check(kills.drive(tmp_path, 20, 2, WAYS['fsdp']), 20)


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize(('before', 'after'), [(2, 4), (4, 1), (1, 2)])
def test_after_a_kill_another_number_of_processes_takes_the_same_steps(kills, tmp_path, before, after):
    kills.write_rows(tmp_path / 'rows')
    options = {'rows': str(tmp_path / 'rows'), 'epochs': 4, 'sharded': True, 'dropout': 0.0}  # whose draws are per rank
    folder = tmp_path / 'disturbed'

    def spread(processes):
        return {**options, 'parallel': {'dp_shard': processes}}

    launcher = kills.launched(folder, spread(before), processes=before)
    kills.until_steps(folder, 0, 8, launcher)
    os.kill(kills.ranks_of(launcher.pid, 0)[before - 1], signal.SIGKILL)
    assert launcher.wait(60) != 0
    (folder / 'seen').rename(folder / 'seen_before')
    kept = int(open_run('ranks', runs=folder / 'runs').checkpoint().name)
    assert kept >= 6
    assert kills.launched(folder, spread(after), processes=after).wait(100) == 0, (folder / 'said').read_text()[-3000:]
    assert kills.launched(tmp_path / 'alone', spread(1), processes=1).wait(100) == 0
    there, wanted = kills.rows_by_step(folder), kills.rows_by_step(tmp_path / 'alone')
    assert min(there) == kept
    assert there == {step: keys for step, keys in wanted.items() if step >= kept}
    one, other = (open_run('ranks', runs=each / 'runs') for each in (folder, tmp_path / 'alone'))
    assert [line['step'] for line in one.history() if 'loss' in line] == list(range(1, len(wanted) + 1))
    assert kills.difference(one, other) <= 1e-6


@pytest.mark.slow
@pytest.mark.timeout(200)
@pytest.mark.parametrize('way', ['fsdp', 'ddp'])
def test_a_rank_that_hangs_is_named_and_nobody_waits_for_ever(kills, tmp_path, way):
    kills.write_rows(tmp_path / 'rows')
    options = {'rows': str(tmp_path / 'rows'), 'epochs': 8, 'timeout_s': 6.0, **WAYS[way]}
    launcher = kills.launched(tmp_path, options, processes=2)
    kills.until_steps(tmp_path, 0, 3, launcher)
    os.kill(kills.ranks_of(launcher.pid, 0)[1], signal.SIGSTOP)
    began = time.monotonic()
    assert launcher.wait(100) != 0
    assert time.monotonic() - began < 60  # torchrun itself gives the one that hangs 30 s to end
    said = (tmp_path / 'said').read_text()
    assert 'TrainError: Rank 1 of 2 took no part in a step for 6 s: it hangs' in said
    assert open_run('ranks', runs=tmp_path / 'runs').status == 'failed'


def test_without_a_launcher_there_is_no_group(monkeypatch):
    monkeypatch.delenv('RANK', raising=False)
    with process_group(timeout_s=1):
        assert 'RANK' not in os.environ
