"""Token ids: padding takes no part."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from mmpipe.errors import ConfigError, ModelError
from mmpipe.models import encoders


def batch():
    ids = torch.randint(50, (4, 9), generator=torch.Generator().manual_seed(0))
    return ids, torch.tensor([9, 4, 1, 0])


@pytest.mark.parametrize('training', [False, True])
def test_a_row_has_the_same_features_whatever_stands_behind_its_end_and_however_long(training):
    torch.manual_seed(0)
    encoder = encoders.tokens(50, 16, dropout=0.0).train(training)
    ids, lengths = batch()
    with torch.no_grad():
        found = encoder(ids, lengths)
        for padding in (0, 7, 49):
            padded = torch.full((4, 17), padding)
            for row, length in enumerate(lengths):
                padded[row, :length] = ids[row, :length]
            torch.testing.assert_close(encoder(padded, lengths), found, atol=1e-5, rtol=1e-5)
        alone = torch.cat([encoder(ids[[i], : max(int(lengths[i]), 1)], lengths[[i]]) for i in range(4)])
    torch.testing.assert_close(alone, found, atol=1e-5, rtol=1e-5)
    assert torch.isfinite(found).all()
    assert not found[3].any()  # a text without tokens


def test_no_gradient_reaches_the_padding_and_none_is_nan():
    encoder = encoders.tokens(50, 16)
    ids, lengths = batch()
    ids[:, :] = ids % 20
    for row, length in enumerate(lengths):
        ids[row, length:] = 40
    encoder(ids, lengths).square().sum().backward()
    gradients = [parameter.grad for parameter in encoder.parameters()]
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    assert not encoder.embedding.weight.grad[40].any()
    assert encoder.embedding.weight.grad[:20].any()


def test_the_order_of_tokens_matters():
    encoder = encoders.tokens(50, 16).eval()
    ids, lengths = torch.tensor([[1, 2, 3], [3, 2, 1]]), torch.tensor([3, 3])
    one, other = encoder(ids, lengths)
    assert (one - other).abs().max() > 1e-3


def test_it_learns_which_word_is_there():
    torch.manual_seed(0)
    ids = torch.randint(1, 30, (256, 12))
    lengths = torch.randint(1, 13, (256,))
    inside = torch.arange(12) < lengths[:, None]
    target = ((ids < 4) & inside).any(1).float()
    encoder = encoders.tokens(30, 16, layers=1, dropout=0.0)
    model = nn.Sequential(encoder, nn.Linear(16, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        loss = nn.functional.binary_cross_entropy_with_logits(model[1](encoder(ids, lengths))[:, 0], target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.2


def test_ids_beyond_the_vocabulary_and_heads_that_do_not_divide_are_refused():
    with pytest.raises(ModelError, match=r'label 50, but encoders\.tokens\(50\) knows 0\.\.49.*the tokenizer'):
        encoders.tokens(50, 16).fit_buffers([np.array([3, 50])])
    with pytest.raises(ModelError, match='label -1'):
        encoders.tokens(50, 16).fit_buffers([np.array([3, -1])])
    with pytest.raises(ConfigError, match='heads=3'):
        encoders.tokens(50, 16, heads=3)
