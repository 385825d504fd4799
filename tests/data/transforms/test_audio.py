"""Waveforms and spectrograms: torchaudio's results, each row as it would be alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torchaudio
from hypothesis import given, settings
from hypothesis import strategies as st

from mmpipe.data import transforms
from mmpipe.data.leases import Leases
from mmpipe.data.transforms import Draw
from mmpipe.errors import ConfigError, DataError


@st.composite
def waves(draw, *, longest=3000):
    """Rows `[B, L]` with zeros behind their lengths, and the lengths."""
    lengths = draw(st.lists(st.integers(0, longest), min_size=1, max_size=4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    rows = torch.zeros(len(lengths), max(*lengths, 1) if len(lengths) > 1 else max(lengths[0], 1))
    for row, length in zip(rows, lengths, strict=True):
        row[:length] = torch.randn(length, generator=generator)
    return rows, torch.tensor(lengths)


def hashes(count):
    return Draw(np.arange(count, dtype=np.uint64) * np.uint64(31))


@settings(deadline=None, max_examples=40)
@given(waves(), st.sampled_from([8_000, 16_000, 22_050]))
def test_each_row_has_the_spectrogram_that_torchaudio_gives_it_alone(case, rate):
    rows, lengths = case
    values, frames = transforms.log_mel(rate, 20, highest_hz=3500)(rows, lengths=lengths)
    window, hop = round(rate * 0.025), round(rate * 0.01)
    size = 2 ** math.ceil(math.log2(window))
    alone = torchaudio.transforms.MelSpectrogram(
        rate, size, window, hop, f_min=125, f_max=3500, n_mels=20, power=1.0, pad_mode='constant'
    )
    for row, length, found, count in zip(rows, lengths.tolist(), values, frames.tolist(), strict=True):
        assert count == math.ceil(length / hop)
        if count:
            expected = torch.log(alone(row[:length]) + 0.01)[:, :count]
            torch.testing.assert_close(found[:, :count], expected, rtol=0, atol=2e-4)
        silent = found[:, math.ceil((length + size / 2) / hop) :]
        torch.testing.assert_close(silent, torch.full_like(silent, math.log(0.01)))


@pytest.mark.parametrize('samples', [10, 8000, 24_000])
def test_it_is_what_the_stored_spectrogram_of_a_file_is(samples, tmp_path):
    import soundfile

    from mmpipe.functions.audio import read_log_mel

    wave = np.random.default_rng(0).uniform(-0.5, 0.5, samples)
    soundfile.write(tmp_path / 'a.wav', wave, 16_000, subtype='FLOAT')
    rows = torch.from_numpy(wave.astype(np.float32))[None]
    values, lengths = transforms.log_mel(seconds=1.0)(rows, lengths=torch.tensor([samples]))
    stored = torch.from_numpy(read_log_mel(str(tmp_path / 'a.wav'), 1.0, 64))
    torch.testing.assert_close(values[0], stored, rtol=0, atol=1e-5)
    assert lengths.tolist() == [min(100, math.ceil(samples / 160))]


def test_spectrograms_on_the_cpu_are_made_in_parts_and_lie_in_lent_memory(monkeypatch):
    rows, pool = torch.randn(5, 1600), Leases()
    whole, lengths = transforms.log_mel(n_mels=32)(rows)
    assert lengths is None
    monkeypatch.setattr('mmpipe.data.transforms.spectrograms.CHUNK_BYTES', 2 * 4 * 1600)
    parts, _ = transforms.log_mel(n_mels=32)(rows, allocate=pool)
    assert pool.allocations == 1
    assert torch.equal(parts, whole)


@settings(deadline=None, max_examples=60)
@given(waves(longest=50), st.floats(-20, 20), st.floats(0, 20))
def test_gain_is_torchaudios_with_decibels_in_the_range(case, low, spread):
    rows, _ = case
    louder = transforms.gain((low, low + spread))(rows, draw=hashes(len(rows)))
    decibels = low + hashes(len(rows)).numbers(0, 2, len(rows))[1] * spread
    expected = torch.stack([torchaudio.functional.gain(row, db) for row, db in zip(rows, decibels, strict=True)])
    torch.testing.assert_close(louder, expected, rtol=1e-5, atol=1e-6)


def test_gain_changes_as_many_rows_as_its_probability_says():
    rows = torch.ones(1000, 1)
    changed = transforms.gain(6, probability=0.3)(rows, draw=hashes(1000)) != 1
    assert 0.25 < changed.float().mean() < 0.35


@settings(deadline=None, max_examples=60)
@given(waves(longest=20), st.integers(0, 30), st.booleans(), st.integers(1, 2))
def test_shifting_moves_each_row_within_its_own_length(case, most, around, channels):
    rows, lengths = case
    rows = rows[:, :, None].repeat(1, 1, channels) if channels > 1 else rows
    moved, kept = transforms.shift(most, rate=1, around=around)(rows, draw=hashes(len(rows)), lengths=lengths)
    assert kept is lengths
    numbers = hashes(len(rows)).numbers(0, 1, len(rows))[0]
    for row, length, found, number in zip(rows, lengths.tolist(), moved, numbers, strict=True):
        by = math.floor(number * (2 * most + 1)) - most
        assert -most <= by <= most
        expected = torch.zeros_like(row)
        if around and length:
            expected[:length] = row[:length].roll(by, 0)
        else:
            for place in range(length):
                if 0 <= place - by < length:
                    expected[place] = row[place - by]
        assert torch.equal(found, expected)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 4), st.integers(1, 12), st.integers(1, 20), st.integers(0, 12), st.integers(0, 25))
def test_blanked_stretches_are_torchaudios_with_the_same_numbers(count, bands, frames, wide, long):
    values = torch.randn(count, bands, frames, generator=torch.Generator().manual_seed(bands))
    draw = hashes(count)
    made = transforms.spec_augment(bands=wide, frames=long, band_masks=1, frame_masks=1, fill=7.0)
    found, _ = made(values, draw=draw)
    expected = values
    for stream, (axis, most) in enumerate(((1, min(wide, bands)), (2, min(long, frames)))):
        numbers = iter(torch.from_numpy(draw.numbers(stream, 2, count).astype(np.float32)))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, 'rand', lambda *_, numbers=numbers, **__: next(numbers))
            expected = torchaudio.functional.mask_along_axis_iid(expected, most, 7.0, axis)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_blanked_frames_lie_within_the_rows_own_and_have_their_mean(data):
    lengths = torch.tensor(data.draw(st.lists(st.integers(0, 30), min_size=1, max_size=4)))
    values = torch.randn(len(lengths), 6, 30) + 3
    made = transforms.spec_augment(bands=3, frames=40, share=0.5)
    found, kept = made(values, draw=hashes(len(lengths)), lengths=lengths)
    assert kept is lengths
    for row, length, done in zip(values, lengths.tolist(), found, strict=True):
        assert torch.equal(done[:, length:], row[:, length:])
        changed = done[:, :length] != row[:, :length]
        if changed.any():
            mean = row[:, :length].mean().expand(int(changed.sum()))
            torch.testing.assert_close(done[:, :length][changed], mean)
        whole_frames = changed.all(0).sum()
        assert whole_frames <= 2 * 0.5 * length


@pytest.mark.parametrize(
    'made',
    [
        transforms.gain(6),
        transforms.shift(0.1),
        transforms.shift(0.1, around=True),
        transforms.log_mel(n_mels=8),
        transforms.spec_augment(),
    ],
)
def test_a_row_does_not_depend_on_its_batch_and_nothing_is_asked_back(made):
    shape = (6, 8, 30) if isinstance(made, type(transforms.spec_augment())) else (6, 4000)
    values, lengths = torch.randn(shape), torch.tensor([30, 20, 10, 5, 1, 0])
    keys = np.arange(6, dtype=np.uint64)
    order = np.array([4, 2, 0])

    def run(values, lengths, keys):
        wanted = {'draw': Draw(keys)} if getattr(made, 'random', False) else {}
        if getattr(made, 'takes_lengths', False):
            return made(values, lengths=lengths, **wanted)[0]
        return made(values, **wanted)

    whole = run(values, lengths, keys)
    torch.testing.assert_close(run(values[order], lengths[order], keys[order]), whole[order], rtol=0, atol=1e-5)
    # A tensor without data has no number to give: asking for one would be an error.
    assert run(values.to('meta'), lengths.to('meta'), keys).shape == whole.shape


def test_what_is_no_waveform_is_refused():
    with pytest.raises(DataError, match='takes float'):
        transforms.gain(6)(torch.zeros(2, 3, dtype=torch.int16))
    with pytest.raises(DataError, match=r'\[B, L\]'):
        transforms.log_mel()(torch.zeros(2, 3, 4))
    with pytest.raises(DataError, match=r'\[B, bands, T\]'):
        transforms.spec_augment()(torch.zeros(2, 3))


@pytest.mark.parametrize(
    ('make', 'why'),
    [
        (lambda: transforms.log_mel(8000), 'from 0 to 4000 Hz'),
        (lambda: transforms.log_mel(n_mels=0), 'one band'),
        (lambda: transforms.log_mel(seconds=0.001), 'one frame'),
        (lambda: transforms.log_mel(offset=0), 'silence'),
        (lambda: transforms.gain((3, -3)), 'lower one first'),
        (lambda: transforms.gain(probability=2), 'probability'),
        (lambda: transforms.shift(-1), 'not negative'),
        (lambda: transforms.spec_augment(share=2), 'share'),
        (lambda: transforms.spec_augment(bands=-1), 'negative'),
    ],
)
def test_options_that_cannot_work_are_refused_when_the_transform_is_made(make, why):
    with pytest.raises(ConfigError, match=why):
        make()
