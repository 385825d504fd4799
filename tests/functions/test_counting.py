from __future__ import annotations

import asyncio
import inspect
import threading
import typing

import pixeltable as pxt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pixeltable.func import Batch

from mmpipe.functions import counting
from mmpipe.functions.counting import counted, counts, reset


@pxt.udf
@counted
def plain(x: int, *, scale: float = 2.0) -> float:
    """Scaled."""
    return x * scale


@pxt.udf
@counted
async def awaited(x: int) -> str | None:
    await asyncio.sleep(0)
    return str(x)


@pxt.udf(batch_size=4)
@counted
def batched(prefix: str, x: Batch[int]) -> Batch[str]:
    return [prefix + str(i) for i in x]


@pxt.udf(batch_size=4)
@counted
async def batched_awaited(x: Batch[pxt.Image | None], *, size: int = 1) -> Batch[pxt.Json]:
    return [size for _ in x]


class Row(typing.TypedDict):
    n: int


@pxt.iterator
@counted
def rows(count: int, *, first: int = 0) -> typing.Iterator[Row]:
    for n in range(count):
        yield {'n': first + n}


@pytest.mark.parametrize(
    ('function', 'signature'),
    [
        (plain, '(x: pxt.Int, *, scale: pxt.Float) -> pxt.Float'),
        (awaited, '(x: pxt.Int) -> pxt.String | None'),
        (batched, '(prefix: pxt.String, x: pxt.Int) -> pxt.String'),
        (batched_awaited, '(x: pxt.Image | None, *, size: pxt.Int) -> pxt.Json'),
    ],
)
def test_pixeltable_sees_the_signature_below_the_counter(function, signature):
    assert str(function.signature) == signature
    assert function.is_async == ('awaited' in function.name)
    assert function.is_batched == ('batched' in function.name)
    assert function.self_path == f'{__name__}.{function.name}'
    assert inspect.unwrap(function.py_fn).__name__ == function.name


def test_a_batch_counts_its_cells_and_a_generator_its_rows():
    reset()
    assert plain.py_fn(3) == 6.0
    assert asyncio.run(awaited.py_fn(3)) == '3'
    assert batched.py_fn('a', [1, 2, 3]) == ['a1', 'a2', 'a3']
    assert batched.py_fn(x=[], prefix='a') == []
    assert asyncio.run(batched_awaited.py_fn([None, None], size=9)) == [9, 9]
    assert [row['n'] for row in rows.decorated_callable(3, first=2)] == [2, 3, 4]
    assert counts() == {'plain': 1, 'awaited': 1, 'batched': 3, 'batched_awaited': 2, 'rows': 3}


def test_a_call_that_raises_counts_nothing():
    reset()
    with pytest.raises(TypeError):
        plain.py_fn(None)
    assert counts() == {}


def test_counts_is_a_copy():
    reset()
    counts()['plain'] = 7
    assert counts() == {}


@given(st.lists(st.integers(0, 50), max_size=6))
def test_threads_lose_no_counts(cells):
    reset()
    threads = [threading.Thread(target=lambda n=n: [counting.add('f', 1) for _ in range(n)]) for n in cells]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts().get('f', 0) == sum(cells)


def test_no_two_functions_share_a_name():
    import mmpipe.functions

    names = [getattr(getattr(mmpipe.functions, name), 'name', name) for name in mmpipe.functions.__all__]
    assert len(set(names)) == len(names)
