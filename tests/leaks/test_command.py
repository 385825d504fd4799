"""`mmpipe leaks`: what it prints, and its exit status."""

from __future__ import annotations

import json

import pytest

from mmpipe.cli import app
from mmpipe.shards import Block, Field, write_snapshot

GROUP = Field(name='group', kind='string')


@pytest.mark.parametrize(('splits', 'status'), [(['train', 'train', 'val'], 0), (['train', 'val', 'val'], 1)])
def test_the_exit_status_says_whether_something_leaks(tmp_path, capsys, splits, status):
    block = Block(keys=['a', 'b', 'c'], columns={'group': ['one', 'one', 'two']}, splits=splits)
    write_snapshot(tmp_path, [GROUP], block)
    assert (app(['leaks', 'demo', '--root', str(tmp_path), '--json'], standalone_mode=False) or 0) == status
    result = json.loads(capsys.readouterr().out)
    assert result['ok'] is (status == 0)
    assert result['counts']['group'] == status
    assert (app(['leaks', 'demo', '--root', str(tmp_path)], standalone_mode=False) or 0) == status
    assert ('nothing leaks' in capsys.readouterr().out) is (status == 0)
