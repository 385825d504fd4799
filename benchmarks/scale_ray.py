"""Kills of Ray's processes in the middle of an apply: whether it ends, in time, with the right values.

Each kill is a SIGKILL of one process of Ray that is drawn among all that run for the job: actors that compute, and the
one that knows where pages are. It passes when the apply goes on within 60 s and ends with the values that the function
gives for the same numbers.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

SUPPORT = Path(__file__).parents[1] / 'tests' / 'support'
LONGEST_S = 60.0
ROWS = 1000
PAUSE_S = 0.02  # per call, so that a kill hits an apply at work


def processes() -> list[int]:
    """Actors of this process's Ray that compute or know pages, by their titles; not Ray's own agents.

    With one of those a whole node ends, and on the node of the process that asks, that process.
    """
    found = []
    for folder in Path('/proc').glob('[0-9]*'):
        try:
            title = (folder / 'cmdline').read_bytes()
            parents = _ancestors(int(folder.name))
        except OSError:
            continue
        if title.startswith((b'ray::MapWorker', b'ray::Pages')) and os.getpid() in parents:
            found.append(int(folder.name))
    return found


def _ancestors(pid: int) -> set[int]:
    seen: set[int] = set()
    while pid > 1 and pid not in seen:
        seen.add(pid)
        pid = int(Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[1])
    return seen


class Killer(threading.Thread):
    """Kills a process of Ray's at random moments, so many times."""

    def __init__(self, kills: int, draw: random.Random) -> None:
        super().__init__(daemon=True)
        self.kills, self.draw = kills, draw
        self.times: list[float] = []
        self.done = threading.Event()

    def run(self) -> None:
        while len(self.times) < self.kills:
            if self.done.wait(self.draw.uniform(0.5, 6)):
                return
            there = processes()
            if there:
                os.kill(self.draw.choice(there), signal.SIGKILL)
                self.times.append(time.monotonic())


def killed_applies(kills: int, *, per_apply: int = 4) -> tuple[int, float]:
    """Kills that passed, and the longest time in seconds from a kill to the next progress or the end."""
    sys.path.insert(0, str(SUPPORT))
    import pixeltable as pxt
    import ray_functions

    import mmpipe as mm
    from mmpipe.store import start

    start()  # before the home, and with it the result cache, is another one for each apply
    draw, passed, longest = random.Random(0), 0, 0.0
    number = tried = 0
    while passed < kills and number < kills:
        number += 1
        with tempfile.TemporaryDirectory() as folder:
            os.environ |= {ray_functions.FOLDER: folder, ray_functions.PAUSE: str(PAUSE_S)}
            os.environ |= {'MMPIPE_RESULT_CACHE_GB': '0.2', 'MMPIPE_HOME': f'{folder}/home'}
            directory = f'ray_kills_{number}'
            pxt.drop_dir(directory, force=True, if_not_exists='ignore')
            mm.apply(mm.plan(ray_functions.declare('none'), directory))
            pxt.get_table(f'{directory}/items').insert(ray_functions.rows(ROWS, Path(folder), media=False))
            moves = [time.monotonic()]
            killer = Killer(min(per_apply, kills - passed), draw)
            killer.start()
            mm.apply(
                mm.plan(ray_functions.declare('weight', 'heavy'), directory),
                engine=mm.RayEngine(actors=2, cpus=0.5),
                progress=lambda *_, moves=moves: moves.append(time.monotonic()),
            )
            killer.done.set()
            killer.join()
            moves.append(time.monotonic())
            tried += len(killer.times)
            pauses = [min(move for move in moves if move >= at) - at for at in killer.times]
            table = pxt.get_table(f'{directory}/items')
            right = all(_right(row) for row in table.select(table.x, table.weight, table.heavy).collect())
            passed += sum(pause <= LONGEST_S for pause in pauses) if right else 0
            longest = max([longest, *pauses])
            pxt.drop_dir(directory, force=True)
            print(f'{passed} of {tried} kills passed, longest {longest:.1f} s', file=sys.stderr)
    return passed, longest


def _right(row: dict) -> bool:
    x = row['x']
    if x is None or x == 13:
        return row['weight'] is None and row['heavy'] is None
    return row['weight'] == x * 7 / 3 and row['heavy'] == {'weight': x * 7 / 3 + 1, 'by': 1}


def figures(*, quick: bool) -> dict[str, tuple[float, str]]:
    """Kills that passed, and the longest stop after one."""
    passed, longest = killed_applies(4 if quick else 20)
    return {'ray_kills_ok': (passed, 'kills passed'), 'ray_kill_longest_s': (longest, 's')}


if __name__ == '__main__':
    print(figures(quick='--quick' in sys.argv))
