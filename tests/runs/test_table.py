"""Runs at a glance, and side by side."""

from __future__ import annotations

import json
import subprocess

import numpy as np
import pytest

from mmpipe.errors import ConfigError, RunError
from mmpipe.runs import compare, create_run, table, update_run
from mmpipe.runs.circumstances import git_state


def made(runs, name='shop', *, rows=(1, 2, 3), accuracy=0.5, **record):
    full = {
        'snapshot': {'id': 'a' * 8, 'root': '/shards'},
        'trainer': {'lr': 0.1, 'epochs': 3},
        'loader': {'batch_size': 8},
        'tasks': [{'name': 'kind', 'classes': 3}],
        'factory': {'module': 'shop', 'fingerprint': 'f1', 'args': {'width': 8}, 'file': '/here.py'},
        'inputs': {'train': {'transforms': {'photo': {'!': 'named', 'qualname': 'flip', 'module': 'shop'}}}},
        'parent': None,
        'cannot': {},
        'metrics': {},
        **record,
    }
    run = create_run(name, full, runs=runs)
    np.save(run.path / 'train_rows.npy', np.array(sorted(rows), dtype=np.uint64))
    return update_run(run, status='finished', metrics={'kind': {'n': 9, 'loss': 0.1, 'accuracy': accuracy}})


def test_runs_are_listed_oldest_first_with_what_came_out(tmp_path):
    first, other, second = made(tmp_path), made(tmp_path, 'ships'), made(tmp_path, accuracy=0.75)
    update_run(other, created='2020-01-01T00:00:00+00:00')
    found = table(runs=tmp_path)
    assert [run.id for run in found.runs] == [other.id, first.id, second.id]
    assert [row['metrics'].get('kind', {}).get('accuracy') for row in found.to_json()] == [0.5, 0.5, 0.75]
    lines = str(table('shop', runs=tmp_path)).splitlines()
    assert lines[0].split() == ['run', 'status', 'created', '(UTC)', 'snapshot', 'metrics']
    assert lines[2].startswith('shop/0002  finished')
    assert lines[2].endswith('aaaaaaaa  kind accuracy 0.75')
    json.dumps(found.to_json(), allow_nan=False)
    with pytest.raises(RunError, match=r"no run called 'shoes' in .*; there are: ships, shop"):
        table('shoes', runs=tmp_path)
    assert str(table(runs=tmp_path / 'nothing')) == 'no runs'


def test_only_what_differs_is_compared(tmp_path):
    first = made(tmp_path)
    same = made(tmp_path)
    found = compare(first, same)
    assert (found.settings, found.code) == ({}, {})
    assert found.rows == [{'train': 3, 'new': 0, 'gone': 0}] * 2
    assert found.metrics == {'kind.loss': [0.1, 0.1], 'kind.accuracy': [0.5, 0.5]}

    other = made(
        tmp_path, rows=(2, 3, 4, 5), accuracy=0.75,
        trainer={'lr': 0.2, 'epochs': 3, 'ema': 0.9},
        factory={'module': 'shop', 'fingerprint': 'f2', 'args': {'width': 16}, 'file': '/there.py'},
        inputs={'train': {'transforms': {'photo': {'!': 'named', 'qualname': 'crop', 'module': 'shop'}}}},
    )  # fmt: skip
    found = compare(first.path, other.id, runs=tmp_path)
    assert found.settings == {
        'trainer.lr': [0.1, 0.2], 'trainer.ema': [None, 0.9], 'train.transforms.photo': ['flip', 'crop'],
    }  # fmt: skip
    assert found.code == {'model.fingerprint': ['f1', 'f2'], 'model.args.width': [8, 16]}
    assert found.rows[1] == {'train': 4, 'new': 2, 'gone': 1}
    shown = str(found)
    assert 'trainer.lr' in shown
    assert 'only in the first' in shown
    assert 'epochs' not in shown
    json.dumps(found.to_json(), allow_nan=False)
    with pytest.raises(ConfigError, match='two runs or more'):
        compare(first)


def test_the_commit_of_the_code_and_whether_it_was_changed_since(tmp_path):
    assert git_state(tmp_path) is None

    def git(*arguments):
        who = ['-c', 'user.name=a', '-c', 'user.email=a@b']
        return subprocess.run(['git', '-C', tmp_path, *who, *arguments], check=True, capture_output=True, text=True)

    git('init', '-q', '-b', 'trunk')
    (tmp_path / 'model.py').write_text('a = 1\n')
    git('add', '.')
    git('commit', '-qm', 'a')
    state = git_state(tmp_path)
    assert state == {'commit': git('rev-parse', 'HEAD').stdout.strip(), 'branch': 'trunk', 'dirty': False}
    (tmp_path / 'model.py').write_text('a = 2\n')
    assert git_state(tmp_path)['dirty']
