# ruff: noqa: E402
from __future__ import annotations

import sys
from pathlib import Path

SUPPORT = str(Path(__file__).parents[1] / 'support')
if SUPPORT not in sys.path:  # test folders are no packages, so what they share is put on the path
    sys.path.insert(0, SUPPORT)

import numpy as np
import pytest
import torch
from shop_snapshot import KINDS, TAGS, write_shop

import mmpipe as mm
from mmpipe.evaluation.outputs import Labelled, row_losses

torch.set_num_threads(1)


def build_shop_model() -> mm.MultitaskModel:
    return mm.MultitaskModel(
        encoders={'title': mm.encoders.vector(8, 16)},
        tasks=[mm.classification('kind', KINDS), mm.regression('price'), mm.multilabel('tags', TAGS)],
        hidden=16,
    )


@pytest.fixture(scope='session')
def shop(tmp_path_factory):
    """A snapshot of 240 rows with holes in every field."""
    return write_shop(tmp_path_factory.mktemp('shards') / 'shop', 240)


@pytest.fixture(scope='session')
def run(shop, tmp_path_factory):
    """A run on it, with validation."""
    train, val = (mm.DataLoader(shop.split(name), batch_size=32, device='cpu') for name in ('train', 'val'))
    return mm.Trainer(epochs=4, lr=5e-3, runs=tmp_path_factory.mktemp('runs')).fit(build_shop_model, train, val)


@pytest.fixture
def val(shop):
    return mm.DataLoader(shop.split('val'), batch_size=16, device='cpu')


@pytest.fixture(scope='session')
def labelled():
    """Labelled rows of a task, from outputs and targets."""

    def make(task, output, target):
        output, target = np.asarray(output, dtype=np.float32), np.asarray(target)
        loss = row_losses(task, torch.tensor(output), torch.tensor(target)).numpy()
        return Labelled(task=task, rows=np.arange(len(output)), output=output, target=target, loss=loss)

    return make
