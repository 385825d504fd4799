"""Cells of equal content and equal code are computed once, in any process and after any edit that is undone."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import PIL.Image
import pixeltable as pxt
import pytest

from mmpipe.functions import cached, counted, counts, embed_image, reset

FACTOR = 2


@cached
@counted
async def scaled(x: int, *, by: int = 1) -> np.ndarray:
    await asyncio.sleep(0.01)
    if x == 13:
        raise ValueError('13 is unlucky')
    return np.full(2, FACTOR * by * x)


@cached
@counted
def length(speech: pxt.Audio) -> int:
    return len(Path(speech).read_bytes())


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv('MMPIPE_RESULT_CACHE_GB', '1')
    monkeypatch.setenv('MMPIPE_HOME', str(tmp_path))
    reset()


def run(*xs: int, by: int = 1) -> list:
    async def all_of_them():
        return await asyncio.gather(*(scaled(x, by=by) for x in xs), return_exceptions=True)

    return [each.tolist() if isinstance(each, np.ndarray) else each for each in asyncio.run(all_of_them())]


def test_equal_cells_are_computed_once_together_and_later() -> None:
    assert run(1, 2, 1, 1) == [[2, 2], [4, 4], [2, 2], [2, 2]]
    assert counts() == {'scaled': 2}
    assert run(2, 1, 3) == [[4, 4], [2, 2], [6, 6]]
    assert counts() == {'scaled': 3}
    assert run(1, by=2) == [[4, 4]]  # another constant is another column
    assert counts() == {'scaled': 4}


def test_an_error_is_every_cells_own_and_never_kept() -> None:
    for _ in range(2):
        assert [type(each) for each in run(13, 13, 1)] == [ValueError, ValueError, list]
    assert counts() == {'scaled': 1}


def test_without_a_size_nothing_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv('MMPIPE_RESULT_CACHE_GB')
    run(1)
    run(1)
    assert counts() == {'scaled': 2}
    assert not (tmp_path / 'cache').exists()


def test_a_file_counts_by_its_bytes(tmp_path: Path) -> None:
    for name in 'ab':
        (tmp_path / name).write_bytes(b'xyz')
    assert [length(str(tmp_path / name)) for name in 'ab'] == [3, 3]
    assert counts() == {'length': 1}
    (tmp_path / 'a').write_bytes(b'wxyz')
    assert length(str(tmp_path / 'a')) == 4


def test_embeddings_of_equal_images_are_computed_once() -> None:
    async def embed():
        images = [PIL.Image.new('RGB', (20, 20), colour) for colour in ('red', 'blue', 'red')]
        return await asyncio.gather(*(embed_image.py_fn(image, size=64) for image in images))

    first = asyncio.run(embed())
    again = asyncio.run(embed())
    assert counts() == {'embed_image': 2}
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
