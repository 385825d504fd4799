"""Functions of the user that hold Python's lock run in worker processes; one that dies is named."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from batches import same_batch
from host_functions import die_at_seven, halved, sevens_fail

from mmpipe.data import DataLoader
from mmpipe.errors import DataError, WorkerError


def loader_of(shop, function, **options):
    rows = shop.split('train')
    options = {'batch_size': 10, 'shuffle': True, 'device': 'cpu', 'fields': ['weight', 'kind'], **options}
    return DataLoader(rows, host_transforms={'weight': function}, **options)


def test_processes_give_the_batches_of_this_process_over_epochs_and_stay_for_the_next_pass(full_shop):
    alone = loader_of(full_shop, halved, num_workers=0)
    loader = loader_of(full_shop, halved, num_workers=2)
    bare = DataLoader(full_shop.split('train'), batch_size=10, shuffle=True, device='cpu', fields=['weight'])
    pids = set()
    for _ in range(2):
        for one, other, plain in zip(loader, alone, bare, strict=True):
            assert same_batch(one, other)
            assert np.allclose(one['weight'].numpy(), plain['weight'].numpy() / 2)
        pids.add(tuple(loader._processes.pids))
    assert len(pids) == 1
    for _ in loader:  # a pass that is left
        break
    assert [len(batch['_key']) for batch in loader] == [len(batch['_key']) for batch in alone]


@pytest.mark.parametrize('workers', [0, 1])
def test_a_function_that_raises_is_named_with_field_and_row(full_shop, workers):
    with pytest.raises(DataError, match=r"host_transforms\['weight'\] failed on row '.*' with ValueError: seven"):
        list(loader_of(full_shop, sevens_fail, num_workers=workers))


def test_a_worker_that_dies_is_named_with_its_signal_and_the_row_it_worked_on(full_shop):
    with pytest.raises(WorkerError, match=r"SIGKILL while it made sample 7 of .*row 'sku-0009'"):
        list(loader_of(full_shop, die_at_seven, num_workers=1, shuffle=False))


def test_the_next_pass_after_a_death_starts_new_workers(full_shop):
    loader = loader_of(full_shop, die_at_seven, num_workers=1, batch_size=100, shuffle=False)  # in its only batch
    for _ in range(2):
        with pytest.raises(WorkerError, match='SIGKILL'):
            list(loader)


def test_a_worker_imports_neither_torch_nor_pixeltable(full_shop):
    from host_functions import heavy_modules

    loader = loader_of(full_shop, heavy_modules, num_workers=1)
    assert next(iter(loader))['weight'].sum() == 0


@pytest.mark.slow
def test_an_interrupted_script_leaves_no_worker(tmp_path, full_shop):
    script = tmp_path / 'script.py'
    script.write_text(
        'import os, sys, signal\n'
        f'sys.path.insert(0, {os.path.dirname(os.path.abspath(sys.modules["host_functions"].__file__))!r})\n'
        'from host_functions import halved\n'
        'from mmpipe.data import DataLoader\n'
        'from mmpipe.shards import open_snapshot\n'
        "if __name__ == '__main__':\n"
        f'    rows = open_snapshot({str(full_shop.root)!r}).rows()\n'
        "    loader = DataLoader(rows, batch_size=4, host_transforms={'weight': halved}, num_workers=2, device='cpu')\n"
        '    batches = iter(loader); next(batches); print(*loader._processes.pids, flush=True)\n'
        '    os.kill(os.getpid(), signal.SIGINT)\n'
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode in (-signal.SIGINT, 1), done.stderr
    pids = [int(each) for each in done.stdout.split()]
    assert len(pids) == 2
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
