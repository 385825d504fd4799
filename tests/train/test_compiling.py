"""Compiled parts: the same training, within rounding, and no compilation per number of rows."""

from __future__ import annotations

import pytest
import torch
from shop_snapshot import KINDS, write_shop

from mmpipe.data import DataLoader
from mmpipe.models import MultitaskModel, encoders
from mmpipe.train import Trainer, classification
from mmpipe.train.compiling import compile_parts


def build():
    return MultitaskModel(
        encoders={'photo': encoders.image(8, width=8), 'title': encoders.vector(8, 8, dropout=0.0)},
        tasks=[classification('kind', KINDS)], hidden=8, dropout=0.0,
    )  # fmt: skip


def test_names_of_weights_stay():
    model = build()
    names = list(model.state_dict())
    assert compile_parts(model) == ['encoders.photo', 'encoders.title', 'fusion']
    assert list(model.state_dict()) == names


@pytest.mark.slow
def test_a_compiled_training_gives_the_losses_of_one_that_is_not(tmp_path):
    """Rows lack their photo in another number each batch: one kernel for all of them."""
    snapshot = write_shop(tmp_path / 'shop', 96)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()

    def losses(**options):
        train = DataLoader(snapshot.split('train'), batch_size=16, shuffle=True, device='cpu')
        run = Trainer(epochs=3, runs=tmp_path, log_every=1, **options).fit(build, train)
        return [line['loss'] for line in run.history() if 'loss' in line]

    assert losses(compile=True) == pytest.approx(losses(), rel=1e-3)
    frames = torch._dynamo.utils.counters['stats']['unique_graphs']
    assert 0 < frames <= 9  # parts, times training or not, times one row or several
