"""Fusion by attention: what a row lacks takes no part. And fusions of one's own."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from mmpipe.data import DataLoader, ShardDataset
from mmpipe.errors import ConfigError
from mmpipe.models import MultitaskModel, encoders, load_model
from mmpipe.models.fusion import AttentionFusion
from mmpipe.train import Trainer, classification, regression
from mmpipe.train.compiling import compile_parts
from mmpipe.train.recompute import recompute

SIZES = [3, 5, 4]


def fusion(**options):
    torch.manual_seed(0)
    return AttentionFusion(SIZES, hidden=8, **options)


def features(rows=6):
    draw = torch.Generator().manual_seed(1)
    return [torch.randn(rows, size, generator=draw) for size in SIZES]


def build(dropout=0.1, **options):
    made = {
        'title': encoders.vector(8, 6, dropout=dropout), 'frames': encoders.sequence(4, 5, dropout=dropout),
        'weight': encoders.vector(1, 4, dropout=dropout),
    }  # fmt: skip
    tasks = [classification('kind', 3), regression('price')]
    return MultitaskModel(encoders=made, tasks=tasks, fusion='attention', hidden=12, dropout=dropout, **options)


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('stands_there', [0.0, 1e6, float('nan'), float('inf')])
def test_what_stands_in_the_place_of_a_missing_modality_changes_neither_output_nor_gradient(training, stands_there):
    there = torch.tensor([[1, 1, 1], [0, 1, 1], [1, 0, 0], [0, 0, 1], [0, 0, 0], [1, 1, 0]], dtype=torch.bool)
    model = fusion().train(training)
    found = []
    for value in (7.0, stands_there):
        given = [part.clone().masked_fill(~there[:, i, None], value) for i, part in enumerate(features())]
        out = model(given, there)
        model.zero_grad()
        out.square().sum().backward()
        found.append((out, [parameter.grad for parameter in model.parameters()]))
    (one, gradients), (two, others) = found
    assert torch.isfinite(one).all()  # of the row that lacks all of them, too
    assert torch.equal(one, two)
    assert all(torch.equal(a, b) and torch.isfinite(a).all() for a, b in zip(gradients, others, strict=True))


def test_a_row_has_one_output_whatever_its_neighbours_lack():
    there = torch.rand(6, 3, generator=torch.Generator().manual_seed(2)) > 0.4
    model, given = fusion().eval(), features()
    with torch.inference_mode():
        alone = [model([part[[i]] for part in given], there[[i]]) for i in range(6)]
        torch.testing.assert_close(model(given, there), torch.cat(alone))


def test_a_modality_that_is_there_matters_and_each_one_differently():
    model, there = fusion().eval(), torch.ones(6, 3, dtype=torch.bool)
    whole = model(features(), there)
    for position in range(3):
        without = there.clone()
        without[:, position] = False
        assert (model(features(), without) - whole).abs().max() > 1e-3
    same = AttentionFusion([4, 4], hidden=8).eval()
    same.projections[1] = same.projections[0]
    a, b = torch.randn(2, 1, 4)
    both = torch.ones(1, 2, dtype=torch.bool)
    assert (same([a, b], both) - same([b, a], both)).abs().max() > 1e-4  # the embeddings say which is which


def test_dropped_modalities_count_as_missing_ones(shop):
    model = build(modality_dropout=0.9, dropout=0.0).train()
    given = []
    model.fusion.register_forward_pre_hook(lambda module, arguments: given.append(arguments[1]))
    batch = ShardDataset(shop.split('train'))[np.arange(12)]
    model(batch)
    model.eval()(batch)
    dropped, whole = given
    assert torch.equal(whole, torch.stack([batch['_mask'][name] for name in model.inputs], dim=1))
    assert not (dropped & ~whole).any()
    assert (dropped.sum(1) < whole.sum(1)).any()
    assert torch.equal(dropped.any(1), whole.any(1))


def test_it_trains_and_is_rebuilt_with_recomputed_blocks_too(shop, tmp_path):
    losses = []
    for chosen in (False, True):
        train = DataLoader(shop.split('train'), batch_size=24, device='cpu', shuffle=True)
        val = DataLoader(shop.split('val'), batch_size=24, device='cpu')
        run = Trainer(epochs=2, runs=tmp_path, recompute=chosen, log_every=1).fit(build, train, val)
        losses.append([line['loss'] for line in run.history() if 'loss' in line])
        assert load_model(run).fusion.takes_mask
    assert losses[0] == losses[1]
    assert recompute(build())[-2:] == ['fusion.blocks.layers.0', 'fusion.blocks.layers.1']


@pytest.mark.slow
def test_compiled_it_gives_the_same_for_any_number_of_rows(shop):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = build(dropout=0.0)
    other = copy.deepcopy(model)
    compile_parts(other)
    for rows in (12, 7, 20):
        batch = ShardDataset(shop.split('train'))[np.arange(rows)]
        torch.testing.assert_close(other(batch)['kind'], model(batch)['kind'], atol=1e-4, rtol=1e-4)
    assert torch._dynamo.utils.counters['stats']['unique_graphs'] <= 8


def test_a_fusion_of_ones_own_may_take_the_mask_or_not(shop):
    class Gated(nn.Module):
        """Features weighed by how much each says it is worth, of those that are there."""

        takes_mask = True

        def __init__(self, sizes, hidden):
            super().__init__()
            self.out_features = hidden
            self.project = nn.ModuleList(nn.Linear(size, hidden) for size in sizes)
            self.worth = nn.ModuleList(nn.Linear(size, 1) for size in sizes)

        def forward(self, features, there):
            worth = torch.cat([gate(x) for gate, x in zip(self.worth, features, strict=True)], dim=1)
            shares = worth.sigmoid() * there
            values = torch.stack([layer(x) for layer, x in zip(self.project, features, strict=True)], dim=1)
            return (values * shares[:, :, None]).sum(1)

    class Sum(nn.Module):
        out_features = 4

        def forward(self, features):
            return sum(value[:, :4] for value in features)

    batch = ShardDataset(shop.split('train'))[np.arange(12)]
    for own in (Gated([8, 8], 4), Sum()):
        model = MultitaskModel(
            encoders={'title': encoders.vector(8, 8), 'frames': encoders.sequence(4, 8)},
            tasks=[classification('kind', 3)], fusion=own, modality_dropout=0.3,
        )  # fmt: skip
        assert model(batch)['kind'].shape == (12, 3)


def test_heads_divide_the_size():
    assert AttentionFusion([2], hidden=6).blocks.layers[0].self_attn.num_heads == 2
    with pytest.raises(ConfigError, match='heads=3'):
        AttentionFusion([2], hidden=8, heads=3)
