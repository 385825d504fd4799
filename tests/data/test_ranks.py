"""Ranks that read damaged rows: as many steps as each other, nobody waits for ever, and every row comes once."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from mmpipe.shards import Block, Field, write_snapshot

SCRIPT = """
import json
import sys
import numpy as np
import torch
from torch import distributed
from mmpipe.data import DataLoader
from mmpipe.errors import DataError
from mmpipe.shards import open_snapshot

class Picture:
    shape, rest, dtype, draws = (4, 4), (), 'uint8', 0

    def decode(self, data, draws, out):
        if len(data) != 16:
            raise DataError(f'{len(data)} bytes are no picture')
        out[:] = np.frombuffer(data, dtype='uint8').reshape(4, 4)
        return out

def main(shards, rank, world, store, options):
    torch.set_num_threads(1)
    distributed.init_process_group('gloo', init_method=f'file://{store}', rank=rank, world_size=world)
    rows = open_snapshot(shards).rows()
    loader = DataLoader(rows, shuffle=True, device='cpu', decode={'picture': Picture()}, on_error='mask', **options)
    found = {'steps': [], 'keys': [], 'padded': 0}
    for epoch in range(2):
        for batch in loader:
            there = batch['_mask']['picture']
            whole = torch.tensor([len(there), int(there.sum())])
            distributed.all_reduce(whole)  # would hang if a rank had another number of steps
            found['steps'].append(whole.tolist())
            found['keys'].append(batch['_key'])
    found['failed'] = sorted(key for key, _ in loader.failed)
    print(json.dumps(found))
    distributed.destroy_process_group()

if __name__ == '__main__':
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], json.loads(sys.argv[5]))
"""


def ranks(tmp_path, world, share, options):
    rng = np.random.default_rng(world)
    bad = rng.random(101) < share
    bad[7] = True
    pictures = [bytes(3 if each else 16) for each in bad]
    fields = [Field(name='picture', kind='binary')]
    block = Block(keys=[f'k{i:03}' for i in range(101)], columns={'picture': pictures})
    write_snapshot(tmp_path / 'shards', fields, block)
    script = tmp_path / 'ranks.py'
    script.write_text(SCRIPT)
    command = [sys.executable, script, tmp_path / 'shards']
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(world), tmp_path / 'store', json.dumps(options)],
            stdout=subprocess.PIPE, text=True, env={**os.environ, 'OMP_NUM_THREADS': '1'},
        )
        for rank in range(world)
    ]  # fmt: skip
    found = [json.loads(process.communicate(timeout=120)[0]) for process in processes]
    assert [process.returncode for process in processes] == [0] * world
    return found, {f'k{i:03}' for i in np.flatnonzero(bad)}


def check(found, bad, *, fillers=0):
    assert all(each['steps'] == found[0]['steps'] for each in found)
    keys = [[key for step in each['keys'] for key in step] for each in found]
    assert len({len(each['keys']) for each in found}) == 1
    assert sum(len(each) for each in keys) == 2 * (101 + fillers)
    assert set().union(*keys) == {f'k{i:03}' for i in range(101)}
    assert set().union(*(each['failed'] for each in found)) == bad
    # What is missing is counted once: fillers do not count as present.
    assert sum(present for _, present in found[0]['steps']) == 2 * (101 - len(bad))


def test_two_ranks_with_a_tenth_of_damaged_rows(tmp_path):
    found, bad = ranks(tmp_path, 2, 0.1, {'batch_size': 8})
    check(found, bad)


@pytest.mark.slow
@pytest.mark.parametrize('world', [2, 4])
@pytest.mark.parametrize(('share', 'options', 'fillers'), [
    (0.01, {'global_batch_size': 9}, 0), (0.3, {'batch_size': 5}, 0),
    (0.3, {'global_batch_size': 16, 'pad_last': True}, 11),
])  # fmt: skip
def test_ranks_of_any_number_and_share_of_damaged_rows(tmp_path, world, share, options, fillers):
    found, bad = ranks(tmp_path, world, share, options)
    check(found, bad, fillers=fillers)
