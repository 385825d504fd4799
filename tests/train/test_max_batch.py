"""The largest batch that fits: predicted without memory, confirmed by one step, with the effective batch kept."""

from __future__ import annotations

import bisect
import copy
import subprocess
import sys
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from shop_snapshot import KINDS, TAGS, write_shop
from torch import nn

from mmpipe.data import DataLoader, transforms
from mmpipe.errors import ConfigError, TrainError
from mmpipe.models import BareModel, MultitaskModel, encoders
from mmpipe.train import Trainer, classification, multilabel, regression
from mmpipe.train.max_batch import (
    MOST,
    ROUNDED,
    allocated_bytes,
    find_max_batch,
    largest_within,
    predicted_bytes,
    probed_bytes,
)

TASKS = [classification('kind', KINDS), regression('price'), multilabel('tags', TAGS)]


def build(backbone=None, freeze=None):
    photo = encoders.timm(backbone) if backbone else encoders.image(16, width=16)
    model = MultitaskModel(
        encoders={
            'photo': photo, 'title': encoders.vector(8, 8), 'frames': encoders.sequence(4, 8),
            'mel': encoders.spectrogram(16, 8, width=8),
        },
        tasks=TASKS, hidden=16,
    )  # fmt: skip
    model.freeze(freeze)
    return model


def build_vit():
    return BareModel(timm_vit(), inputs='photo', tasks=TASKS[:1])


def timm_vit():
    import timm

    return timm.create_model('test_vit', num_classes=3)


def loader(shop, side=48, **options):
    resize = {'photo': transforms.image(resize=side)}
    return DataLoader(shop.split('train'), batch_size=16, shuffle=True, device='cpu', transforms=resize, **options)


@pytest.mark.parametrize(
    ('factory', 'args', 'side', 'options'),
    [
        (build, {}, 48, {}),
        (build, {}, 48, {'precision': 'bf16', 'clip': 1.0}),
        (build, {'freeze': 'encoders'}, 48, {}),
        (build, {'backbone': 'resnet18'}, 32, {'recompute': True}),
        (build_vit, {}, 160, {'balancing': 'uncertainty'}),
    ],
)
def test_what_is_predicted_is_what_a_real_step_takes(shop, factory, args, side, options):
    torch.manual_seed(0)
    limit = (240 if args.get('backbone') else 60) << 20
    found = find_max_batch(factory, loader(shop, side), trainer=Trainer(**options), args=args, limit_bytes=limit)
    print(f'{factory.__name__} {args} {options}: {found}')
    assert 0.7 * limit < found.confirmed_bytes <= limit
    assert found.confirmed_bytes == pytest.approx(found.predicted_bytes, rel=0.25)
    assert found.batch_size * found.accumulate == found.effective_batch == 16
    assert len(found.points) <= 9


def test_encoders_that_no_snapshot_of_this_file_has_are_predicted_too():
    model = MultitaskModel(
        encoders={
            'clip': encoders.video(encoders.image(8, width=8), 'gru'), 'note': encoders.tokens(20, 8),
            'speech': encoders.waveform(8000, 8, n_mels=16, width=8), 'facts': encoders.tabular(2, [3]),
        },
        tasks=TASKS[:1], fusion='attention', hidden=16,
    )  # fmt: skip
    batch = {
        'clip': torch.zeros(2, 3, 3, 16, 16, dtype=torch.uint8), 'note': torch.zeros(2, 5, dtype=torch.int64),
        'speech': torch.zeros(2, 900), 'facts': torch.zeros(2, 3), 'kind': torch.zeros(2, dtype=torch.int64),
        '_length': {'note': torch.tensor([5, 1]), 'speech': torch.tensor([900, 1])},
    }  # fmt: skip
    weights = sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()])
    assert predicted_bytes(model, TASKS[:1], batch, 64, trainer=Trainer()) > 4 * weights  # gradients, two moments


def test_a_step_of_one_row_more_than_a_rounding_would_not_fit(shop):
    found = find_max_batch(build, loader(shop), trainer=Trainer(), limit_bytes=40 << 20, confirm=False)
    model, batch = build(), next(iter(loader(shop)))
    real = probed_bytes(
        model, model.tasks, batch, found.largest + 2 * ROUNDED, trainer=Trainer(), device=torch.device('cpu')
    )
    assert real > 40 << 20


@given(
    base=st.integers(0, 10**6), slopes=st.lists(st.integers(1, 5000), min_size=1, max_size=3),
    floors=st.lists(st.integers(0, 10**6), min_size=3, max_size=3), limit=st.integers(0, 3 * 10**6),
)  # fmt: skip
def test_the_largest_is_found_where_several_moments_of_a_step_can_be_the_highest(base, slopes, floors, limit):
    asked = []

    def peak(rows):
        asked.append(rows)
        return base + max(slope * rows + floor for slope, floor in zip(slopes, floors, strict=False))

    found = largest_within(peak, limit)
    exact = min(bisect.bisect_right(range(1, limit + 2), limit, key=peak), MOST)
    assert found <= exact
    assert exact - found <= exact / 16 + ROUNDED
    assert exact > ROUNDED or found == exact


@pytest.mark.parametrize(('effective', 'limit_mb'), [(1024, 20), (250, 20), (17, 5)])
def test_the_effective_batch_is_exactly_kept(shop, effective, limit_mb):
    found = find_max_batch(
        build, loader(shop), trainer=Trainer(), limit_bytes=limit_mb << 20, effective_batch=effective, confirm=False
    )
    assert found.batch_size * found.accumulate == effective
    assert found.batch_size <= found.largest
    fewer = [a for a in range(1, found.accumulate) if effective % a == 0 and effective // a <= found.largest]
    assert not fewer


def test_the_model_comes_out_as_it_went_in(shop):
    model = build()
    before = copy.deepcopy(model.state_dict())
    find_max_batch(model, loader(shop), trainer=Trainer(recompute=['encoders.photo.stages']), limit_bytes=20 << 20)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_what_torch_allocates_is_counted_inside_of_kernels_too():
    values = torch.ones(1000)
    assert allocated_bytes(lambda: values + values) == 4000
    assert allocated_bytes(lambda: (values + values) * values) == 8000
    assert allocated_bytes(lambda: [values + values for _ in range(5)]) == 5 * 4000
    assert allocated_bytes(lambda: None) == 0


class Picking(nn.Module):
    """Its shapes depend on values."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 3)

    def forward(self, title):
        return self.layer(title[title[:, 0] > 0])


def test_what_cannot_be_is_refused_with_the_next_move(shop):
    with pytest.raises(TrainError, match=r'Not even a batch of one row fits: it takes [\d,]+ bytes, and 1,000'):
        find_max_batch(build, loader(shop), trainer=Trainer(), limit_bytes=1000)
    module = BareModel(Picking(), inputs='title', tasks=TASKS[:1])
    with pytest.raises(TrainError, match=r'memory of BareModel cannot be predicted: aten\.nonzero'):
        find_max_batch(module, loader(shop), trainer=Trainer(), limit_bytes=10**9)
    with (
        mock.patch('mmpipe.train.max_batch.world', return_value=(0, 3)),
        pytest.raises(ConfigError, match='effective_batch=16 is not divided by 3 ranks'),
    ):
        find_max_batch(build, loader(shop), trainer=Trainer(), effective_batch=16)


RANK = """
import sys, torch, torch.distributed as dist
rank, store, shop = int(sys.argv[1]), sys.argv[2], sys.argv[3]
dist.init_process_group('gloo', init_method=f'file://{store}', rank=rank, world_size=2)
import mmpipe as mm
from mmpipe.train import max_batch
from mmpipe.train.max_batch import find_max_batch
model = mm.MultitaskModel(encoders={'photo': mm.encoders.image(8, width=8)}, tasks=[mm.classification('kind', 3)])
real = max_batch.probed_bytes
# On one rank kernels need more than there.
max_batch.probed_bytes = lambda *a, **k: int(real(*a, **k) * (1.5 if rank else 1.0))
rows = mm.open_snapshot(shop).split('train')
loader = mm.DataLoader(rows, global_batch_size=16, device='cpu', fields=['photo', 'kind'])
found = find_max_batch(model, loader, trainer=mm.Trainer(), limit_bytes=(8 + 4 * rank) << 20, effective_batch=256)
print(found.largest, found.batch_size, found.accumulate)
dist.destroy_process_group()
"""


def test_ranks_agree_on_the_smallest_also_where_one_of_them_needs_more(tmp_path):
    write_shop(tmp_path / 'shop')
    command = [sys.executable, '-c', RANK]
    places = [str(tmp_path / 'meet'), str(tmp_path / 'shop')]
    ranks = [subprocess.Popen([*command, str(n), *places], stdout=subprocess.PIPE, text=True) for n in range(2)]
    said = [rank.communicate(timeout=120)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0]
    assert said[0] == said[1]
    largest, batch_size, accumulate = map(int, said[0].split())
    assert 0 < batch_size <= largest
    assert batch_size * accumulate * 2 == 256
