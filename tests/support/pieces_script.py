"""What ranks of `test_pieces.py` run: tensors spread in random ways, written in pieces, read back spread in others."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import distributed
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

import mmpipe as mm
from mmpipe.models.pieces import FILE, read_pieces, take_pieces
from mmpipe.runs.seal import seal

DTYPES = (torch.float32, torch.bfloat16, torch.int64)


def meshes():
    """Of all processes: a line, and a square where there are four."""
    size = distributed.get_world_size()
    yield distributed.init_device_mesh('cpu', (size,))
    if size == 4:
        yield distributed.init_device_mesh('cpu', (2, 2))


def placed(whole: torch.Tensor, mesh, rng: random.Random) -> torch.Tensor:
    """A tensor as it is, or spread at random."""
    if not whole.ndim or rng.random() < 0.2:
        return whole.clone()
    choices = [Replicate(), *(Shard(axis) for axis in range(whole.ndim))]
    return distribute_tensor(whole, mesh, [rng.choice(choices) for _ in range(mesh.ndim)])


def as_whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def main(folder: str, rounds: str) -> None:
    torch.set_num_threads(1)
    with mm.process_group(timeout_s=60):
        known = list(meshes())
        for number in range(int(rounds)):
            rng = random.Random(number)  # the same on all ranks
            torch.manual_seed(number)
            wholes = {
                f't{i}': torch.randint(-99, 99, [rng.randrange(1, 7) for _ in range(rng.randrange(4))]).to(
                    rng.choice(DTYPES)
                )
                for i in range(5)
            }
            pieces = take_pieces({name: placed(whole, rng.choice(known), rng) for name, whole in wholes.items()})
            here = Path(folder) / str(number)
            here.mkdir(exist_ok=True, parents=True)
            save_file(pieces.own, here / pieces.file)
            if pieces.index is not None:
                (here / FILE).write_text(json.dumps(pieces.index))
            distributed.barrier()
            if pieces.index is not None:
                seal(here, {})
            distributed.barrier()
            found = {name: placed(torch.zeros_like(whole), rng.choice(known), rng) for name, whole in wholes.items()}
            read_pieces(here, found)
            for name, whole in wholes.items():
                assert torch.equal(as_whole(found[name]), whole), (number, name)


if __name__ == '__main__':
    main(*sys.argv[1:])
