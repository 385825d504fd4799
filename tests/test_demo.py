"""The parts of the demo that the whole of it does not show: what --fresh may drop, and results that are not defined."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mmpipe.demo import _forget, describe
from mmpipe.errors import ConfigError
from mmpipe.pipeline import Pipeline, find_pipeline


@pytest.fixture
def demo(directory: str) -> Pipeline:
    import mmpipe as mm

    pipeline = find_pipeline('demo', directory=directory)
    mm.apply(mm.plan(pipeline.tables, directory))
    return pipeline


def test_fresh_drops_the_demo_and_its_quarantine_but_no_table_of_the_user(demo: Pipeline) -> None:
    import pixeltable as pxt

    import mmpipe as mm
    from mmpipe.sources import Bad
    from mmpipe.sources.quarantine import settle

    tables = [pxt.get_table(f'{demo.directory}/items'), pxt.create_table(f'{demo.directory}/mine', {'x': pxt.Int})]
    for table in tables:
        settle(table, 'a.csv', [Bad(place='a.csv line 2', key='k', reason='is bad')])
    with pytest.raises(ConfigError, match=rf"not the demo's: {demo.directory}/mine\. Move them first"):
        _forget(demo)
    assert mm.quarantined(tables[0])
    pxt.move(f'{demo.directory}/mine', f'{demo.directory}_mine')
    _forget(demo)
    left = [entry['table_path'] for entry in mm.quarantined() if entry['table_path'].startswith(demo.directory)]
    pxt.drop_table(f'{demo.directory}_mine')
    assert left == [f'{demo.directory}/mine']
    assert pxt.list_dirs().count(demo.directory) == 0
    pxt.create_dir(demo.directory)  # for the fixture to drop


def test_a_demo_pipeline_of_the_users_own_is_not_run_as_the_demo(tmp_path: Path) -> None:
    (tmp_path / 'pyproject.toml').touch()
    (tmp_path / 'pipelines' / 'demo').mkdir(parents=True)
    (tmp_path / 'pipelines' / 'demo' / 'schema.py').touch()
    command = [sys.executable, '-m', 'mmpipe.cli', 'demo']
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: ConfigError: '{tmp_path}/pipelines/demo' is your own and hides")


def test_a_metric_that_is_not_defined_is_a_dash() -> None:
    undefined = {'mean': None, 'std': None}
    text = describe(
        {
            'rows': {'items': 1},
            'computed': {'items.split': 0},
            'written': 0,
            'snapshot': 'a',
            'run': {'id': 'demo/0001', 'continued': None},
            'baselines': {'detail': {'majority': undefined}},
            'metrics': {'detail': {'metric': 'r2', **undefined, 'test': None, 'test_rows': 0}},
        }
    )
    assert text.splitlines()[2] == 'rows written: 0; snapshot a'
    assert text.splitlines()[-4:] == [
        '                detail (r2)',
        'model           -',
        'majority        -',
        'kept run, test  - (0 rows)',
    ]


def test_the_results_fit_a_terminal_of_eighty_columns() -> None:
    scores = {'mean': 0.5, 'std': 0.25}
    probes = dict.fromkeys(('majority', 'photo', 'caption', 'speech', 'clip', 'document', 'tabular', 'all'), scores)
    metrics = {'metric': 'accuracy', **scores, 'test': 0.5, 'test_rows': 1}
    tasks = ('category', 'words', 'detail')
    text = describe(
        {
            'rows': {f'table{i}': 1000 for i in range(12)},
            'computed': {f'items.some_vector_{i}': 414 for i in range(12)},
            'written': 0,
            'snapshot': 'a' * 16,
            'run': {'id': 'demo/0002', 'continued': 'demo/0001', 'new_rows': 1},
            'baselines': dict.fromkeys(tasks, probes),
            'metrics': dict.fromkeys(tasks, metrics),
        }
    )
    assert max(map(len, text.splitlines())) <= 80
    assert 'run demo/0002, continued from demo/0001, 1 new training row\n' in text
    assert text.splitlines()[-9] == 'majority        0.500±0.25           0.500±0.25        0.500±0.25'
    assert text.splitlines()[-1] == 'kept run, test  0.500 (1 row)        0.500 (1 row)     0.500 (1 row)'
