"""Worker processes: the same results in the same order, memory that comes back, and errors that say what happened."""

from __future__ import annotations

import contextlib
import gc
import os
import random
import re
import signal
import time

import numpy as np
import pytest
import torch
import worker_tasks as tasks
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import gone, mappings

from mmpipe.errors import ConfigError, DataError, WorkerError
from mmpipe.workers import ProcessReader

HARD = pytest.mark.hardening


def requests(count, rows=4):
    return [{'positions': np.arange(i * rows, (i + 1) * rows), 'epoch': 1} for i in range(count)]


@contextlib.contextmanager
def reading(task, **options):
    reader = ProcessReader(task, **{'processes': 2, 'depth': 4, **options})
    try:
        yield reader
    finally:
        reader.close()


def results(reader, wanted):
    for request in wanted:
        reader.submit(request)
    return [reader.next() for _ in wanted]


def assert_same(found, expected):
    assert type(found) is type(expected)
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        for name in expected:
            assert_same(found[name], expected[name])
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    elif isinstance(expected, np.ndarray):
        assert found.dtype == expected.dtype
        assert found.shape == expected.shape
        assert found.flags.writeable
        np.testing.assert_array_equal(found, expected)
    else:
        assert found == expected


def slots_mapped():
    """Slots that this process has mapped, of whichever reader."""
    assert '/dev/shm' not in mappings()  # where names could be left
    return mappings().count('memfd:mmpipe')


def shared(array):
    """Whether an array lies in a slot."""
    address = array.ctypes.data
    ranges = [line.split()[0].split('-') for line in mappings().splitlines() if 'memfd:mmpipe' in line]
    return any(int(start, 16) <= address < int(end, 16) for start, end in ranges)


@settings(max_examples=12, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=12),
    processes=st.sampled_from([1, 2, 4]),
    depth=st.sampled_from([None, 1, 3, 20]),
    pool=st.sampled_from([0, 300_000, 1 << 30]),
)
def test_results_are_those_of_the_task_in_this_process_in_the_order_submitted(sizes, processes, depth, pool):
    wanted = [
        {'positions': [100 * i + row for row in range(size)], 'keys': ['k'] * size} for i, size in enumerate(sizes)
    ]
    with reading(tasks.mixed, processes=processes, depth=depth, pool=pool) as reader:
        found = results(reader, wanted)
        assert reader.pending == 0
    for one, request in zip(found, wanted, strict=True):  # after the workers have gone
        assert_same(one, tasks.mixed(request, np.empty))


def test_all_workers_work_and_global_generators_are_a_function_of_the_request():
    wanted = [*requests(6), *requests(6)]
    drawn = {}
    for processes in (1, 2, 4):
        with reading(tasks.draws, processes=processes) as reader:
            found = results(reader, wanted)
        assert len({one['pid'] for one in found}) == processes
        drawn[processes] = [one['numbers'] for one in found]
    assert drawn[1] == drawn[2] == drawn[4]
    assert drawn[1][:6] == drawn[1][6:]
    assert len(set(drawn[1])) == 6


@pytest.mark.parametrize('pool', [1 << 30, 3_000_000])
def test_fifty_kept_batches_stay_as_they_are_and_their_memory_is_used_again_afterwards(pool):
    with reading(tasks.square, pool=pool) as reader:
        kept = []
        for request in requests(50):
            reader.submit(request)
            x = reader.next()['x']
            assert shared(x) == ((len(kept) + 1) * 323_584 <= pool)  # 79 pages each
            kept.append(torch.from_numpy(x)[1:, 5:].T[3])  # a view of a view of a view
            del x
        for number, row in enumerate(kept):
            assert row.tolist() == [(4 * number + i) ** 2 for i in (1, 2, 3)]
        most = reader.slots
        assert most <= pool // 320_000 + 2
        assert most >= min(50, pool // 320_000)  # views, not copies
        del kept, row
        gc.collect()
        for request in requests(60):
            reader.submit(request)
            x = reader.next()['x']
            assert x[0, 0] == request['positions'][0] ** 2
            assert shared(x)
            del x
        assert reader.slots == most


@pytest.mark.slow
def test_two_hundred_batches_take_no_more_memory_than_twenty():
    before = slots_mapped()
    with reading(tasks.square) as reader:
        seen = []
        for request in requests(200):
            reader.submit(request)
            if reader.pending > 3:
                reader.next()
            if reader.pending == 3:
                files = [len(os.listdir(f'/proc/{pid}/fd')) for pid in ('self', *reader.pids)]
                seen.append((reader.slots, slots_mapped() - before, files))
        assert seen[20] == seen[-1]
        assert reader.slots <= 6
        assert all('/dev/shm' not in mappings(pid) for pid in reader.pids)
    del reader
    gc.collect()
    assert slots_mapped() == before


def test_slots_grow_with_their_batches_and_new_ones_are_as_large_as_was_needed_before():
    sizes = []
    pin = lambda memory: sizes.append(len(memory)) or (lambda: None)  # noqa: E731
    with reading(tasks.square, processes=1, depth=1, pin=pin) as reader:

        def squares(size):
            reader.submit({'positions': np.arange(size)})
            x = reader.next()['x']
            assert x[:, 7].tolist() == [row**2 for row in range(size)]
            return x

        for size in (1, 30, 2, 60, 61, 59, 61):
            squares(size)
        assert reader.slots == 1
        assert len(sizes) == 3
        kept = [squares(61), squares(2), squares(61)]
        assert reader.slots == 3
        assert sizes[2:] == sizes[2:3] * 3
        assert [len(x) for x in kept] == [61, 2, 61]


def test_memory_is_pinned_while_there_is_any_of_it_and_no_longer():
    pinned = []

    def pin(memory):
        address = memory.ctypes.data
        pinned.append(address)
        return lambda: (pinned.remove(address), _mapped_at(address) or unmapped.append(address))

    unmapped = []
    with reading(tasks.square, pin=pin) as reader:
        for request in [*requests(10), *requests(10, rows=9)]:
            reader.submit(request)
            x = reader.next()['x']
            assert any(address <= x.ctypes.data < address + x.nbytes for address in pinned)
        assert len(pinned) == reader.slots
        kept = x[1:, 3]
        del x
    del reader
    gc.collect()
    assert len(pinned) == 1
    del kept
    assert pinned == unmapped == []


def _mapped_at(address):
    return any(line.startswith(f'{address:x}-') for line in mappings().splitlines())


def test_results_and_requests_that_are_no_arrays_block_nobody():
    wanted = [{'positions': list(range(200_000)), 'number': i} for i in range(8)]
    with reading(tasks.long_text, depth=None) as reader:
        assert [one['sum'] for one in results(reader, wanted)] == [sum(range(200_000))] * 8


@pytest.mark.parametrize('seed', [*range(5), *(pytest.param(seed, marks=HARD) for seed in range(5, 150))])
def test_a_worker_killed_at_any_moment_is_named_and_the_rest_is_stopped(seed):
    draw = random.Random(seed)
    with reading(tasks.slow, processes=3, depth=6) as reader:
        pids = reader.pids
        wait_s, taken = draw.random() * 0.1, 0
        for i in range(1000):
            reader.submit({'positions': [i], 'keys': [f'key{i}'], 'sleep': draw.random() * 0.004})
        victim, started = draw.choice(pids), time.monotonic()
        with pytest.raises(WorkerError, match='SIGKILL') as caught:  # noqa: PT012  at any of these
            while True:
                if time.monotonic() - started > wait_s:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(victim, signal.SIGKILL)
                    killed, wait_s = time.monotonic(), 1e9
                assert reader.next()['x'][0, 0] == taken**2
                taken += 1
        assert time.monotonic() - killed < 10
        message = str(caught.value)
        assert f'pid {victim}' in message
        rows = [int(found) for found in re.findall(r"'key(\d+)'", message)]
        if rows:  # what it was at is of its own requests, and not long past
            assert rows[0] % 3 == pids.index(victim)
            assert taken - 3 <= rows[0] < taken + 6
        else:
            assert re.search('while it (had nothing|started|loaded)', message)
        assert gone(pids)
        with pytest.raises(WorkerError, match='SIGKILL'):
            reader.submit({'positions': [0], 'sleep': 0})


@pytest.mark.parametrize(
    ('how', 'cause'),
    [
        ('segfault', r'was killed by SIGSEGV while it made .*(?s:.*)in crash_with_segfault'),
        ('abort', r'was killed by SIGABRT while it made '),
        ('os_exit', 'ended with exit code 3 while it made '),
        ('kill', 'was killed by SIGKILL while it made .*memory runs out'),
    ],
)
def test_a_worker_that_dies_is_named_with_its_cause_and_the_sample(how, cause):
    with reading(tasks.failing, processes=1, keys=lambda asked: [f'k{row}' for row in asked['positions']]) as reader:
        reader.submit({'positions': [1, 2], 'how': how})
        reader.submit({'positions': [12, 13, 14], 'epoch': 4, 'number': 7, 'how': how})
        assert reader.next()['x'][1, 0] == 4
        with pytest.raises(WorkerError, match=cause) as caught:
            reader.next()
    assert "sample 1 of batch 7 of epoch 4 (row 'k13')" in str(caught.value)


def test_a_worker_that_dies_with_nothing_to_do_is_noticed():
    with reading(tasks.square, processes=1) as reader:
        assert results(reader, requests(1))[0]['x'][1, 0] == 1
        os.kill(reader.pids[0], signal.SIGKILL)
        assert gone(reader.pids)
        reader.submit(requests(1)[0])
        with pytest.raises(WorkerError, match=r'SIGKILL while it (had nothing to do|was between batches)'):
            reader.next()


@pytest.mark.parametrize(
    ('how', 'kind', 'text'),
    [
        ('value', WorkerError, r'(?s)ValueError in .*, in sample 1 of batch 1 \(row 13\): thirteen.*raise_value'),
        ('data', DataError, "^field 'photo' of row 'k13' is not a JPEG"),
        ('unreadable', WorkerError, 'Unreadable.*unreadable'),
        ('exit', WorkerError, 'SystemExit'),
        ('memory', WorkerError, 'MemoryError'),
    ],
)  # fmt: skip
def test_what_a_task_raises_comes_out_at_its_turn_and_the_next_batches_after_it(how, kind, text):
    with reading(tasks.failing) as reader:
        for rows in ([1], [12, 13], [3], [13], [5]):
            reader.submit({'positions': rows, 'how': how})
        assert reader.next()['x'][0, 0] == 1
        with pytest.raises(kind, match=text) as caught:
            reader.next()
        if kind is DataError:
            assert str(caught.value) == "field 'photo' of row 'k13' is not a JPEG."
            assert 'raise_data' in caught.value.__notes__[0]
        assert reader.next()['x'][0, 0] == 9
        with pytest.raises(kind, match=text.replace('sample 1 of batch 1', 'sample 0 of batch 3')):
            reader.next()
        assert reader.next()['x'][0, 0] == 25
        assert reader.pending == 0


def test_a_result_that_cannot_be_pickled_is_an_error_of_its_batch():
    with reading(tasks.gives_a_lambda, processes=1) as reader:
        reader.submit({})
        with pytest.raises(WorkerError, match='pickle'):
            reader.next()


def test_a_task_that_cannot_be_loaded_says_why():
    with reading(tasks.Unloadable()) as reader:
        with pytest.raises(WorkerError, match='could not load the functions to run: OSError: no such model file'):
            results(reader, requests(1))
        assert reader.pids == []


def test_what_cannot_work_is_refused_at_once():
    with pytest.raises(ConfigError, match='top of a module'):
        ProcessReader(lambda request, allocate: {}, processes=1)
    with pytest.raises(ConfigError, match='processes=0'):
        ProcessReader(tasks.square, processes=0)
    with reading(tasks.nested, processes=1) as reader:
        reader.submit({})
        with pytest.raises(ConfigError, match='cannot have workers of its own'):
            reader.next()
        with pytest.raises(WorkerError, match='no batch was asked for'):
            reader.next()


def test_closing_stops_workers_amid_their_work():
    before = slots_mapped()
    reader = ProcessReader(tasks.slow, processes=2)
    pids = reader.pids
    for _ in range(4):
        reader.submit({'positions': [1], 'sleep': 600})
    while not all(_started(pid) for pid in pids):
        time.sleep(0.01)
    reader.close()
    assert gone(pids)
    reader.close()
    for use in (reader.next, lambda: reader.submit({})):
        with pytest.raises(WorkerError, match='closed'):
            use()
    assert slots_mapped() <= before


def _started(pid):
    return 'memfd:mmpipe' in mappings(pid)


def test_a_reader_that_is_dropped_stops_its_workers_and_leaves_the_results():
    reader = ProcessReader(tasks.square, processes=2)
    pids = reader.pids
    x = results(reader, requests(3))[2]['x']
    del reader
    gc.collect()
    assert gone(pids)
    assert x[1, 0] == 81


def test_a_fork_of_this_process_stops_nothing():
    with reading(tasks.square) as reader:
        pid = os.fork()
        if pid == 0:
            reader.close()
            os._exit(0)
        os.waitpid(pid, 0)
        assert len(results(reader, requests(2))) == 2


def test_without_a_fork_server_each_worker_is_a_new_interpreter(monkeypatch):
    monkeypatch.setattr('multiprocessing.get_all_start_methods', lambda: ['spawn'])
    with reading(tasks.failing, processes=1) as reader:
        for rows in ([4], [13]):
            reader.submit({'positions': rows, 'how': 'kill'})
        assert reader.next()['x'][0, 0] == 16
        with pytest.raises(WorkerError, match=r'was killed by SIGKILL while it made sample 0 of batch 1 \(row 13\)'):
            reader.next()


def test_ctrl_c_is_for_the_parent():
    with reading(tasks.slow) as reader:
        for i in range(40):
            reader.submit({'positions': [i], 'sleep': 0.002})
        found = []
        for i in range(40):
            found.append(reader.next()['x'][0, 0])
            os.kill(reader.pids[i % 2], signal.SIGINT)
        assert found == [i**2 for i in range(40)]


def test_a_worker_imports_neither_torch_nor_pixeltable_with_the_rows_of_a_snapshot(tmp_path):
    from mmpipe.data.batch import BatchTask, Request
    from mmpipe.shards import Block, Field, write_snapshot

    fields = [Field(name='x', kind='tensor', dtype='float32', shape=(4,))]
    block = Block(keys=['a', 'b'], columns={'x': [np.arange(4, dtype='f4'), np.ones(4, dtype='f4')]})
    rows = write_snapshot(tmp_path, fields, block).rows()
    task = BatchTask(rows, ['x'])
    with reading(tasks.WithModules(task), processes=1) as reader:
        reader.submit(Request(np.array([1, 0])))
        found = reader.next()
    loaded = {name.partition('.')[0] for name in found.pop('modules')}
    assert 'mmpipe' in loaded
    assert loaded & {'torch', 'pixeltable', 'sqlalchemy', 'fastapi', 'PIL', 'av', 'hypothesis'} == set()
    assert_same(found, task(Request(np.array([1, 0]))))


def test_a_worker_has_the_environment_of_the_moment_and_one_thread_for_libraries(monkeypatch):
    for chosen, expected in ((None, '1'), ('3', '3')):
        monkeypatch.setenv('SOME_NAME', str(chosen))
        if chosen is None:
            monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
        else:
            monkeypatch.setenv('OMP_NUM_THREADS', chosen)
        with reading(tasks.environment, processes=1) as reader:
            (found,) = results(reader, [{}])
        assert found['environment'] == {**os.environ, 'OMP_NUM_THREADS': expected}


def test_requests_of_any_class_are_named_in_errors():
    with reading(tasks.raises, processes=1) as reader:
        reader.submit(tasks.Request())
        with pytest.raises(WorkerError, match=re.escape('batch 77 of epoch 5 (6 rows: 10, 11, 12, 13, ...)')):
            reader.next()
