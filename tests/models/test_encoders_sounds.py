"""Waveforms: the spectrogram of the transform, inside of a model, without an influence of padding."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmpipe.data import transforms
from mmpipe.errors import ConfigError
from mmpipe.models import encoders
from mmpipe.models.encoders.sounds import LogMelSpectra

RATE = 8000


def encoder(**options):
    torch.manual_seed(0)
    made = encoders.waveform(RATE, 12, n_mels=16, width=8, **options).eval()
    made.fit_buffers([np.random.default_rng(0).normal(size=5000).astype(np.float32)])
    return made


def waves(*lengths, longest=None):
    draw = np.random.default_rng(1)
    batch = np.zeros((len(lengths), longest or max(lengths)), dtype=np.float32)
    for row, length in zip(batch, lengths, strict=True):
        row[:length] = draw.normal(size=length)
    return torch.from_numpy(batch), torch.tensor(lengths)


@pytest.mark.parametrize('length', [1600, 1599, 1])
def test_the_spectrogram_is_that_of_the_transform(length):
    transform = transforms.log_mel(RATE, 16, highest_hz=4000)
    values, _ = waves(length, length)
    torch.testing.assert_close(LogMelSpectra(transform)(values), transform(values)[0], atol=1e-4, rtol=1e-4)
    with torch.autocast('cpu', torch.bfloat16):  # which knows no Fourier transform
        assert LogMelSpectra(transform)(values).dtype == torch.float32


@pytest.mark.parametrize('lengths', [(900, 431, 80, 1), (2000, 37, 640, 641)])
def test_a_row_has_the_same_features_alone_and_beside_longer_ones(lengths):
    made, (values, counts) = encoder(), waves(*lengths)
    together = made(values, counts)
    with torch.no_grad():
        for row, length in enumerate(lengths):
            alone = made(values[[row], :length], counts[[row]])
            torch.testing.assert_close(together[[row]], alone, atol=1e-5, rtol=1e-4)
        longer = torch.nn.functional.pad(values, (0, 1234))
        torch.testing.assert_close(made(longer, counts), together, atol=1e-5, rtol=1e-4)


def test_bands_are_standardised_over_the_training_rows():
    made = encoders.waveform(RATE, 8, n_mels=16, width=8)
    values, _ = waves(4000, 4000)
    made.fit_buffers([values[0].numpy(), values[1].numpy()])  # ragged: joined samples
    mels = transforms.log_mel(RATE, 16, highest_hz=4000)(values)[0].transpose(0, 1).flatten(1)
    torch.testing.assert_close(made.standardize.mean, mels.mean(1), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(made.standardize.std, mels.std(1, correction=0), atol=1e-3, rtol=1e-3)
    same = encoders.waveform(RATE, 8, n_mels=16, width=8)
    same.fit_buffers([values.numpy()])  # one length: rows
    torch.testing.assert_close(same.standardize.mean, made.standardize.mean)


def test_constants_are_no_part_of_a_checkpoint():
    assert not [name for name in encoder().state_dict() if name.startswith('spectra')]


def test_a_rate_too_low_for_the_lowest_band_is_refused():
    with pytest.raises(ConfigError, match='200 Hz'):
        encoders.waveform(200)
