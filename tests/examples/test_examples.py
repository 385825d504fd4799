"""Every example runs as its docstring says, from another directory, and leaves nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / 'examples').glob('[0-9]*.py'))

# What each must say, besides ending well.
SAYS = {
    '01_first_table_to_model.py': ['+ first/drawings', 'run first/0001, on snapshot'],
    '02_incremental.py': ['cells computed: none', "'pixels': 2", '2 of 13 rows written, 1 masked'],
    '03_bring_your_own_data_no_pixeltable.py': ['masked losses, all rows', 'complete rows only'],
    '04_plain_torch_dataloader.py': ['torch.uint8 (', 'collated by workers', 'gathered whole'],
    '05_transfer.py': ['digits/0002: head only', 'weights of digits/0001', 'rebuilt'],
    '06_closed_loop.py': [
        'cells computed: 120',
        'least sure of 30 of 80',
        'loop/0002: went on from loop/0001',
        'comes from',
    ],
    '07_your_own_parts.py': ['uncertainty', 'PCGrad()', 'outline (val): loss'],
    '08_tuning.py': ['6 trials: ', 'defaults  accuracy', 'tuned     accuracy'],
    '09_federated.py': ['alone, 6 epochs', 'FedMedian', 'for a device: float32'],
}


def test_each_example_is_known_here():
    assert [path.name for path in EXAMPLES] == list(SAYS)


@pytest.fixture
def folder():
    # Not pytest's tmp_path: its parent is closed to other users whenever some pytest starts, and Postgres, which does
    # not run as root, would lose its data underneath.
    with tempfile.TemporaryDirectory(prefix='mmpipe-examples-') as name:
        yield Path(name)


SLOW = {'05_transfer': pytest.mark.slow, '06_closed_loop': pytest.mark.slow}  # train several times


@pytest.mark.parametrize('path', [pytest.param(path, id=path.stem, marks=SLOW.get(path.stem, ())) for path in EXAMPLES])
def test_example(path, folder):
    places = {'TMPDIR': str(folder), 'OMP_NUM_THREADS': '1'}
    kept = {name: value for name, value in os.environ.items() if name not in ('MMPIPE_HOME', 'PIXELTABLE_HOME')}
    done = subprocess.run(
        [sys.executable, str(path), '--quick'], cwd=folder, env={**kept, **places}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for words in SAYS[path.name]:
        assert words in done.stdout, done.stdout
    assert not [left.name for left in folder.iterdir() if left.name.startswith(('.mmpipe', 'mmpipe-example', 'tmp'))]
