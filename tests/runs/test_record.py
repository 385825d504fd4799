"""Run records on the disk."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import pytest

from mmpipe.errors import ConfigError, RunError
from mmpipe.runs import create_run, list_runs, open_run, update_run
from mmpipe.runs.lock import training
from mmpipe.runs.record import append_metrics, cut_metrics, drop_checkpoints

RECORD = {'metrics': {}, 'factory': None, 'parent': None, 'tasks': [], 'cannot': {}}


def test_runs_are_numbered_and_opened_by_path_id_or_name(tmp_path):
    first, second = (create_run('shop', RECORD, runs=tmp_path) for _ in range(2))
    assert [first.id, second.id] == ['shop/0001', 'shop/0002']
    assert open_run('shop/0001', runs=tmp_path).path == first.path
    assert open_run('shop', runs=tmp_path).id == 'shop/0002'
    assert open_run(second.path).record == second.record
    assert list_runs('shop', runs=tmp_path) == [first.path, second.path]


def _claim(folder):
    return create_run('shop', RECORD, runs=folder).id


def test_processes_that_start_at_once_claim_different_numbers(tmp_path):
    with multiprocessing.get_context('fork').Pool(4) as pool:
        ids = pool.map(_claim, [tmp_path] * 12)
    assert sorted(ids) == [f'shop/{number:04d}' for number in range(1, 13)]


def test_a_record_is_replaced_whole(tmp_path):
    run = create_run('shop', RECORD, runs=tmp_path)
    run = update_run(run, status='finished', metrics={'kind': {'accuracy': 0.5}})
    assert open_run(run).metrics == {'kind': {'accuracy': 0.5}}
    assert not list(run.path.glob('.*.tmp'))


@pytest.mark.parametrize('content', ['', '{"format": 1', '[]', '{"id": "shop/0001"}'])
def test_a_damaged_record_is_an_error_that_names_the_file(tmp_path, content):
    run = create_run('shop', RECORD, runs=tmp_path)
    (run.path / 'run.json').write_text(content)
    with pytest.raises(RunError, match=r'run\.json'):
        open_run(run.path)


def test_a_record_of_another_format_names_the_version_that_wrote_it(tmp_path):
    run = create_run('shop', RECORD, runs=tmp_path)
    (run.path / 'run.json').write_text(json.dumps({'format': 2, 'versions': {'mmpipe': '9.9'}}))
    with pytest.raises(RunError, match=r'9\.9'):
        open_run(run.path)


@pytest.mark.parametrize('name', ['', '../x', 'a/b', '.hidden', 'a b'])
def test_a_name_that_is_no_folder_name_is_refused(tmp_path, name):
    with pytest.raises(ConfigError, match='cannot be called'):
        create_run(name, RECORD, runs=tmp_path)


def test_a_run_prints_as_a_line_and_one_per_task(tmp_path):
    record = {**RECORD, 'snapshot': {'id': 'abc', 'root': '/shards/shop'}}
    first = create_run('shop', record, runs=tmp_path)
    assert repr(first) == '<Run shop/0001: running>'
    assert str(first) == f'run shop/0001 (running) on snapshot abc: {first.path}'
    parent = {'run': first.id, 'path': str(first.path), 'kind': 'continue', 'new_rows': 1200}
    metrics = {'kind': {'accuracy': 2 / 3, 'n': 3}, 'price': {'r2': None, 'n': 0}}
    second = create_run('shop', {**record, 'parent': parent, 'metrics': metrics, 'val_split': 'test'}, runs=tmp_path)
    assert str(update_run(second, status='finished')).splitlines() == [
        f'run shop/0002 (finished) on snapshot abc, continued from shop/0001 with 1,200 new rows: {second.path}',
        '  kind (test): accuracy 0.6667, n 3',
        '  price (test): r2 None, n 0',
    ]


def test_a_run_whose_process_is_gone_was_killed(tmp_path):
    run = create_run('shop', RECORD, runs=tmp_path)
    assert run.status == 'running'  # about to be trained, as far as anybody can tell
    with training(run):
        assert open_run(run).status == 'running'
    assert open_run(run).status == 'killed'
    update_run(run, status='finished')
    assert run.status == 'finished'  # opened before it had ended
    update_run(run, status='running')
    (run.path / 'lock').write_text('another-machine')
    assert open_run(run).status == 'running'


def test_a_run_without_a_checkpoint_says_how_to_get_one(tmp_path):
    with pytest.raises(RunError, match='resume='):
        create_run('shop', RECORD, runs=tmp_path).checkpoint()


def test_metrics_are_cut_at_a_step_and_at_a_half_written_line(tmp_path):
    run = create_run('shop', RECORD, runs=tmp_path)
    append_metrics(run, [{'step': step} for step in range(1, 5)])
    with open(run.path / 'metrics.jsonl', 'a') as file:
        file.write('{"step": 3, "lo')
    cut_metrics(run, 3)
    assert [line['step'] for line in run.history()] == [1, 2, 3]


def test_old_checkpoints_and_half_written_ones_are_dropped(tmp_path):
    run = create_run('shop', RECORD, runs=tmp_path)
    for name in ('00000002', '00000010', '.00000011.99.tmp'):
        (run.path / 'checkpoints' / name).mkdir(parents=True)
    assert run.checkpoint().name == '00000010'
    drop_checkpoints(run, newest=1)
    assert [entry.name for entry in (run.path / 'checkpoints').iterdir()] == ['00000010']


@pytest.mark.parametrize('runs', ['s3://bucket/runs', Path('s3://bucket/runs')])
def test_a_url_for_runs_is_refused_and_nothing_is_made(tmp_path, monkeypatch, runs):
    monkeypatch.chdir(tmp_path)
    for call in (lambda: create_run('shop', RECORD, runs=runs), lambda: open_run('shop', runs=runs)):
        with pytest.raises(ConfigError, match=r"runs='s3:/.*bucket/runs': a run is a folder"):
            call()
    assert list(tmp_path.iterdir()) == []
