"""Small batches that are read several at once are the batches that are read one by one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmpipe.data import DataLoader
from mmpipe.data.batch import BatchTask, Request
from mmpipe.data.grouped import MOST, GroupedReader, batches_at_once
from mmpipe.data.threads import ThreadReader
from mmpipe.shards import Block, Field, write_snapshot

DENSE = ['price', 'vector', 'kind']


@pytest.fixture(scope='module')
def rows(tmp_path_factory: pytest.TempPathFactory):
    fields = [
        Field(name='price', kind='scalar', dtype='float32'),
        Field(name='vector', kind='tensor', dtype='float32', shape=(200,)),
        Field(name='kind', kind='label', vocabulary=('cat', 'dog')),
        Field(name='title', kind='string'),
    ]
    vectors = np.random.default_rng(0).normal(size=(41, 200)).astype(np.float32)
    columns = {
        'price': [None if i % 5 == 0 else i / 2 for i in range(41)],
        'vector': [None if i % 7 == 0 else vector for i, vector in enumerate(vectors)],
        'kind': ['cat' if i % 2 else 'dog' for i in range(41)],
        'title': [f'{i}' for i in range(41)],
    }
    folder = tmp_path_factory.mktemp('rows')
    return write_snapshot(folder, fields, Block(keys=[f'{i:02}' for i in range(41)], columns=columns)).rows()


class Counting(ThreadReader):
    """Counts what it is asked for."""

    asked = 0

    def submit(self, request: Request) -> None:
        self.asked += 1
        super().submit(request)


@given(
    sizes=st.lists(st.integers(0, 6), min_size=1, max_size=20),
    most=st.integers(1, 5),
    ahead=st.integers(1, 12),
    seed=st.integers(0, 99),
)
def test_each_batch_is_what_it_would_be_alone(rows, sizes, most, ahead, seed):
    task = BatchTask(rows, DENSE)
    draw = np.random.default_rng(seed)
    requests = [Request(draw.integers(0, len(rows), size)) for size in sizes]
    if sizes[-1]:
        requests[-1] = Request(requests[-1].positions, padded=1)
    reader = GroupedReader(ThreadReader(task, threads=0, allocate=np.empty), most=most)
    waiting = iter(requests)
    for number, request in enumerate(requests):
        while reader.pending < ahead and (one := next(waiting, None)) is not None:
            reader.submit(one)
        found, expected = reader.next(), task(request)
        assert found.keys() == expected.keys()
        assert found['_key'] == expected['_key'], number
        for name in DENSE:
            assert np.array_equal(found[name], expected[name])
            assert np.array_equal(found['_mask'][name], expected['_mask'][name])
    assert reader.pending == 0


def test_one_batch_is_asked_for_at_first_and_then_twice_as_many_each_time(rows):
    inner = Counting(BatchTask(rows, DENSE), threads=0, allocate=np.empty)
    reader = GroupedReader(inner, most=4)
    for _ in range(11):
        reader.submit(Request(np.arange(3)))
    assert inner.asked == 4  # of 1, 2, 4 and 4
    assert [len(reader.next()['_key']) for _ in range(11)] == [3] * 11


def test_what_is_large_or_has_no_size_is_read_alone(rows):
    assert batches_at_once(BatchTask(rows, DENSE), 10) == MOST
    assert batches_at_once(BatchTask(rows, DENSE), 1000) == 2
    assert batches_at_once(BatchTask(rows, DENSE), 1 << 20) == 1
    assert batches_at_once(BatchTask(rows, [*DENSE, 'title']), 10) == 1
    assert batches_at_once(BatchTask(rows, DENSE, host={'vector': np.abs}), 10) == 1
    assert batches_at_once(BatchTask(rows, DENSE), 0) == 1  # a sampling that cuts batches of several sizes


def _passes(loader: DataLoader) -> list:
    return [
        (batch['_key'], {name: (batch[name].tolist(), batch['_mask'][name].tolist()) for name in DENSE})
        for _ in range(2)
        for batch in loader
    ]


@pytest.mark.parametrize('workers', [0, 1, 3])
@pytest.mark.parametrize('options', [{}, {'drop_last': True}, {'pad_last': True}])
def test_a_loader_gives_the_same_with_and_without(rows, workers, options):
    def loader(**more) -> DataLoader:
        return DataLoader(rows, batch_size=4, shuffle=True, seed=3, device='cpu', fields=DENSE, **options, **more)

    assert _passes(loader(num_workers=workers)) == _passes(loader(num_workers=workers, prefetch_factor=1))


def test_a_pass_resumes_in_the_middle_of_what_was_read_at_once(rows):
    def loader() -> DataLoader:
        return DataLoader(rows, batch_size=3, shuffle=True, seed=1, device='cpu', fields=DENSE)

    whole, first, second = list(loader()), loader(), loader()
    passing = iter(first)
    for _ in range(5):
        next(passing)
    second.load_state_dict(first.state_dict())
    assert [batch['_key'] for batch in second] == [batch['_key'] for batch in whole[5:]]


def test_batches_can_be_kept_and_changed_without_touching_each_other(rows):
    loader = DataLoader(rows, batch_size=4, device='cpu', fields=DENSE)
    expected = [batch['vector'].clone() for batch in loader]
    kept = []
    for batch in loader:
        kept.append(batch)
        for earlier in kept[:-1]:
            earlier['vector'].zero_()
        assert torch.equal(batch['vector'], expected[len(kept) - 1])


def test_what_fails_is_raised_and_the_reader_goes_on_with_the_next(rows, monkeypatch):
    task, failing = BatchTask(rows, DENSE), [True]
    fill: Callable = type(rows).fill

    def broken(self, name, indices, out):
        if failing.pop() if failing else False:
            raise OSError('the disk is gone')
        return fill(self, name, indices, out)

    monkeypatch.setattr(type(rows), 'fill', broken)
    reader = GroupedReader(ThreadReader(task, threads=0, allocate=np.empty), most=2)
    for _ in range(3):
        reader.submit(Request(np.arange(2)))
    with pytest.raises(OSError, match='the disk is gone'):
        reader.next()
    assert [reader.next()['_key'], reader.next()['_key']] == [['00', '01']] * 2
