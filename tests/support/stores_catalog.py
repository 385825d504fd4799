"""A process of its own at work on a catalog: `python stores_catalog.py module:function '{"argument": ...}'`.

The function prepares and returns what is then called, as for `forked`. The last line of stdout says how it went.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

for folder in (Path(__file__).parent, Path(__file__).parents[1] / 'functions'):
    sys.path.insert(0, str(folder))

TOGETHER = 'MMPIPE_TEST_TOGETHER'  # a file that appears when all processes of a test are ready


def main(work: str, arguments: str) -> None:
    """Do it, and say how it went: a value, or the error and its message."""
    module, _, name = work.partition(':')
    said: dict[str, Any] = {'value': None, 'error': '', 'message': ''}
    try:
        do = getattr(importlib.import_module(module), name)(**json.loads(arguments))
        together = os.environ.get(TOGETHER)
        if together:
            Path(f'{together}.{os.getpid()}').touch()
            while not Path(together).exists():
                time.sleep(0.002)
        said['value'] = do()
    except Exception as error:
        if 'MMPIPE_TEST_TRACE' in os.environ:
            raise
        said |= {'error': type(error).__name__, 'message': str(error)}
    print(json.dumps(said), flush=True)


def comparing(directory: str, rows: dict[str, list[Any]], factor: int) -> Any:
    """Whether the tables hold what they would, had one process made them from nothing; else the first differences."""
    from logged import declared, holds, set_factor, should_hold

    import mmpipe as mm
    from mmpipe.store import start

    set_factor(factor)
    start()

    def work() -> dict[str, Any]:
        found, wanted = holds(directory), should_hold({key: tuple(row) for key, row in rows.items()}, factor)
        differ = [
            f'{table} {key}: {found[table].get(key)} and not {wanted[table].get(key)}'
            for table in wanted
            for key in found[table].keys() | wanted[table].keys()
            if found[table].get(key) != wanted[table].get(key)
        ]
        pending = mm.plan(declared(directory), directory).pending
        bad = [str(each) for each in mm.quarantined(f'{directory}/things')]
        return {'differ': differ[:5], 'pending': pending, 'quarantined': bad}

    return work


def freezing(directory: str, root: str, without: str, *, factor: int) -> Any:
    """A snapshot of things that leaves one field out."""
    import pixeltable as pxt
    from logged import fields_of, set_factor

    import mmpipe as mm
    from mmpipe.store import start

    set_factor(factor)
    start()
    things, fields = pxt.get_table(f'{directory}/things'), fields_of(directory)
    del fields[without]
    return lambda: mm.snapshot(things, root=root, fields=fields, page_rows=16).to_json()


def reading(root: str, snapshot: str | None = None) -> Any:
    """What a snapshot holds; needs no catalog."""
    from snapshots import content

    from mmpipe.shards import open_snapshot

    return lambda: {key: [str(part) for part in row] for key, row in content(open_snapshot(root, snapshot)).items()}


def listing(root: str) -> Any:
    """The ids of a root's snapshots, newest first, and what a collection of everything unneeded would remove."""
    from mmpipe.shards import collect, log, open_snapshot

    def work() -> dict[str, Any]:
        left = collect(root, keep=1000, grace_s=0, runs=str(Path(__file__).parent / 'no runs'), dry_run=True)
        return {
            'current': open_snapshot(root).id,
            'snapshots': [entry.id for entry in log(root)],
            'left': list(left.files),
        }

    return work


if __name__ == '__main__':
    main(sys.argv[1], sys.argv[2])
