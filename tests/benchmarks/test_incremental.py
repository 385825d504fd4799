"""The benchmark of changes measures every figure that it names. No test here looks at how long anything took."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / 'benchmarks'
if str(BENCHMARKS) not in sys.path:
    sys.path.insert(0, str(BENCHMARKS))

import incremental  # noqa: E402
import made_files  # noqa: E402


def test_ratios_come_from_medians_and_growth_is_the_larger_one():
    figures = incremental.Figures()
    seconds = {'large_s': [100.0], 'large_delta_s': [9.0, 4.0, 3.0], 'large_delta_without_ingest_s': [2.0],
               'small_delta_s': [3.0], 'small_delta_without_ingest_s': [1.0], 'export_s': [10.0, 20.0, 90.0],
               'export_resized_s': [40.0]}  # fmt: skip
    memory = {'small_backfill_peak_mb': [200.0], 'large_backfill_peak_mb': [210.0],
              'small_whole_snapshot_peak_mb': [400.0], 'large_whole_snapshot_peak_mb': [500.0]}  # fmt: skip
    figures.add({name: (values, 's') for name, values in seconds.items()})
    figures.add({name: (values, 'MB') for name, values in memory.items()})
    assert {name: round(value, 4) for name, (value, _) in incremental.ratios(figures).items()} == {
        'delta_over_build': 0.01, 'delta_over_build_with_ingest': 0.03,
        'delta_over_export': 0.05, 'delta_over_export_with_ingest': 0.15, 'delta_over_export_resized': 0.025,
        'backfill_memory_growth': 1.05, 'whole_snapshot_memory_growth': 1.25, 'peak_memory_growth': 1.25,
    }  # fmt: skip


def test_tiles_are_made_from_their_number_and_more_of_them_change_no_old_one(tmp_path):
    made_files.write_tiles(tmp_path, 0, 3)
    before = {path: path.read_bytes() for path in sorted(tmp_path.rglob('*.jpg'))}
    assert len(set(before.values())) == 3
    made_files.write_tiles(tmp_path, 3, 5)
    assert before.items() <= {path: path.read_bytes() for path in tmp_path.rglob('*.jpg')}.items()
    lines = (tmp_path / 'tiles.csv').read_text().splitlines()
    assert len(lines) == 6
    assert all((tmp_path / line.split(',')[1]).is_file() for line in lines[1:])


def test_an_edit_changes_the_copy_of_the_functions_and_nothing_else(tmp_path):
    incremental.edit(tmp_path, 7)
    copy = (tmp_path / 'code' / 'edited.py').read_text(encoding='utf-8').splitlines()
    original = (BENCHMARKS / 'edited.py').read_text(encoding='utf-8').splitlines()
    assert [(old, new) for old, new in zip(original, copy, strict=True) if old != new] == [
        ('EDITION = 1', 'EDITION = 7')
    ]


@pytest.mark.slow  # a dozen processes that each start Pixeltable
@pytest.mark.timeout(900)
def test_a_quick_run_measures_every_figure_that_is_wanted():
    command = [sys.executable, str(BENCHMARKS / 'incremental.py'), '--quick', '--json']
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ})
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record['notes']['wanted'].keys() <= record['figures'].keys()
    for name, figure in record['figures'].items():
        assert figure['values'], name
        assert all(math.isfinite(value) for value in figure['values']), name
