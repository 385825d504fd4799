from __future__ import annotations

import math

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from mmpipe.errors import BadInputError
from mmpipe.functions.audio import HOP, LOG_OFFSET, RATE, decode, read_log_mel, read_mono

from . import media

SILENCE = math.log(LOG_OFFSET)


def loudest(samples):
    """Frequency of the strongest component, in Hz."""
    return np.abs(np.fft.rfft(samples)).argmax() * RATE / len(samples)


@pytest.mark.parametrize('rate', [8000, 16000, 44100, 48000])
@pytest.mark.parametrize(
    ('suffix', 'options'),
    [
        ('wav', {'subtype': 'PCM_16'}),
        ('wav', {'subtype': 'PCM_24'}),
        ('wav', {'subtype': 'FLOAT'}),
        ('flac', {}),
        ('ogg', {}),
        ('mp3', {}),
    ],
)
def test_every_codec_and_rate_gives_the_same_tone(tmp_path, rate, suffix, options):
    path = media.sound(tmp_path / f'a.{suffix}', rate, 0.5, channels=2, hertz=1000, **options)
    samples = read_mono(str(path))
    assert samples.dtype == np.float32
    assert len(samples) == pytest.approx(8000, abs=1200 if suffix == 'mp3' else 1)  # mp3 pads to whole frames
    assert loudest(samples) == pytest.approx(1000, abs=5)
    # Lossy codecs overshoot, the more the fewer bits: mp3 at 8 kHz reaches 0.57.
    assert np.abs(samples[2000:6000]).max() == pytest.approx(0.5, abs=0.1 if suffix == 'mp3' else 0.03)


@pytest.mark.parametrize(('rate', 'channels'), [(44100, 2), (48000, 1)])
def test_aac_goes_through_ffmpeg(tmp_path, rate, channels):
    path = media.m4a(tmp_path / 'a.m4a', rate, 0.5, channels, hertz=1000)
    samples, found = decode(str(path))
    assert found == rate
    assert samples.shape[1] == channels
    assert samples.dtype == np.float32
    mono = read_mono(str(path))
    assert len(mono) == pytest.approx(8000, abs=1200)
    assert loudest(mono) == pytest.approx(1000, abs=5)
    assert len(decode(str(path), seconds=0.25)[0]) == rate // 4


def test_channels_are_averaged(tmp_path):
    soundfile.write(tmp_path / 'a.wav', np.tile(np.float32([0.5, -0.25]), (100, 1)), RATE, subtype='FLOAT')
    np.testing.assert_allclose(read_mono(str(tmp_path / 'a.wav')), 0.125)


@settings(deadline=None, max_examples=25)
@given(st.sampled_from([8000, 16000, 22050, 44100]), st.floats(0, 0.6), st.floats(0.05, 0.8), st.integers(8, 64))
def test_the_spectrogram_has_its_shape_whatever_the_clip(tmp_path_factory, rate, clip, seconds, bands):
    path = media.sound(tmp_path_factory.mktemp('s') / 'a.wav', rate, clip)
    mel = read_log_mel(str(path), seconds, bands)
    assert mel.shape == (bands, round(seconds * 100))
    assert mel.dtype == np.float32
    assert np.isfinite(mel).all()
    assert mel.min() >= SILENCE - 1e-3


def test_silence_padding_and_cutting(tmp_path):
    silent = media.sound(tmp_path / 'silent.wav', hertz=0, seconds=0.5)
    np.testing.assert_allclose(read_log_mel(str(silent), 1.0, 64), SILENCE, rtol=1e-5)
    short = read_log_mel(str(media.sound(tmp_path / 'short.wav', seconds=0.2, hertz=1000)), 0.5, 64)
    np.testing.assert_allclose(short[:, 23:], SILENCE, rtol=1e-5)
    assert short[:, 5:15].max() > 0
    # The cut comes after resampling: the first second of a long clip is the first second of its waveform.
    long = media.sound(tmp_path / 'long.wav', rate=44100, seconds=2.0, hertz=1000)
    soundfile.write(tmp_path / 'cut.wav', read_mono(str(long))[: 100 * HOP], RATE, subtype='FLOAT')
    np.testing.assert_allclose(
        read_log_mel(str(long), 1.0, 64), read_log_mel(str(tmp_path / 'cut.wav'), 1.0, 64), atol=1e-4
    )


def test_a_tone_lights_its_own_mel_band(tmp_path):
    # Band centres by the HTK formula, mel = 1127 ln(1 + f / 700), equally spaced between 125 and 7500 Hz.
    mel = 1127 * np.log1p(np.array([125, 7500]) / 700)
    centres = 700 * np.expm1(np.linspace(*mel, 64 + 2)[1:-1] / 1127)
    for hertz in (300, 1000, 4000):
        path = media.sound(tmp_path / f'{hertz}.wav', seconds=0.5, hertz=hertz)
        band = read_log_mel(str(path), 0.5, 64)[:, 10:40].mean(axis=1).argmax()
        assert abs(band - np.abs(centres - hertz).argmin()) <= 1


def test_what_cannot_be_read_is_named(tmp_path):
    (tmp_path / 'empty.wav').touch()
    (tmp_path / 'noise.mp3').write_bytes(b'not audio at all' * 40)
    whole = media.m4a(tmp_path / 'whole.m4a').read_bytes()
    (tmp_path / 'cut.m4a').write_bytes(whole[: len(whole) // 2])
    for name in ('empty.wav', 'noise.mp3', 'cut.m4a', 'missing.ogg'):
        with pytest.raises(BadInputError, match=f'{name} cannot be decoded as audio'):
            read_mono(str(tmp_path / name))
    with pytest.raises(BadInputError, match='no audio stream'):
        read_mono(str(media.clip(tmp_path / 'silent.mp4')))
    soundfile.write(tmp_path / 'nan.wav', np.float32([0, np.nan]), RATE, subtype='FLOAT')
    with pytest.raises(BadInputError, match='NaN'):
        read_mono(str(tmp_path / 'nan.wav'))


def test_a_clip_without_samples_is_empty_not_an_error(tmp_path):
    path = media.sound(tmp_path / 'a.wav', rate=44100, seconds=0)
    assert read_mono(str(path)).shape == (0,)


def test_a_list_that_names_another_file_is_no_sound(tmp_path):
    soundfile.write(tmp_path / 'secret.wav', np.zeros(8000), 8000)
    (tmp_path / 'list.m4a').write_text('ffconcat version 1.0\nfile secret.wav\n')
    with pytest.raises(BadInputError, match='cannot be decoded'):
        decode(str(tmp_path / 'list.m4a'))
