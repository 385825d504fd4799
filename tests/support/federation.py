"""A model, loaders and apps that federated tests share."""

from __future__ import annotations

from pathlib import Path

import torch
from shop_snapshot import KINDS, write_shop
from torch import nn

import mmpipe as mm

ROUNDS = 2


def build() -> mm.MultitaskModel:
    """Two tasks, of which any row may lack a label; the encoder and the regression fit buffers."""
    return mm.MultitaskModel(
        encoders={'title': mm.encoders.vector(8, 16)},
        tasks=[mm.classification('kind', KINDS), mm.regression('price')],
        hidden=16,
    )


class Plain(nn.Module):
    """No buffers, no dropout, and a parameter that is one number."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 3)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, title: torch.Tensor) -> torch.Tensor:
        return self.layer(title) * self.scale


def build_plain():
    """A model of a user's own."""
    return mm.BareModel(Plain(), inputs='title', tasks=[mm.classification('kind', KINDS)])


def batches(snapshot, split):
    """Shuffled where it is trained on."""
    return mm.DataLoader(snapshot.split(split), batch_size=16, device='cpu', shuffle=split == 'train')


def write_clients(folder: Path, count: int, *, rows: int = 48, holes: float = 0.1) -> list[str]:
    """Snapshot roots of so many shops with rows of their own."""
    roots = [folder / f'shop-{number}' for number in range(count)]
    for number, root in enumerate(roots):
        write_shop(root, rows, seed=number, holes=holes)
    return [str(root) for root in roots]


def client(runs: Path, factory=build_plain, *, trainer=None, **others):
    """A client app whose runs lie in the folder."""
    trainer = trainer or mm.Trainer(runs=runs, lr=0.02)
    return mm.federated.client_app(factory, batches, trainer=trainer, metrics=['kind.accuracy'], **others)


def server(runs: Path, strategy, factory=build_plain, **others):
    """A server app whose run lies in the folder."""
    return mm.federated.server_app(strategy, factory, **{'rounds': ROUNDS, 'runs': runs, **others})
