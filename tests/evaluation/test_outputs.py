"""Outputs of labelled rows, in the order of the rows whatever order they come in."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import mmpipe as mm
from mmpipe.data.sampling.weighted import Weighted
from mmpipe.errors import ModelError
from mmpipe.evaluation.outputs import collect, row_losses
from mmpipe.models import BareModel
from mmpipe.train.tasks import Regression


def assert_same(one, two):
    assert one.keys.tolist() == two.keys.tolist()
    for name, found in one.tasks.items():
        other = two.tasks[name]
        assert found.rows.tolist() == other.rows.tolist()
        assert found.target.tolist() == other.target.tolist()
        np.testing.assert_allclose(found.output, other.output, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(found.loss, other.loss, rtol=1e-4, atol=1e-6)


def test_batch_size_order_and_padding_do_not_matter(run, shop):
    model, rows = mm.load_model(run), shop.split('val')
    plain = collect(model, mm.DataLoader(rows, batch_size=60, device='cpu'), model.tasks)
    assert plain.keys.tolist() == rows.keys.tolist()
    for name, found in plain.tasks.items():
        assert found.rows.tolist() == np.flatnonzero(rows.read(name)[1]).tolist()
    for options in ({'batch_size': 7, 'shuffle': True, 'seed': 3}, {'batch_size': 7, 'pad_last': True}):
        assert_same(plain, collect(model, mm.DataLoader(rows, device='cpu', **options), model.tasks))
    batches = collect(model, list(mm.DataLoader(rows, batch_size=7, device='cpu')), model.tasks)
    assert_same(plain, batches)


def test_losses_of_rows_come_to_those_of_evaluate(run, val):
    model = mm.load_model(run)
    found, expected = collect(model, val, model.tasks), mm.evaluate(model, val)
    for name, labelled in found.tasks.items():
        assert labelled.loss.mean() == pytest.approx(expected[name]['loss'], rel=1e-5)
        assert len(labelled) == expected[name]['n']


class Stubborn(Regression):
    """Its loss asks for a value, so that it cannot be computed for all rows at once."""

    def loss(self, output, target, mask, *, std=1.0):
        error = (output - target).abs().where(mask, 0.0)
        return error.sum() if float(error.max()) > 1 else error.sum() * 0, mask.sum().float()


def test_losses_of_rows_are_those_of_each_row_alone():
    draw = torch.Generator().manual_seed(0)
    numbers = torch.randn(9, generator=draw), torch.randn(9, generator=draw)
    for task, output, target in (
        (mm.classification('kind', 3), torch.randn(9, 3, generator=draw), torch.arange(9) % 3),
        (mm.multilabel('tags', 3), torch.randn(9, 3, generator=draw), torch.arange(27).reshape(9, 3) % 2),
        (mm.regression('price'), *numbers),
        (Stubborn(field='price', name='price'), *numbers),
    ):
        alone = [task.loss(output[i : i + 1], target[i : i + 1], torch.ones(1).bool(), std=2.0)[0] for i in range(9)]
        torch.testing.assert_close(row_losses(task, output, target, std=2.0), torch.stack(alone))


class Broken(nn.Module):
    """Gives nan for long titles, and infinity for one row."""

    def forward(self, title):
        out = title.sum(1)
        return torch.where(out > 4, torch.nan, out)


def test_outputs_that_are_not_finite_are_refused_and_name_rows(shop, val):
    model = BareModel(Broken(), inputs='title', tasks=[mm.regression('price')])
    rows = val.rows
    sums = rows.read('title')[0].sum(axis=1)
    labelled = rows.read('price')[1]
    wrong = rows.keys[labelled & (sums > 4)].tolist()
    assert len(wrong) > 5
    with pytest.raises(ModelError) as raised:
        mm.report(model, val)
    said = str(raised.value)
    assert f"'price': the output of {len(wrong)} rows of {labelled.sum()} is not finite" in said
    assert all(repr(key) in said for key in wrong[:5])
    # Of a row without the label, nothing is asked.
    fine = rows.take(np.flatnonzero(~labelled | (sums <= 4)))
    mm.report(model, mm.DataLoader(fine, batch_size=8, device='cpu'), bootstrap=0)


def test_a_row_that_a_sampler_draws_again_counts_again_and_is_no_new_row(run, shop):
    rows = shop.split('val').take([0, 1, 2, 3, 4, 5])
    sampler = Weighted([5.0, 1, 1, 1, 1, 1], samples=40)
    model = mm.load_model(run)
    loader = mm.DataLoader(rows, batch_size=8, sampler=sampler, device='cpu')
    found = mm.report(model, loader, bootstrap=50)
    assert found['price'].n > 6
    assert len(found['price'].worst) <= 6
