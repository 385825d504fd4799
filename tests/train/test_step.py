"""What a step does, and what it does not: wait for the device."""

from __future__ import annotations

import copy
from collections import Counter

import pytest
import torch
from shop_snapshot import KINDS, TAGS
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from mmpipe.data import DataLoader, transforms
from mmpipe.models import MultitaskModel, encoders
from mmpipe.train import classification, multilabel, regression
from mmpipe.train.balancing import make_balancing
from mmpipe.train.optimizer import make_optimizer
from mmpipe.train.step import Stepper, with_channels_last
from mmpipe.train.strategy import Replicated

TASKS = [classification('kind', KINDS), regression('price'), multilabel('tags', TAGS)]
# Whatever needs a value on the host before it can go on.
SYNCS = ('_local_scalar_dense', 'item', 'nonzero', 'is_nonzero', 'equal', 'masked_select', 'unique', '_assert_async')


class Counting(TorchDispatchMode):
    """Counts operators, of the backward pass as well."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def model(fusion='concat'):
    return MultitaskModel(
        encoders={
            'photo': encoders.image(8, width=8), 'title': encoders.vector(8, 8, dropout=0.0),
            'frames': encoders.sequence(4, 8, dropout=0.0), 'mel': encoders.spectrogram(16, 8, width=8),
        },
        tasks=TASKS, hidden=16, dropout=0.0, modality_dropout=0.3, fusion=fusion,
    )  # fmt: skip


def stepper(made, **options):
    balancing = make_balancing(options.pop('balancing', 'fixed'), TASKS)
    optimizer = make_optimizer(nn.ModuleDict({'m': made, 'b': balancing}), lr=1e-3, weight_decay=0.01)
    return Stepper(
        made, TASKS, optimizer, balancing=balancing, strategy=Replicated(), device=torch.device('cpu'), **options
    )


def batches(shop, count=2, size=16):
    loader = DataLoader(
        shop.split('train'), batch_size=size, device='cpu', shuffle=True,
        transforms={'photo': transforms.image(crop=12, flip=True)},
    )  # fmt: skip
    return [batch for _, batch in zip(range(count), loader, strict=False)]


def counts(micro):
    return [float(sum(len(batch['_present'][task.field]) for batch in micro)) for task in TASKS]


@pytest.mark.parametrize(
    ('options', 'fusion'),
    [
        ({}, 'concat'), ({'clip': 1.0}, 'concat'), ({'precision': 'bf16'}, 'concat'),
        ({'balancing': 'uncertainty'}, 'concat'), ({}, 'attention'),
    ],
)  # fmt: skip
def test_nothing_in_a_step_waits_for_the_device(shop, options, fusion):
    made = model(fusion).train()
    made.fit_buffers(shop.split('train'))
    step, micro = stepper(made, **options), batches(shop, 4)
    step(micro[:2], counts(micro[:2]), factor=1.0)  # the first one makes the optimizer's state
    with Counting() as counting:
        step(micro[2:], counts(micro[2:]), factor=1.0)
    assert counting.seen['_fused_adamw_'] == len(step.optimizer.param_groups)
    assert counting.seen['convolution_backward'] > 0  # it has seen the backward pass
    assert not {name: count for name, count in counting.seen.items() if name in SYNCS}


def test_gradients_of_micro_batches_are_those_of_one_batch(shop):
    """Whatever lacks which label: the denominators are those of the whole step."""
    one = model().eval()
    one.fit_buffers(shop.split('train'))
    two = copy.deepcopy(one)
    micro, whole = batches(shop, 4, size=8), batches(shop, 1, size=32)
    a, b = stepper(one), stepper(two)
    taken = a(list(micro), counts(micro), factor=1.0), b(list(whole), counts(whole), factor=1.0)
    assert torch.allclose(*taken, rtol=1e-4, atol=1e-5)
    for (name, left), right in zip(one.named_parameters(), two.parameters(), strict=True):
        if left.grad is not None:
            assert torch.allclose(left.grad, right.grad, rtol=1e-3, atol=1e-6), name


def test_fp16_scales_its_loss_and_updates_what_float32_would(shop):
    one = model().eval()
    one.fit_buffers(shop.split('train'))
    two = copy.deepcopy(one)
    micro = batches(shop, 1)
    a, b = stepper(one, precision='fp16'), stepper(two)
    assert a.scaler.is_enabled()
    a.scaler = torch.amp.GradScaler('cpu', init_scale=16.0)
    a(list(micro), counts(micro), factor=1.0)
    b(list(micro), counts(micro), factor=1.0)
    assert a.scaler.get_scale() == 16.0  # nothing overflowed
    for (name, left), right in zip(one.named_parameters(), two.parameters(), strict=True):
        assert torch.allclose(left, right, atol=2.5e-3), name  # AdamW's first step is the sign of the gradient


def test_an_overflow_of_fp16_leaves_the_step_out_and_lowers_the_scale(shop):
    made = model().eval()
    made.fit_buffers(shop.split('train'))
    step, micro = stepper(made, precision='fp16'), batches(shop, 1)
    step.scaler = torch.amp.GradScaler('cpu', init_scale=2.0**60)
    before = {name: value.clone() for name, value in made.state_dict().items()}
    taken = step(list(micro), counts(micro), factor=1.0)
    assert taken[-1].isfinite()  # the loss itself was finite
    assert step.scaler.get_scale() == 2.0**59
    assert all(torch.equal(value, before[name]) for name, value in made.state_dict().items())


def test_channels_last_changes_the_layout_of_images_and_no_value(shop):
    one = model().eval()
    one.fit_buffers(shop.split('train'))
    two = copy.deepcopy(one).to(memory_format=torch.channels_last)
    micro = batches(shop, 1)
    laid = with_channels_last(micro[0])
    assert laid['photo'].is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(laid['photo'], micro[0]['photo'])
    taken = [
        stepper(made, channels_last=last)(list(micro), counts(micro), factor=1.0)
        for made, last in ((one, False), (two, True))
    ]
    assert torch.allclose(*taken, rtol=1e-4)
