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
        for name, part in run.items():
            assert set(part) >= KEYS, (name, part.keys())
    rows = {name: part['rows'] for name, part in first.items()}
    assert rows['first'] == rows['unchanged'], rows
    assert rows['added']['items'] > rows['first']['items'], rows
    assert first['first']['written'] > 0
    assert all(first['first']['computed'].values()), first['first']['computed']
    for part in (first['unchanged'], *second.values()):
        assert part['written'] == 0, part
        assert not any(part['computed'].values()), part
    new_items = rows['added']['items'] - rows['first']['items']
    assert first['added']['computed']['items.split'] == new_items, first['added']['computed']
    assert first['added']['snapshot'] != first['first']['snapshot'] == first['unchanged']['snapshot']
    assert second['first']['snapshot'] == first['added']['snapshot']
    assert first['added']['run']['continued'] == first['first']['run']['id'], first['added']['run']
    for part in (first['first'], first['added']):
        for task, scores in part['metrics'].items():
            probes = part['baselines'][task]
            assert scores['mean'] > probes['majority']['mean'], (task, scores)
            better = scores['mean'] - probes['all']['mean']
            print(f'{task}: {scores["metric"]} {scores["mean"]:.3f}, {better:+.3f} against the probe on all inputs')
    seconds = sum(sum(part['seconds'].values()) for part in first.values())
    print(f'demo: {seconds:.0f} s, rows {rows}, second run wrote 0 rows and computed 0 cells')
    if seconds > LIMIT_S:
        print(f'WARNING: the demo took longer than {LIMIT_S} s; this machine may be busy')


if __name__ == '__main__':
    main(*sys.argv[1:])
