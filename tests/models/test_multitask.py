"""The multitask model: missing modalities, frozen parts, names."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from mmpipe.data import DataLoader, ShardDataset
from mmpipe.errors import ConfigError, DataError, ModelError
from mmpipe.models import BareModel, MultitaskModel, encoders
from mmpipe.train import classification, multilabel, regression

TASKS = [classification('kind', 3), regression('price'), multilabel('tags', 4)]


def build(**options):
    torch.manual_seed(0)
    options.setdefault('encoders', {'title': encoders.vector(8, 6), 'frames': encoders.sequence(4, 5)})
    return MultitaskModel(**{'tasks': TASKS, 'hidden': 12, **options})


def batch_of(shop, count=12):
    return ShardDataset(shop.split('train'))[np.arange(count)]


@pytest.mark.parametrize('fusion', ['concat', 'mean'])
def test_every_task_has_its_output(shop, fusion):
    outputs = build(fusion=fusion)(batch_of(shop))
    assert {name: tuple(value.shape) for name, value in outputs.items()} == {
        'kind': (12, 3), 'price': (12,), 'tags': (12, 4)
    }  # fmt: skip


@pytest.mark.parametrize('fusion', ['concat', 'mean'])
def test_what_stands_in_the_place_of_a_missing_modality_does_not_matter(shop, fusion):
    model = build(fusion=fusion).eval()
    batch = batch_of(shop)
    noisy = {**batch, 'title': batch['title'].clone()}
    noisy['title'][~batch['_mask']['title']] = float('nan')
    for name, value in model(batch).items():
        assert torch.equal(value, model(noisy)[name])


def test_a_row_does_not_depend_on_which_of_its_neighbours_lack_a_modality(shop):
    model = build().eval()
    batch = batch_of(shop)
    single = [model(ShardDataset(shop.split('train'))[[i]])['price'] for i in range(12)]
    torch.testing.assert_close(model(batch)['price'], torch.cat(single))


def test_a_modality_that_the_whole_batch_lacks_gets_no_gradient_but_its_substitute_does(shop):
    model = build()
    batch = batch_of(shop)
    batch['_mask']['title'][:] = False
    sum(value.sum() for value in model(batch).values()).backward()
    assert all(parameter.grad is None for parameter in model.encoders['title'].parameters())
    assert model.missing['title'].grad.abs().sum() > 0


def test_our_loader_and_a_plain_batch_give_the_same_outputs(shop):
    model = build().eval()
    ours = next(iter(DataLoader(shop.split('train'), batch_size=12, device='cpu')))
    assert '_present' in ours
    assert torch.equal(model(ours)['kind'], model(batch_of(shop))['kind'])


def test_modality_dropout_drops_but_never_all_that_a_row_has(shop):
    model = build(modality_dropout=0.9, dropout=0.0)
    batch = batch_of(shop)
    there = torch.stack([batch['_mask'][field] for field in model.inputs], dim=1)
    for _ in range(20):
        kept = model._kept(batch) & there
        assert (kept.any(1) | ~there.any(1)).all()
    assert not kept.all()
    model.eval()
    assert torch.equal(model(batch)['kind'], model(batch)['kind'])


def test_frozen_parts_get_no_gradient_and_stay_in_eval_mode(shop):
    norm = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6))
    norm.out_features = 6
    model = build(encoders={'title': norm, 'frames': encoders.sequence(4, 5)})
    model.freeze('encoders')
    model.train()
    assert model.training
    assert not model.encoders['title'][1].training
    assert {name.split('.')[0] for name, p in model.named_parameters() if p.requires_grad} == {'fusion', 'heads'}
    model.freeze('trunk')
    assert {name.split('.')[0] for name, p in model.named_parameters() if p.requires_grad} == {'heads'}
    model.freeze(None)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert model.encoders['title'][1].training


def test_one_row_does_not_break_batch_norm(shop):
    norm = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6))
    norm.out_features = 6
    model = build(encoders={'title': norm})
    before = norm[1].running_mean.clone()
    model(ShardDataset(shop.split('train'))[[int(shop.split('train').read('title')[1].argmax())]])
    assert torch.equal(before, norm[1].running_mean)
    assert norm[1].training


def test_fields_and_tasks_may_have_names_that_torch_uses_itself():
    task = classification('type', 2, name='values')
    model = MultitaskModel(encoders={'type': encoders.category(2), 'keys': encoders.vector(1)}, tasks=[task])
    batch = {'type': torch.tensor([0, 1]), 'keys': torch.rand(2)}
    assert model(batch)['values'].shape == (2, 2)


def test_fitting_names_the_field_that_does_not_fit(full_shop):
    with pytest.raises(DataError, match=r"'title'.*shape \[8\]"):
        build(encoders={'title': encoders.vector(3)}).fit_buffers(full_shop.split('train').take(range(1)))


def test_models_that_cannot_be_built_are_refused():
    for options, error in (
        ({'encoders': {}}, ConfigError),
        ({'tasks': []}, ConfigError),
        ({'tasks': [regression('price'), regression('price')]}, ConfigError),
        ({'dropout': 1.5}, ConfigError),
        ({'fusion': 'sum'}, ConfigError),
        ({'encoders': {'title': nn.Linear(1, 1)}}, None),
        ({'encoders': {'title': nn.ReLU()}}, ModelError),
    ):
        if error is None:  # Linear happens to say its out_features
            build(**options)
        else:
            with pytest.raises(error):
                build(**options)


def test_a_batch_without_an_input_names_it(shop):
    with pytest.raises(DataError, match="'title'"):
        build()({'frames': torch.zeros(1, 1, 4), '_length': {'frames': torch.tensor([1])}})


def test_a_bare_module_must_answer_its_tasks():
    with pytest.raises(ModelError, match='must return a dict'):
        BareModel(nn.Linear(2, 3), inputs='title', tasks=TASKS)({'title': torch.zeros(2, 2)})
    one = BareModel(nn.Linear(2, 1), inputs='title', tasks=[regression('price')])
    assert one({'title': torch.zeros(2, 2)})['price'].shape == (2,)
