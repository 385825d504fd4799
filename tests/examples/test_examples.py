"""Every example runs as its docstring says, from another directory, and leaves nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / 'examples').glob('[0-9]*.py'))

# What each must say, besides ending well.
SAYS = {
    '01_first_table_to_model.py': ['+ first/drawings', 'run first/0001, on snapshot'],
    '02_incremental.py': ['cells computed: none', "'embed_image': 2", '2 of 13 rows written, 1 masked'],
    '03_bring_your_own_data_no_pixeltable.py': ['masked losses, all rows', 'complete rows only'],
    '04_plain_torch_dataloader.py': ['torch.uint8 (', 'collated by workers', 'gathered whole'],
    '05_transfer.py': ['digits/0002: head only', 'weights of digits/0001', 'rebuilt'],
}


def test_each_example_is_known_here():
    assert [path.name for path in EXAMPLES] == list(SAYS)


@pytest.mark.parametrize('path', EXAMPLES, ids=[path.stem for path in EXAMPLES])
def test_example(path, tmp_path):
    places = {'TMPDIR': str(tmp_path), 'OMP_NUM_THREADS': '1'}
    kept = {name: value for name, value in os.environ.items() if name not in ('MMPIPE_HOME', 'PIXELTABLE_HOME')}
    done = subprocess.run(
        [sys.executable, str(path), '--quick'], cwd=tmp_path, env={**kept, **places}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for words in SAYS[path.name]:
        assert words in done.stdout, done.stdout
    assert not [left for left in tmp_path.iterdir() if left.name.startswith(('.mmpipe', 'mmpipe-example', 'tmp'))]
