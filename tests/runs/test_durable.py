"""Files appear whole or not at all."""

from __future__ import annotations

import pytest

from mmpipe.runs.durable import new_directory, write_json


def test_a_directory_that_fails_halfway_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), new_directory(tmp_path / 'a') as folder:  # noqa: PT012
        (folder / 'x').write_text('x')
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_value_that_is_not_json_leaves_the_old_file(tmp_path):
    write_json(tmp_path / 'a.json', {'x': 1})
    with pytest.raises(ValueError, match='JSON'):
        write_json(tmp_path / 'a.json', {'x': float('nan')})
    assert '1' in (tmp_path / 'a.json').read_text()
