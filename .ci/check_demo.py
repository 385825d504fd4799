"""Check the JSON of two runs of `mmpipe demo` in a row: everything is there, and only what is new was computed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

KEYS = {'rows', 'computed', 'written', 'snapshot', 'metrics', 'baselines', 'seconds'}
LIMIT_S = 300


def main(first_path: str, second_path: str) -> None:
    """Compare a first demo with a second one."""
    first, second = (json.loads(Path(path).read_text(encoding='utf-8')) for path in (first_path, second_path))
    for run in (first, second):
        assert set(run) == {'first', 'unchanged', 'added'}, run.keys()
        for name, phase in run.items():
            assert set(phase) >= KEYS, (name, phase.keys())
    rows = {name: phase['rows'] for name, phase in first.items()}
    assert rows['first'] == rows['unchanged'], rows
    assert rows['added']['items'] > rows['first']['items'], rows
    assert first['first']['written'] > 0
    assert all(first['first']['computed'].values()), first['first']['computed']
    for phase in (first['unchanged'], *second.values()):
        assert phase['written'] == 0, phase
        assert not any(phase['computed'].values()), phase
    new_items = rows['added']['items'] - rows['first']['items']
    assert first['added']['computed']['items.split'] == new_items, first['added']['computed']
    assert first['added']['snapshot'] != first['first']['snapshot'] == first['unchanged']['snapshot']
    assert second['first']['snapshot'] == first['added']['snapshot']
    assert first['added']['run']['continued'] == first['first']['run']['id'], first['added']['run']
    for phase in (first['first'], first['added']):
        for task, scores in phase['metrics'].items():
            assert scores['mean'] > phase['baselines'][task]['majority']['mean'], (task, scores)
    seconds = sum(sum(phase['seconds'].values()) for phase in first.values())
    print(f'demo: {seconds:.0f} s, rows {rows}, second run wrote 0 rows and computed 0 cells')
    if seconds > LIMIT_S:
        print(f'WARNING: the demo took longer than {LIMIT_S} s; this machine may be busy')


if __name__ == '__main__':
    main(*sys.argv[1:])
