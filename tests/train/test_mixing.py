"""Rows of a batch mixed with each other, through the loader into a training."""

from __future__ import annotations

import pytest
import torch

from mmpipe.data import DataLoader, transforms
from mmpipe.models import MultitaskModel, encoders
from mmpipe.train import Trainer, classification
from mmpipe.train.losses import cross_entropy


@pytest.mark.parametrize('mix', [transforms.mixup, transforms.cutmix])
def test_a_model_learns_from_mixed_rows_with_shared_labels(full_shop, tmp_path, mix):
    def build():
        return MultitaskModel(encoders={'photo': encoders.image(16, width=4)}, tasks=[classification('kind', 4)])

    mixed = {'photo': transforms.image(crop=8, flip=True), '*': mix('photo', {'kind': 4})}
    rows = full_shop.split('train')
    loader = DataLoader(rows, batch_size=24, shuffle=True, device='cpu', fields=['photo', 'kind'], transforms=mixed)
    batch = next(iter(loader))
    assert batch['kind'].shape == (24, 4)
    assert torch.allclose(batch['kind'].sum(1), torch.ones(24))
    assert (batch['kind'] < 1).any()
    run = Trainer(epochs=2, runs=tmp_path).fit(build, loader, name='mixed')
    losses = [line['train']['kind'] for line in run.history() if 'train' in line]
    assert len(losses) == 2
    assert losses[1] < losses[0]


def test_shares_of_one_class_cost_what_that_class_does():
    logits, target = torch.randn(5, 3), torch.tensor([0, 2, 1, 1, 0])
    mask = torch.tensor([True, True, False, True, True])
    hard, soft = (cross_entropy(logits, each, mask) for each in (target, torch.eye(3)[target]))
    torch.testing.assert_close(hard, soft)
