"""The same transforms on CUDA: the pixels of the CPU, and no wait for the device. Not yet run on such a device."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmpipe.data import transforms
from mmpipe.data.transforms import Draw

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')]
KEYS = np.arange(8, dtype=np.uint64)


@pytest.fixture
def without_waiting():
    """Inside, an operation that makes the host wait is an error."""
    yield lambda: torch.cuda.set_sync_debug_mode('error')
    torch.cuda.set_sync_debug_mode('default')


@pytest.mark.parametrize(
    ('options', 'steps'),
    [
        ({'crop': 24, 'flip': True}, 0),
        ({'resize': 20, 'scale': (0.1, 1), 'flip': True}, 2),
        ({'resize': 20, 'interpolation': 'bicubic'}, 2),
        ({'crop': 24, 'brightness': 0.4, 'contrast': 0.4, 'saturation': 0.4, 'erase': 0.5}, 0),
    ],
)
def test_images_differ_by_the_rounding_of_a_resize_only(options, steps, without_waiting):
    images = torch.randint(0, 256, (8, 3, 32, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    made = transforms.image(**options, mean=(0, 0, 0), std=(1, 1, 1))
    there = images.cuda()
    made(there, draw=Draw(KEYS))  # constants are sent once
    without_waiting()
    found = made(there, draw=Draw(KEYS))
    torch.cuda.set_sync_debug_mode('default')
    torch.testing.assert_close(found.cpu(), made(images, draw=Draw(KEYS)), rtol=0, atol=steps / 255 + 1e-4)


def test_sounds_and_mixed_rows_are_those_of_the_cpu(without_waiting):
    chosen = {
        'speech': [transforms.gain(6), transforms.shift(0.1), transforms.log_mel(n_mels=32), transforms.spec_augment()],
        '*': [transforms.mixup('photo', {'kind': 3}), transforms.cutmix('photo', {'kind': 3})],
    }

    def batch():
        generator = torch.Generator().manual_seed(0)
        return {
            'speech': torch.randn(8, 8000, generator=generator),
            'photo': torch.randn(8, 3, 16, 16, generator=generator),
            'kind': torch.arange(8) % 3,
        }

    def on_cuda():
        return {name: values.cuda() for name, values in batch().items()}

    transforms.apply_all(chosen, on_cuda(), Draw(KEYS))
    there = on_cuda()
    without_waiting()
    found = transforms.apply_all(chosen, there, Draw(KEYS))
    torch.cuda.set_sync_debug_mode('default')
    expected = transforms.apply_all(chosen, batch(), Draw(KEYS))
    for name, values in expected.items():
        torch.testing.assert_close(found[name].cpu(), values, rtol=1e-4, atol=1e-4)
