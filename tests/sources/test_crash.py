"""Real SIGKILLs in the middle of an ingest; then it is run again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pixeltable as pxt
from schemas import numbers, write_csv

import mmpipe as mm
from mmpipe.functions import counts, reset

# Kills itself inside the transaction of the second chunk, its rows inserted, or right behind its commit.
DOOMED = """
import os, signal, sys
sys.path[:0] = {path!r}
import mmpipe as mm
import mmpipe.sources.write as write
from mmpipe.functions import counts

place = {place!r}
real = write.replace_rows
def die(): os.kill(os.getpid(), signal.SIGKILL)
calls = []
def doomed(table, rows, stale):
    calls.append(1)
    if place == 'inside' and len(calls) == 2:
        import pixeltable.catalog.table_version as tv
        insert = tv.TableVersion.insert
        def killed(*args, **kwargs):
            insert(*args, **kwargs)
            die()
        tv.TableVersion.insert = killed
    written = real(table, rows, stale)
    if place == 'behind' and len(calls) == 2: die()
    return written
write.replace_rows = doomed
mm.ingest({table!r}, mm.sources.rows({manifest!r}), chunk_rows=4)
"""


def stored(table):
    return sorted(
        (row['key'], row['x'], row['twice']) for row in table.select(table.key, table.x, table.twice).collect()
    )


def test_after_a_kill_inside_or_behind_a_transaction_no_row_is_lost_and_none_is_there_twice(directory, tmp_path):
    declared = numbers(directory)
    table = declared.Numbers.table
    count = 12
    for generation, place in enumerate(('inside', 'behind')):
        rows = [{'key': f'{place}{i:02d}', 'x': 100 * generation + i, 'text': 'one two'} for i in range(count)]
        manifest = write_csv(tmp_path / f'{place}.csv', rows)
        before = stored(table)
        path = [str(Path(__file__).parents[1] / 'support'), str(Path(mm.__file__).parents[1])]
        script = DOOMED.format(path=path, place=place, table=f'{directory}/numbers', manifest=str(manifest))
        done = subprocess.run(
            [sys.executable, '-c', script], env=os.environ, capture_output=True, text=True, check=False
        )
        assert done.returncode == -signal.SIGKILL, done.stderr
        table = pxt.get_table(f'{directory}/numbers')
        survived = 8 if place == 'behind' else 4
        wanted = [(row['key'], row['x'], None if row['x'] == 13 else 2 * row['x']) for row in rows]
        assert stored(table) == sorted([*before, *wanted[:survived]])  # whole chunks, nothing of the one it died in

        reset()
        report = mm.ingest(f'{directory}/numbers', mm.sources.rows(manifest), chunk_rows=4)
        assert (report.inserted, report.unchanged) == (count - survived, survived)
        assert counts()['doubled'] == count - survived  # what was committed is not computed again
        assert stored(table) == sorted([*before, *wanted])
        words = pxt.get_table(f'{directory}/words')
        assert words.count() == 2 * len(stored(table))
        assert mm.ingest(f'{directory}/numbers', mm.sources.rows(manifest)).written == 0
