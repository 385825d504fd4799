"""What a federation costs beside the training in it, in one process; and what is left of one whose clients are killed.

Each repeat runs a round of four clients and the same trainings by hand: the same rows, loaders, trainer and run
records. Which of the two comes first changes from repeat to repeat. A client trains a small convolutional network for
four epochs over 4,000 pictures of its own, of 32 x 32 pixels: six or seven seconds on one core, which is short for a
round. The round has no evaluation, as the trainings have none.

`federated_overhead`   (round - trainings) / trainings
`federated_round_s`    seconds of a round of four clients, one after another
`federated_local_s`    seconds of their trainings by hand
`federated_own_s`      seconds of a round in which no client is in `Trainer.fit`: what Flower, messages, opening
                       snapshots and the server's record take. It goes with the size of the model and not with how
                       long clients train, so for shorter trainings it can be divided by theirs.
`federated_kills_ok`   kills, of 20 in a federation of real processes over TLS, whose rounds came to what they should;
                       0 if the federation did not finish. See `federated_kills.py`.
`federated_kills_longest_round_s`  seconds of the longest of these rounds; a round waits 25 s for answers

The whole takes some 17 minutes on two cores, ten of them for the kills.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import Bench, Figure
from torch import nn

import mmpipe as mm
from mmpipe.runs import Run
from mmpipe.shards import Block, Field, write_snapshot

HERE = Path(__file__).resolve().parent
CLIENTS, ROWS, EPOCHS = 4, 4_000, 4
SIZE = 32
KINDS = ('a', 'b', 'c', 'd')
KILLS, SEED = 20, 1
Figures = dict[str, tuple[float, str]]


class Timed(mm.Trainer):
    """A trainer that adds up how long it trained."""

    took = 0.0

    def fit(self, *arguments: Any, **options: Any) -> Run:
        """See `mm.Trainer.fit`."""
        began = time.perf_counter()
        try:
            return super().fit(*arguments, **options)
        finally:
            Timed.took += time.perf_counter() - began


def build_model() -> mm.BareModel:
    """22,000 parameters in three convolutions."""
    widths = (3, 16, 32, 48)
    blocks = [
        layer
        for a, b in itertools.pairwise(widths)
        for layer in (nn.Conv2d(a, b, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
    ]
    layers = nn.Sequential(*blocks, nn.Flatten(), nn.Linear(widths[-1] * (SIZE // 8) ** 2, len(KINDS)))
    return mm.BareModel(layers, inputs='photo', tasks=[mm.classification('kind', KINDS)])


def batches(snapshot: mm.Snapshot, split: str) -> mm.DataLoader:
    """In another order each time."""
    return mm.DataLoader(
        snapshot.split(split), batch_size=64, shuffle=True, device='cpu', transforms={'photo': mm.transforms.image()}
    )


def written(root: Path, rows: int, seed: int) -> str:
    """Pictures of noise: what they show takes no time."""
    draw = np.random.default_rng(seed)
    fields = [
        Field(name='photo', kind='tensor', dtype='uint8', shape=(3, SIZE, SIZE)),
        Field(name='kind', kind='label', vocabulary=KINDS),
    ]
    columns = {
        'photo': list(draw.integers(0, 256, size=(rows, 3, SIZE, SIZE), dtype=np.uint8)),
        'kind': [str(kind) for kind in draw.choice(KINDS, rows)],
    }
    keys = [f'{seed}-{number}' for number in range(rows)]
    write_snapshot(root, fields, Block(keys=keys, columns=columns, splits=['train'] * rows))
    return str(root)


def overhead(roots: list[str], runs: Path, *, federated_first: bool) -> Figures:
    """One round, and its trainings by hand."""
    mm.federated  # noqa: B018  before Flower, so that its telemetry is off
    from flwr.serverapp.strategy import FedAvg

    trainer = Timed(runs=runs, epochs=EPOCHS, device='cpu')
    client = mm.federated.client_app(build_model, batches, trainer=trainer)
    server = mm.federated.server_app(FedAvg(fraction_evaluate=0.0), build_model, rounds=1, runs=runs)

    def a_round() -> float:
        began = time.perf_counter()
        mm.federated.simulate(server, client, roots)
        return time.perf_counter() - began

    def by_hand() -> float:
        began = time.perf_counter()
        for root in roots:
            trainer.fit(build_model, batches(mm.open_snapshot(root), 'train'), name='hand')
        return time.perf_counter() - began

    local = 0.0 if federated_first else by_hand()
    Timed.took = 0.0
    whole = a_round()
    own = whole - Timed.took
    local = local or by_hand()
    return {
        'federated_overhead': ((whole - local) / local, 'of local training'),
        'federated_round_s': (whole, 's'),
        'federated_local_s': (local, 's'),
        'federated_own_s': (own, 's'),
    }


def kills(count: int) -> Figures:
    """See `federated_kills.py`."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(HERE / 'federated_kills.py'), str(count), str(SEED), folder]
        environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    found = json.loads(done.stdout)
    right = found['right'] if found['finished'] and found['others_right'] else 0
    return {
        'federated_kills_ok': (right, f'of {found["kills"]}'),
        'federated_kills_longest_round_s': (found['longest_round_s'], 's'),
    }


def main() -> None:
    """The command."""
    bench = Bench.from_arguments('scale_federated', __doc__)
    torch.set_num_threads(1)
    rows = ROWS // 10 if bench.quick else ROWS
    with tempfile.TemporaryDirectory() as folder, bench.recording():
        bench.notes = {
            'clients': CLIENTS, 'rows each': rows, 'epochs': EPOCHS,
            'parameters': sum(parameter.numel() for parameter in build_model().parameters()),
            'versions': {'flwr': metadata.version('flwr')},
        }  # fmt: skip
        roots = [written(Path(folder) / f'client-{number}', rows, number) for number in range(CLIENTS)]
        turn = itertools.count()
        variants = {'round': lambda: overhead(roots, Path(folder) / 'runs', federated_first=next(turn) % 2 == 0)}
        bench.compare(variants, repeats=6)
        found = kills(1 if bench.quick else KILLS)  # once, however many repeats are asked for
        bench.figures |= {name: Figure(unit, (float(value),)) for name, (value, unit) in found.items()}


if __name__ == '__main__':
    main()
