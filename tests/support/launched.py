"""`parallel_script.py` under torchrun."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import parallel_script

SCRIPT = Path(parallel_script.__file__)
LAUNCH = [sys.executable, '-m', 'torch.distributed.run', '--standalone']


def launch(shards: Path, runs: Path, processes: int, *, timeout_s: float = 120, **options) -> None:
    """Train over so many processes; options are those of `train_once`."""
    command = [*LAUNCH, '--nproc-per-node', processes, SCRIPT, shards, runs, json.dumps(options)]
    environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
    done = subprocess.run([*map(str, command)], env=environment, capture_output=True, text=True, timeout=timeout_s)
    assert done.returncode == 0, done.stderr[-3000:]


def losses(run) -> list[float]:
    """Of its steps, as far as they were written."""
    return [line['loss'] for line in run.history() if 'loss' in line]


def stop(run) -> None:
    """As if it had been stopped where it is."""
    file = run.path / 'run.json'
    file.write_text(file.read_text().replace('"finished"', '"interrupted"'))
