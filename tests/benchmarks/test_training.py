"""The benchmarks of training run, and find what they say that they find."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / 'benchmarks'
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def quick(name: str) -> dict[str, float]:
    command = [sys.executable, str(BENCHMARKS / f'{name}.py'), '--quick', '--json']
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return {name: figure['median'] for name, figure in json.loads(done.stdout)['figures'].items()}


def test_training_is_measured() -> None:
    found = quick('training')
    assert {
        'trainer_overhead', 'multitask_cost_ratio', 'cached_features_speedup',
    } <= found.keys()  # fmt: skip
    assert found['checkpointing_memory_saved'] >= 0.35  # these three are counted, not timed
    assert found['multitask_memory_ratio'] < 1.3
    assert (found['resume_kills_bitwise'], found['save_kills_ok']) == (1.0, 1.0)


def test_every_technique_has_its_rows() -> None:
    found = quick('techniques')
    for technique in ('optimizer', 'channels_last', 'accumulation', 'recompute_blocks', 'ema'):
        assert {f'{technique}_time', f'{technique}_memory'} <= found.keys()
    assert found['recompute_blocks_memory'] < 1
    assert found['accumulation_memory'] < 1
    assert found['created_on_device_memory'] < 0.1
    assert found['normalise_on_device_memory'] == 0.25
