"""The benchmarks' harness: turns, medians, records. No test here looks at how long anything took."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

BENCHMARKS = Path(__file__).parents[2] / 'benchmarks'
if str(BENCHMARKS) not in sys.path:
    sys.path.insert(0, str(BENCHMARKS))

from harness import Bench, Figure, git_state, machine, rotated, versions  # noqa: E402

TRIVIAL = '''
"""A benchmark of nothing."""
import sys
sys.path.insert(0, {folder!r})
from harness import Bench

bench = Bench.from_arguments('trivial', __doc__)
bench.notes['rows'] = 3
with bench.recording():
    bench.compare({{'plain': lambda: None, 'measured': lambda: {{'speed': (4.0, 'rows/s')}}}}, repeats=7)
'''

finite = st.floats(-1e6, 1e6)


@given(st.lists(finite, min_size=1, max_size=20))
def test_the_median_lies_between_the_quartiles_and_those_between_the_extremes(values):
    figure = Figure('s', tuple(values))
    low, high = figure.quartiles
    assert min(values) <= low <= figure.median <= high <= max(values)
    record = figure.to_json()
    assert record['values'] == values
    assert record['iqr'] == high - low
    assert np.isclose(record['median'], np.median(values))


@given(st.integers(1, 6), st.integers(1, 30))
def test_every_variant_runs_once_a_round_and_comes_first_equally_often(count, rounds):
    names = [f'v{i}' for i in range(count)]
    ran: list[str] = []
    bench = Bench('turns', repeats=rounds)
    bench._say = lambda text: None
    bench.compare({name: lambda name=name: ran.append(name) for name in names}, warmup=False)
    turns = [ran[i : i + count] for i in range(0, len(ran), count)]
    assert len(turns) == rounds
    assert all(sorted(turn) == names for turn in turns)
    firsts = [sum(turn[0] == name for turn in turns) for name in names]
    assert max(firsts) - min(firsts) <= 1
    assert {name: len(figure.values) for name, figure in bench.figures.items()} == dict.fromkeys(names, rounds)
    assert {figure.unit for figure in bench.figures.values()} == {'s'}


@given(st.lists(st.text(), max_size=5), st.integers(0, 20))
def test_rotating_loses_nothing(names, by):
    assert sorted(rotated(names, by)) == sorted(names)


def test_the_warm_up_is_not_counted_and_quick_does_without():
    for quick, calls in ((False, 4), (True, 1)):
        ran = []
        bench = Bench('warm', quick=quick)
        bench.compare({'work': lambda ran=ran: ran.append(1)}, repeats=3)
        assert len(ran) == calls
        assert len(bench.figures['work'].values) == (1 if quick else 3)


def test_a_figure_that_changes_its_unit_or_is_measured_by_two_is_refused():
    units = iter(('s', 'ms'))
    with pytest.raises(ValueError, match="'x' is measured twice, or in ms and s"):
        Bench('units').compare({'a': lambda: {'x': (1.0, next(units))}}, repeats=2, warmup=False)
    bench = Bench('twice', quick=True)
    bench.compare({'a': lambda: {'x': (1.0, 's')}})
    with pytest.raises(ValueError, match="'x' is measured twice"):
        bench.compare({'b': lambda: {'x': (1.0, 's')}})


def test_machine_and_versions_say_what_was_measured_on():
    assert machine()['cores'] >= 1
    assert machine()['memory_gb'] > 0
    assert versions()['numpy'] == np.__version__
    commit, dirty = git_state()
    assert (commit is None) == (dirty is None)


def run(tmp_path, *arguments):
    script = tmp_path / 'trivial.py'
    script.write_text(TRIVIAL.format(folder=str(BENCHMARKS)))
    command = [sys.executable, str(script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)


def test_a_quick_run_prints_one_json_object_and_stores_nothing(tmp_path):
    stored = set((BENCHMARKS / 'results').glob('*'))
    done = run(tmp_path, '--quick', '--json')
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record['quick'] is True
    assert record['notes'] == {'rows': 3}
    assert {name: (figure['unit'], len(figure['values'])) for name, figure in record['figures'].items()} == {
        'plain': ('s', 1), 'speed': ('rows/s', 1),
    }  # fmt: skip
    assert set(record) == {
        'benchmark', 'started', 'commit', 'dirty', 'quick', 'machine', 'versions', 'notes', 'figures',
    }  # fmt: skip
    assert set((BENCHMARKS / 'results').glob('*')) == stored


def test_a_full_run_stores_its_record_and_prints_a_table(tmp_path):
    done = run(tmp_path, '--repeats', '2', '--out', str(tmp_path / 'results'))
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / 'results' / 'trivial.json').read_text())
    assert record['figures']['speed'] == {
        'unit': 'rows/s', 'median': 4.0, 'q1': 4.0, 'q3': 4.0, 'iqr': 0.0, 'values': [4.0, 4.0],
    }  # fmt: skip
    assert '4 rows/s  (4 to 4, n=2)' in done.stdout
    assert 'repeat 2 of 2' in done.stderr
    assert run(tmp_path, '--repeats', '0').returncode == 2
