"""Kills at random moments of an apply: no row is lost, and what is left to do is known."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import multiplied
import pixeltable as pxt
import pytest
from schemas import write_csv

import mmpipe as mm
from mmpipe.functions import counts, reset

pytestmark = pytest.mark.hardening

KILLS, ROWS = 10, 4000
APPLY = """
import sys
sys.path[:0] = {path!r}
import mmpipe as mm, multiplied
multiplied.FACTOR = 3
Tables = multiplied.declared({directory!r})
print('ready', flush=True)
mm.apply(mm.plan(Tables, {directory!r}))
"""


def test_what_a_killed_apply_left_is_known_and_made(
    directory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Tables = multiplied.declared(directory)
    mm.apply(mm.plan(Tables, directory))
    manifest = write_csv(tmp_path / 'a.csv', [{'key': f'k{i}', 'x': 100 + i} for i in range(ROWS)])
    mm.ingest(f'{directory}/things', mm.sources.rows(manifest))
    monkeypatch.setattr(multiplied, 'FACTOR', 3)
    path = [str(Path(__file__).parents[1] / 'support'), str(Path(mm.__file__).parents[1])]
    script = APPLY.format(path=path, directory=directory)
    draw, killed, left = random.Random(0), 0, []
    for _ in range(KILLS):
        with subprocess.Popen([sys.executable, '-c', script], stdout=subprocess.PIPE, env=os.environ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            try:
                process.wait(draw.uniform(0.5, 3))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                killed += 1
        left.append(sum(change.rows for change in mm.plan(Tables, directory).changes if change.name == 'made'))
        assert pxt.get_table(f'{directory}/things').count() == ROWS
    print('rows left after each kill:', left, 'of', ROWS)
    assert left == sorted(left, reverse=True)
    reset()
    mm.apply(mm.plan(Tables, directory))
    assert counts().get('times', 0) == left[-1]
    assert killed > 0
    assert not mm.plan(Tables, directory).pending
    table = pxt.get_table(f'{directory}/things')
    assert all(row['made'] == 3 * row['x'] for row in table.select(table.x, table.made).collect())
