"""Clips: any encoder of images over their frames, and what is behind the end does not count."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from shop_snapshot import KINDS
from torch import nn

from mmpipe.data import DataLoader
from mmpipe.errors import ConfigError, ModelError
from mmpipe.models import MultitaskModel, encoders
from mmpipe.shards import Block, Field, write_snapshot
from mmpipe.train import Trainer, classification

POOLINGS = ('mean', 'attention', 'gru')


class Frames(nn.Module):
    """An encoder of images with statistics of its batch."""

    out_features = 5

    def __init__(self):
        super().__init__()
        self.layer, self.norm = nn.Linear(3, 5), nn.BatchNorm1d(5)

    def forward(self, images):
        return self.norm(self.layer(images.float().mean((2, 3))))


def clips(rows=3, longest=6):
    draw = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (rows, longest, 3, 8, 8), dtype=torch.uint8, generator=draw), torch.tensor([6, 2, 4])


@pytest.mark.parametrize('pooling', POOLINGS)
@pytest.mark.parametrize('training', [False, True])
def test_frames_behind_the_end_do_not_count_not_even_for_statistics(pooling, training):
    torch.manual_seed(0)
    encoder = encoders.video(Frames(), pooling).train(training)
    values, lengths = clips()
    noisy = values.clone()
    for row, length in enumerate(lengths):
        noisy[row, length:] = 255
    before = encoder.frame_encoder.norm.running_mean.clone()
    one = encoder(values, lengths)
    after = encoder.frame_encoder.norm.running_mean.clone()
    encoder.frame_encoder.norm.running_mean.copy_(before)
    assert torch.equal(encoder(noisy, lengths), one)
    assert torch.equal(encoder.frame_encoder.norm.running_mean, after)


@pytest.mark.parametrize('pooling', POOLINGS)
def test_a_clip_has_the_same_features_alone_and_beside_longer_ones(pooling):
    torch.manual_seed(0)
    encoder = encoders.video(Frames(), pooling).eval()
    values, lengths = clips()
    alone = torch.cat([encoder(values[[i], : int(n)], lengths[[i]]) for i, n in enumerate(lengths)])
    torch.testing.assert_close(encoder(values, lengths), alone)
    empty = encoder(values, torch.tensor([6, 0, 4]))
    assert not empty[1].any()
    assert torch.isfinite(empty).all()


def test_only_the_recurrent_pooling_knows_the_order_of_frames():
    values, lengths = clips(longest=6)
    lengths[:] = 6
    for pooling in POOLINGS:
        torch.manual_seed(0)
        encoder = encoders.video(Frames(), pooling).eval()
        same = torch.allclose(encoder(values, lengths), encoder(values.flip(1), lengths), atol=1e-5)
        assert same == (pooling != 'gru')


def test_what_it_takes_and_its_layers_are_those_of_the_frame_encoder_and_more():
    encoder = encoders.video(encoders.timm('test_vit', dynamic_img_size=False), 'attention')
    assert encoder.input_spec().shape == (None, 3, 160, 160)
    assert encoder.layers()[-1] is encoder.over_time
    assert encoder.layers()[:-1] == encoders.video(encoder.frame_encoder).layers()
    assert encoders.video(Frames()).input_spec() is None
    with pytest.raises(ConfigError, match="pooling='max'"):
        encoders.video(Frames(), 'max')
    with pytest.raises(ModelError, match='ReLU has none'):
        encoders.video(nn.ReLU())


@pytest.mark.parametrize('kind', ['tensor', 'ragged'])
def test_clips_of_one_length_or_of_several_train(tmp_path, kind):
    """A tensor field has no lengths: all of its frames count."""
    shape = (4, 3, 8, 8) if kind == 'tensor' else (3, 8, 8)
    fields = [
        Field(name='clip', kind=kind, dtype='uint8', shape=shape),
        Field(name='kind', kind='label', vocabulary=KINDS),
    ]
    draw = np.random.default_rng(0)
    columns = {
        'clip': [draw.integers(0, 256, (4 if kind == 'tensor' else 1 + i % 4, 3, 8, 8), dtype=np.uint8)
                 for i in range(12)],
        'kind': [KINDS[i % 3] for i in range(12)],
    }  # fmt: skip
    block = Block(keys=[f'{i:02}' for i in range(12)], columns=columns)
    loader = DataLoader(write_snapshot(tmp_path / 'clips', fields, block).rows(), batch_size=4, device='cpu')

    def build():
        clip = encoders.video(encoders.image(8, width=8), 'gru')
        return MultitaskModel(encoders={'clip': clip}, tasks=[classification('kind', KINDS)], hidden=8)

    assert Trainer(runs=tmp_path / 'runs').fit(build, loader, loader).status == 'finished'
