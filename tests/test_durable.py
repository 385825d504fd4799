"""Files appear whole or not at all, and what has been written survives a power cut."""

from __future__ import annotations

import os
import stat

import pytest

from mmpipe.durable import new_directory, write_bytes, write_json


def test_a_directory_that_fails_halfway_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), new_directory(tmp_path / 'a') as folder:  # noqa: PT012
        (folder / 'x').write_text('x')
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_value_that_is_not_json_leaves_the_old_file(tmp_path):
    write_json(tmp_path / 'a.json', {'x': 1})
    with pytest.raises(ValueError, match='JSON'):
        write_json(tmp_path / 'a.json', {'x': float('nan')})
    assert (tmp_path / 'a.json').read_text() == '{\n  "x": 1\n}\n'


def test_a_write_that_fails_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    write_bytes(tmp_path / 'a', b'old')
    with pytest.raises(TypeError):
        write_bytes(tmp_path / 'a', 'not bytes')
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [('a', b'old')]


def test_a_file_is_readable_as_any_other_file_is(tmp_path):
    (tmp_path / 'usual').write_bytes(b'')
    write_bytes(tmp_path / 'a', b'')
    assert stat.S_IMODE((tmp_path / 'a').stat().st_mode) == stat.S_IMODE((tmp_path / 'usual').stat().st_mode)


@pytest.mark.skipif(not os.path.isdir('/proc/self/fd'), reason='tells by /proc which file a handle is of')
def test_files_renames_and_new_folders_are_flushed_in_an_order_that_keeps_them(tmp_path, monkeypatch):
    """What the disk is asked for: the file before its name, the name, and every new folder in the one above."""
    done = []
    replace, fsync = os.replace, os.fsync

    def flushed(handle):
        fsync(handle)
        name = os.path.relpath(os.readlink(f'/proc/self/fd/{handle}'), tmp_path)
        done.append('the file' if name.endswith('.tmp') else name)

    def renamed(old, new):
        replace(old, new)
        done.append('its name')

    monkeypatch.setattr(os, 'fsync', flushed)
    monkeypatch.setattr(os, 'replace', renamed)
    write_bytes(tmp_path / 'x' / 'y' / 'a', b'1')
    assert done == ['x', '.', 'the file', 'its name', 'x/y']
