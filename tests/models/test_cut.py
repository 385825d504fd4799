"""An encoder in pieces is the encoder."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import mmpipe as mm
from mmpipe.errors import ConfigError
from mmpipe.models.cut import Piece, can_be_cut, pieces_of, spans


class Planned(nn.Module):
    """Cuts as it is told."""

    def __init__(self, plan) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)
        self.plan = plan

    def pipeline_plan(self, stages):
        return self.plan(self)


def vit(depth: int):
    return mm.encoders.timm('vit_tiny_patch16_224', img_size=16, patch_size=8, embed_dim=16, depth=depth, num_heads=2)


@given(layers=st.integers(1, 40), stages=st.integers(1, 12))
def test_spans_cover_all_layers_and_differ_by_one_at_most(layers, stages):
    if layers < stages:
        with pytest.raises(ConfigError, match=f'{layers} layers cannot be cut into {stages} stages'):
            spans(layers, stages)
        return
    found = spans(layers, stages)
    sizes = [span.stop - span.start for span in found]
    assert [index for span in found for index in range(layers)[span]] == list(range(layers))
    assert len(found) == stages
    assert max(sizes) - min(sizes) <= 1


@settings(max_examples=20, deadline=None)
@given(depth=st.integers(1, 5), stages=st.integers(1, 5), seed=st.integers(0, 3))
def test_pieces_of_a_vision_transformer_in_turn_give_what_it_gives(depth, stages, seed):
    if stages > depth:
        return
    torch.manual_seed(seed)
    encoder = vit(depth).eval()
    values = torch.randint(0, 255, (2, 3, 16, 16), dtype=torch.uint8)
    passed = values
    for piece in pieces_of(encoder, stages):
        passed = piece.call(passed)
    torch.testing.assert_close(passed, encoder(values), rtol=0, atol=0)


def test_pieces_of_a_vision_transformer_use_all_of_its_blocks_once():
    encoder = vit(4)
    used = [parameter for piece in pieces_of(encoder, 3) for part in piece.uses for parameter in part.parameters()]
    blocks = list(encoder.backbone.blocks.parameters())
    assert len(used) == len({id(each) for each in used})
    assert {id(each) for each in blocks} <= {id(each) for each in used}


def test_a_sequence_is_cut_between_its_children():
    encoder = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 2))
    first, second = pieces_of(encoder, 2)
    values = torch.ones(2, 3)
    torch.testing.assert_close(second.call(first.call(values)), encoder(values))


@pytest.mark.parametrize(
    ('encoder', 'stages', 'message'),
    [
        (nn.Linear(2, 2), 2, 'Linear does not say how to cut it'),
        (nn.Sequential(nn.Linear(2, 2)), 2, '1 layers cannot be cut into 2 stages'),
        (Planned(lambda own: [Piece(call=own.first)]), 2, r'must return 2 mmpipe.models.cut.Piece'),
        (Planned(lambda own: [own.first, own.second]), 2, r'must return 2 mmpipe.models.cut.Piece'),
        (Planned(lambda own: [Piece(call=own.first, uses=(own.first,))] * 2), 2, 'is in two pieces'),
        (Planned(lambda own: [Piece(call=own.first, uses=(nn.Linear(1, 1),))] * 2), 2, 'not part of it'),
        (mm.encoders.timm('resnet18'), 2, 'only those are cut'),
    ],
)
def test_what_cannot_be_cut_is_refused(encoder, stages, message):
    with pytest.raises(ConfigError, match=message):
        pieces_of(encoder, stages)


def test_only_sequences_and_what_has_a_plan_can_be_cut():
    assert can_be_cut(vit(1))
    assert not can_be_cut(nn.TransformerEncoderLayer(8, 2))
