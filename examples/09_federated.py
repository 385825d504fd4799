"""Four clinics train one reader of digits together; what they have seen never leaves them.

scikit-learn's digits (1,797 pictures of 8 x 8) are dealt unevenly: each digit by shares drawn from a Dirichlet
distribution, so that most clients hardly know some of them. Each client has a snapshot root of its own; only weights
and one declared metric travel. The model at the end is made of whole numbers (int8) and is small enough for a device.

    python examples/09_federated.py [--quick]

The same `client` and `server` run on real machines: name them in the `[tool.flwr.app.components]` of an app's
pyproject.toml, start `flower-superlink` and a `flower-supernode --node-config 'root="shards/clinic"'` per client, and
`flwr run`. docs/federated.md has the commands.
"""

from __future__ import annotations

import argparse
import io
import tempfile
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

import mmpipe as mm
from mmpipe.shards import Block, Field, Snapshot, write_snapshot

DIGITS = tuple('0123456789')
CLIENTS = 4
ALPHA = 0.3


def write(root: Path) -> Snapshot:
    """The digits as a snapshot; a fifth is for testing."""
    digits = load_digits()
    test = np.random.default_rng(0).random(len(digits.target)) < 0.2
    fields = [
        Field(name='pixels', kind='tensor', dtype='float32', shape=(64,)),
        Field(name='digit', kind='label', vocabulary=DIGITS),
    ]
    block = Block(
        keys=[f'digit-{number:04d}' for number in range(len(test))],
        columns={'pixels': list((digits.data / 16).astype(np.float32)), 'digit': [DIGITS[d] for d in digits.target]},
        splits=['val' if each else 'train' for each in test],
    )
    return write_snapshot(root, fields, block)


def build_model() -> mm.BareModel:
    """Two hidden layers; no statistics of the data in it, so that the server's model is whole."""
    layers = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))
    return mm.BareModel(layers, inputs='pixels', tasks=[mm.classification('digit', DIGITS)])


def batches(snapshot: Snapshot, split: str) -> mm.DataLoader:
    """As a pipeline's training.py has it."""
    return mm.DataLoader(snapshot.split(split), batch_size=32, shuffle=split == 'train', device='cpu')


def accuracy(model: nn.Module, snapshot: Snapshot) -> float:
    """On test rows that no client has trained on."""
    return mm.evaluate(model, batches(snapshot, 'val'))['digit']['accuracy']


def kilobytes(model: nn.Module) -> float:
    """What the model takes in a file."""
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    return file.tell() / 1000


def quantised(model: nn.Module) -> nn.Module:
    """Weights as int8; activations are made so as they come."""
    return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--quick', action='store_true', help='three rounds')
    rounds = 3 if parser.parse_args().quick else 15
    mm.federated  # noqa: B018  first, since it turns Flower's telemetry off
    from flwr.serverapp.strategy import FedAvg, FedMedian, FedProx

    with tempfile.TemporaryDirectory() as folder:
        whole = write(Path(folder) / 'all')
        parts = mm.federated.split_dirichlet(whole.rows(), 'digit', clients=CLIENTS, alpha=ALPHA, seed=1, least=20)
        roots = mm.federated.write_parts(parts, Path(folder) / 'clients')
        for root, part in zip(roots, parts, strict=True):
            words = part.words('digit')
            print(f'{Path(root).name}: {len(part):>4} rows, of each digit {[words.count(digit) for digit in DIGITS]}')
        trainer = mm.Trainer(epochs=2, lr=3e-3, runs=Path(folder) / 'runs', device='cpu')

        epochs = trainer.epochs * rounds  # as many as in the federation
        by_itself = mm.Trainer(epochs=epochs, lr=3e-3, runs=trainer.runs, device='cpu')
        alone = [by_itself.fit(build_model, batches(mm.open_snapshot(root), 'train'), name='alone') for root in roots]
        print(f'alone, {epochs} epochs: ' + ', '.join(f'{accuracy(mm.load_model(r), whole):.3f}' for r in alone))

        # Uneven clients may say how many rows they have; with weight='equal' they would not.
        client = mm.federated.client_app(
            build_model, batches, trainer=trainer, metrics=['digit.accuracy'], weight='rows'
        )
        found = {}
        for strategy in (FedAvg(), FedProx(proximal_mu=0.1), FedMedian()):
            server = mm.federated.server_app(strategy, build_model, rounds=rounds, runs=trainer.runs)
            run = mm.federated.simulate(server, client, roots)
            found[type(strategy).__name__] = accuracy(mm.load_model(run), whole)
            if type(strategy) is FedAvg:
                averaged = run
        print(f'together, {rounds} rounds: ' + ', '.join(f'{name} {value:.3f}' for name, value in found.items()))

        model = mm.load_model(averaged)
        small = quantised(model)
        print(
            f'for a device: float32 {kilobytes(model):.0f} kB, accuracy {accuracy(model, whole):.3f}; '
            f'int8 {kilobytes(small):.0f} kB, accuracy {accuracy(small, whole):.3f}'
        )


if __name__ == '__main__':
    main()
