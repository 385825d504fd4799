"""The cache of results: bounded, shared by processes, and nothing in it is unpickled."""

from __future__ import annotations

import logging
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from mmpipe.errors import ConfigError
from mmpipe.results import ResultCache, cache_limit, content_key, from_bytes, to_bytes

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(plain)
def test_plain_json_comes_back_as_itself(value) -> None:
    content = to_bytes(value)
    assert content is not None
    assert from_bytes(content) == value
    assert type(from_bytes(content)) is type(value)


@given(arrays.arrays(st.sampled_from(['u1', 'i8', 'f4', 'f2', '?']), arrays.array_shapes(max_dims=3, max_side=4)))
def test_arrays_come_back_bit_for_bit(value: np.ndarray) -> None:
    content = to_bytes(value)
    assert content is not None
    read = from_bytes(content)
    assert (read.dtype, read.shape, read.tobytes()) == (value.dtype, value.shape, value.tobytes())


def test_what_only_a_pickle_could_hold_is_neither_kept_nor_read() -> None:
    assert to_bytes(np.array([object()])) is None
    assert to_bytes({1: 'a'}) is None
    assert to_bytes([np.float32(1)]) is None
    with pytest.raises(ValueError, match='allow_pickle'):
        from_bytes(b'N' + pickle.dumps(np.zeros(1)))


@given(plain, plain)
def test_keys_are_equal_for_equal_content_only(a, b) -> None:
    same = repr(a) == repr(b) or (a == b and type(a) is type(b) and isinstance(a, dict))
    assert (content_key('f', {'x': a}) == content_key('f', {'x': b})) == same
    assert content_key('f', {'x': a}) != content_key('g', {'x': a})


def test_images_count_by_what_is_seen_of_them_and_files_by_their_bytes(tmp_path: Path) -> None:
    def key(value):
        return content_key('f', {'x': value})

    red = Image.new('RGB', (4, 2), 'red')
    assert key(red) == key(red.copy())
    others = [Image.new('RGB', (2, 4), 'red'), Image.new('RGBA', (4, 2), 'red'), Image.new('RGB', (4, 2), 'blue')]
    assert len({key(image) for image in (red, *others)}) == 4
    for name in 'ab':
        (tmp_path / name).write_bytes(b'same')
    assert key(tmp_path / 'a') == key(tmp_path / 'b')
    (tmp_path / 'b').write_bytes(b'other')
    assert key(tmp_path / 'a') != key(tmp_path / 'b')


def test_it_stays_below_its_limit_keeps_what_was_used_last_and_says_when_it_is_too_small(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = ResultCache(tmp_path / 'results.sqlite', limit=100_000)
    with caplog.at_level(logging.WARNING):
        for i in range(1000):
            cache.put(str(i).encode(), b'x' * 500)
            cache.get(b'0')
            assert cache.size() < 100_000 + 64 * 510
    assert cache.get(b'0') is not None
    assert cache.get(b'1') is None
    assert cache.get(b'999') is not None
    assert [record.message.partition(',')[0] for record in caplog.records] == [
        'the result cache of 0.0 GB is smaller than what this process computes'
    ]


def test_processes_share_it(tmp_path: Path) -> None:
    path = tmp_path / 'results.sqlite'
    script = (
        'import sys; from pathlib import Path; from mmpipe.results import ResultCache\n'
        f'cache = ResultCache(Path({str(path)!r}), limit=10**9)\n'
        'for i in range(300):\n'
        "    cache.put(f'{sys.argv[1]}{i}'.encode(), b'v' * 100)\n"
        "    cache.put(f'both{i}'.encode(), b'v' * 100)\n"
    )
    started = [subprocess.Popen([sys.executable, '-c', script, name]) for name in ('a', 'b')]
    assert [process.wait() for process in started] == [0, 0]
    cache = ResultCache(path, limit=10**9)
    assert all(cache.get(f'{name}{i}'.encode()) == b'v' * 100 for name in ('a', 'b', 'both') for i in range(300))


def test_a_limit_that_is_no_size_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_limit() == 0
    monkeypatch.setenv('MMPIPE_RESULT_CACHE_GB', '0.5')
    assert cache_limit() == 500_000_000
    for wrong in ('much', '-1', 'nan'):
        monkeypatch.setenv('MMPIPE_RESULT_CACHE_GB', wrong)
        with pytest.raises(ConfigError, match='a number of gigabytes is meant'):
            cache_limit()


def test_a_damaged_cache_fails_no_cell(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / 'results.sqlite'
    cache = ResultCache(path, limit=10**9)
    cache.put(b'key', b'value')
    cache._database.execute('PRAGMA wal_checkpoint(TRUNCATE)')
    path.write_bytes(b'no database any more' * 1000)
    cache._database.close()
    assert cache.get(b'key') is None
    cache.put(b'key', b'value')
    assert 'it is computed instead' in caplog.text
    assert 'delete the file if this goes on' in caplog.text
