"""Trainings that are killed go on bit for bit, and saves that are killed leave the old checkpoint or the new one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / 'benchmarks' / 'training_kills.py'


def killed(what: str, count: int, seed: int, folder: Path) -> dict[str, Any]:
    command = [sys.executable, str(SCRIPT), what, str(count), str(seed), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def check_steps(found: dict[str, Any], count: int) -> None:
    assert found['kills'] == count
    assert found['lines'] > count
    assert found['equal'] == found['lines']
    assert {'model.safetensors', 'optimizer.safetensors'} <= found['files'].keys()
    assert all(found['files'].values()), found['files']


def check_saves(found: dict[str, Any], count: int) -> None:
    assert found['right'] == found['kills'] == count
    assert max(found['steps']) > 1  # some were killed later than others


@pytest.mark.slow
def test_a_training_killed_at_random_steps_goes_on_bit_for_bit(tmp_path):
    check_steps(killed('steps', 5, 0, tmp_path), 5)


def test_a_kill_while_saving_leaves_the_old_checkpoint_or_the_new_one(tmp_path):
    check_saves(killed('saves', 8, 0, tmp_path), 8)


@pytest.mark.hardening
@pytest.mark.timeout(1800)
def test_a_training_killed_a_hundred_times_goes_on_bit_for_bit(tmp_path):
    check_steps(killed('steps', 100, 1, tmp_path), 100)


@pytest.mark.slow
def test_a_hundred_kills_while_saving_leave_the_old_checkpoint_or_the_new_one(tmp_path):
    check_saves(killed('saves', 100, 1, tmp_path), 100)
