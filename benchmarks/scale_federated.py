"""What a federation costs beside the training in it, in one process.

Each repeat runs a round of four clients, then the same trainings by hand: the same rows, loaders, trainer and run
records. `federated_overhead` is (round - trainings) / trainings; the round has no evaluation, as the trainings have
none.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from torch import nn

import mmpipe as mm
from mmpipe.shards import Block, Field, write_snapshot

CLIENTS = 4
KINDS = ('a', 'b', 'c', 'd')
WIDTH = 256


def build_model() -> mm.BareModel:
    layers = nn.Sequential(nn.Linear(WIDTH, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 4))
    return mm.BareModel(layers, inputs='vector', tasks=[mm.classification('kind', KINDS)])


def batches(snapshot, split):
    return mm.DataLoader(snapshot.split(split), batch_size=64, shuffle=True, device='cpu')


def write(root: Path, rows: int, seed: int) -> str:
    draw = np.random.default_rng(seed)
    fields = [
        Field(name='vector', kind='tensor', dtype='float32', shape=(WIDTH,)),
        Field(name='kind', kind='label', vocabulary=KINDS),
    ]
    columns = {
        'vector': list(draw.normal(size=(rows, WIDTH)).astype(np.float32)),
        'kind': list(draw.choice(KINDS, rows)),
    }
    keys = [f'{seed}-{number}' for number in range(rows)]
    write_snapshot(root, fields, Block(keys=keys, columns=columns, splits=['train'] * rows))
    return str(root)


def figures(*, quick: bool) -> dict[str, tuple[float, str]]:
    """The overhead, and the seconds that it is made of: medians of repeats in turns."""
    mm.federated  # noqa: B018  before Flower, so that its telemetry is off
    from flwr.serverapp.strategy import FedAvg

    rows, repeats = (1_000, 3) if quick else (8_000, 9)
    rounds, trainings, overheads = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        roots = [write(Path(folder) / f'client-{number}', rows, number) for number in range(CLIENTS)]
        trainer = mm.Trainer(runs=folder, epochs=2, device='cpu')
        client = mm.federated.client_app(build_model, batches, trainer=trainer)
        for _ in range(repeats + 1):
            strategy = FedAvg(fraction_evaluate=0.0)
            server = mm.federated.server_app(strategy, build_model, rounds=1, runs=folder)
            began = time.perf_counter()
            mm.federated.simulate(server, client, roots)
            between = time.perf_counter()
            for root in roots:
                trainer.fit(build_model, batches(mm.open_snapshot(root), 'train'), name='hand')
            ended = time.perf_counter()
            rounds.append(between - began)
            trainings.append(ended - between)
            overheads.append((rounds[-1] - trainings[-1]) / trainings[-1])
    return {  # the first repeat warms up
        'federated_overhead': (statistics.median(overheads[1:]), 'of local training'),
        'federated_round_s': (statistics.median(rounds[1:]), 's'),
        'federated_local_s': (statistics.median(trainings[1:]), 's'),
    }
