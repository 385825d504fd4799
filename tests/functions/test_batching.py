from __future__ import annotations

import asyncio
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmpipe.functions.batching import BATCH, in_batches
from mmpipe.functions.parallel import cores, in_pool, in_turn


def collect(numbers, fails=(), key='k', run=None):
    """Results or errors of all cells, and the batches that ran."""
    batches = []

    def prepare(n):
        if n in fails:
            raise ValueError(n)
        return n

    def double(items):
        batches.append(items)
        return [2 * n for n in items]

    async def main():
        cells = (in_batches(key, lambda n=n: prepare(n), run or double) for n in numbers)
        return await asyncio.gather(*cells, return_exceptions=True)

    return asyncio.run(main()), batches


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 100), st.sets(st.integers(0, 99)))
def test_every_cell_gets_its_own_result_or_its_own_error(count, fails):
    results, batches = collect(range(count), fails)
    for n, result in enumerate(results):
        if n in fails:
            assert isinstance(result, ValueError)
            assert result.args == (n,)
        else:
            assert result == 2 * n
    assert sorted(n for batch in batches for n in batch) == [n for n in range(count) if n not in fails]
    assert all(1 <= len(batch) <= BATCH for batch in batches)
    good = count - len({f for f in fails if f < count})
    assert len(batches) == -(-good // BATCH)  # no batch is started early


def test_a_model_that_fails_fails_its_batch_and_not_the_next():
    calls = []

    def run(items):
        calls.append(len(items))
        if len(calls) == 1:
            raise RuntimeError('no memory')
        return items

    results, _ = collect(range(BATCH + 3), run=run)
    assert sum(isinstance(r, RuntimeError) for r in results) in (BATCH, 3)
    assert calls == [BATCH, 3]


def test_a_cancelled_cell_does_not_hold_the_others_up():
    async def main():
        gate = threading.Event()
        slow = asyncio.create_task(in_batches('cancel', lambda: gate.wait(10), list))
        fast = asyncio.create_task(in_batches('cancel', lambda: 'fast', list))
        await asyncio.sleep(0)
        slow.cancel()
        gate.set()
        assert await fast == 'fast'
        with pytest.raises(asyncio.CancelledError):
            await slow

    asyncio.run(main())


def test_another_event_loop_starts_afresh():
    for _ in range(3):
        assert collect([1, 2])[0] == [2, 4]


def test_the_pool_runs_two_at_once_and_the_model_thread_one():
    meet = threading.Barrier(2, timeout=10)

    async def both():
        return await asyncio.gather(in_pool(meet.wait), in_pool(meet.wait))

    if cores() > 1:
        assert sorted(asyncio.run(both())) == [0, 1]  # each waited for the other inside the pool

    async def names():
        return await asyncio.gather(*(in_turn(lambda: threading.current_thread().name) for _ in range(4)))

    assert len(set(asyncio.run(names()))) == 1
