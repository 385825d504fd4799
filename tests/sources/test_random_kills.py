"""Kills at random moments of an ingest, again and again, until it comes through."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pixeltable as pxt
import pytest
from schemas import numbers, write_csv

import mmpipe as mm

pytestmark = pytest.mark.hardening

KILLS, ROWS = 12, 400
INGEST = """
import sys
sys.path[:0] = {path!r}
import mmpipe as mm
print('ready', flush=True)
mm.ingest({table!r}, mm.sources.rows({manifest!r}), chunk_rows=8)
"""


def test_rows_are_whole_after_every_kill_and_all_there_in_the_end(directory: str, tmp_path: Path) -> None:
    numbers(directory)
    rows = [{'key': f'k{i:04d}', 'x': i, 'text': 'one two'} for i in range(ROWS)]
    manifest = write_csv(tmp_path / 'rows.csv', rows)
    path = [str(Path(__file__).parents[1] / 'support'), str(Path(mm.__file__).parents[1])]
    script = INGEST.format(path=path, table=f'{directory}/numbers', manifest=str(manifest))
    draw = random.Random(0)
    killed = before = 0
    for _ in range(KILLS):
        with subprocess.Popen([sys.executable, '-c', script], stdout=subprocess.PIPE, env=os.environ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            try:
                process.wait(draw.uniform(0.05, 1.5))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                killed += 1
        table = pxt.get_table(f'{directory}/numbers')
        stored = {row['key']: row['twice'] for row in table.select(table.key, table.twice).collect()}
        assert len(stored) == table.count() >= before
        assert len(stored) % 8 == 0
        assert all(twice == (None if key == 'k0013' else 2 * int(key[1:])) for key, twice in stored.items())
        assert pxt.get_table(f'{directory}/words').count() == 2 * len(stored)
        before = len(stored)
    report = mm.ingest(f'{directory}/numbers', mm.sources.rows(manifest))
    assert (report.inserted, report.unchanged) == (ROWS - before, before)
    assert killed > 0
