"""Audio of any codec into 16 kHz mono samples and log-mel spectrograms."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

import numpy as np
import pixeltable as pxt
import pixeltable.type_system as ts

from mmpipe.errors import BadInputError, ConfigError
from mmpipe.functions.counting import counted
from mmpipe.functions.parallel import in_pool
from mmpipe.functions.types import array_type

if TYPE_CHECKING:
    import torch

RATE = 16_000  # Hz

# The front end of VGGish (Hershey et al. 2017, "CNN architectures for large-scale audio classification"; constants as
# in tensorflow/models, research/audioset/vggish/vggish_params.py): 25 ms windows every 10 ms, HTK mel bands from 125
# to 7500 Hz, log of magnitude plus 0.01.
WINDOW = 400  # samples, 25 ms
HOP = 160  # samples, 10 ms
FFT = 512
LOWEST, HIGHEST = 125.0, 7500.0  # Hz
LOG_OFFSET = 0.01

# Read beyond the wanted end, so that the resampler's filter sees what follows the cut instead of a cliff.
_MARGIN = 0.1  # seconds


@pxt.udf
@counted
async def waveform(audio: pxt.Audio) -> pxt.Array[(None,), np.float32]:
    """Samples at 16 kHz, channels averaged.

    Args:
        audio: an audio file in any codec that libsndfile or FFmpeg reads.

    Returns:
        float32 (samples,), one every 62.5 us; nominally in [-1, 1] (float files and resampling may exceed it a little).
        Length is the clip's: about 64 kB a second.

    Raises:
        BadInputError: the file cannot be decoded, has no audio, or holds NaN or infinite samples.

    >>> import asyncio, soundfile, tempfile
    >>> with tempfile.NamedTemporaryFile(suffix='.wav') as file:
    ...     soundfile.write(file.name, np.zeros((8000, 2)), 8000)
    ...     samples = asyncio.run(waveform.py_fn(file.name))
    >>> samples.shape, samples.dtype
    ((16000,), dtype('float32'))
    """
    return await in_pool(read_mono, audio)


@pxt.udf
@counted
async def log_mel(audio: pxt.Audio, *, seconds: float = 3.0, n_mels: int = 64) -> pxt.Array[(None, None), np.float32]:
    """The log-mel spectrogram of the first `seconds`; all clips give one shape.

    The front end of VGGish: windows of 25 ms every 10 ms, mel bands between 125 and 7500 Hz, `log(magnitude + 0.01)`.
    Shorter clips are padded with silence at the end, longer ones cut.

    Args:
        audio: an audio file in any codec that libsndfile or FFmpeg reads.
        seconds: length kept, at least 0.01.
        n_mels: mel bands, at least 1.

    Returns:
        float32 (n_mels, round(100 * seconds)): natural log, lowest band first; ln 0.01 = -4.6 is silence, loud bands
        reach about 4.

    Raises:
        ConfigError: `seconds` or `n_mels` cannot work; raised when the column is declared.
        BadInputError: the file cannot be decoded, has no audio, or holds NaN or infinite samples.

    >>> import asyncio, soundfile, tempfile
    >>> with tempfile.NamedTemporaryFile(suffix='.wav') as file:
    ...     soundfile.write(file.name, np.zeros(8000), 8000)
    ...     mel = asyncio.run(log_mel.py_fn(file.name))
    >>> mel.shape, round(float(mel.max()), 3)
    ((64, 300), -4.605)
    """
    return await in_pool(read_log_mel, audio, seconds, n_mels)


@log_mel.conditional_return_type
def _(seconds: float, n_mels: int) -> ts.ColumnType:
    frames = _frames(seconds)
    if frames < 1 or n_mels < 1:
        raise ConfigError(f'log_mel(seconds={seconds}, n_mels={n_mels}): at least 0.01 seconds and 1 band are needed.')
    return array_type((n_mels, frames), 'float32')


def read_mono(path: str, seconds: float | None = None) -> np.ndarray:
    """Decode a file to 16 kHz mono: float32 (samples,).

    Args:
        path: a local file.
        seconds: decode no more than this from the start, plus a small margin; None for all of it.

    Raises:
        BadInputError: see `waveform`.

    >>> import soundfile, tempfile
    >>> with tempfile.NamedTemporaryFile(suffix='.flac') as file:
    ...     soundfile.write(file.name, np.zeros(48000), 48000)
    ...     read_mono(file.name).shape
    (16000,)
    """
    samples, rate = decode(path, seconds=None if seconds is None else seconds + _MARGIN)
    mono = samples.mean(axis=1, dtype=np.float32)
    if not np.isfinite(mono).all():
        raise BadInputError(f'{path} holds NaN or infinite samples. Encode it again, or leave it out.')
    if rate == RATE or not len(mono):
        return np.ascontiguousarray(mono)
    import torch
    import torchaudio.functional

    with torch.inference_mode():
        return torchaudio.functional.resample(torch.from_numpy(mono), rate, RATE).numpy()


def read_log_mel(path: str, seconds: float, n_mels: int) -> np.ndarray:
    """Decode a file and compute its log-mel spectrogram: float32 (n_mels, round(100 * seconds)).

    >>> import soundfile, tempfile
    >>> with tempfile.NamedTemporaryFile(suffix='.wav') as file:
    ...     soundfile.write(file.name, np.zeros(10), 16000)
    ...     read_log_mel(file.name, 0.5, 8).shape
    (8, 50)
    """
    frames = _frames(seconds)
    samples = read_mono(path, seconds)[: frames * HOP]
    import torch

    clip = torch.zeros(frames * HOP)
    clip[: len(samples)] = torch.from_numpy(samples)
    with torch.inference_mode():
        # A centred STFT has one frame more than hops; the last is half padding (Whisper drops it too).
        mel = _mel_transform(n_mels)(clip)[:, :frames]
        return torch.log(mel + LOG_OFFSET).numpy()


def decode(path: str, *, seconds: float | None = None) -> tuple[np.ndarray, int]:
    """Samples as stored, read by libsndfile where it knows the format (wav, flac, ogg, mp3), else by FFmpeg (m4a).

    Args:
        path: a local file.
        seconds: how much to decode from the start; None for all of it.

    Returns:
        float32 (samples, channels), and the rate in Hz.

    Raises:
        BadInputError: neither can decode it, or it has no audio stream.

    >>> import soundfile, tempfile
    >>> with tempfile.NamedTemporaryFile(suffix='.ogg') as file:
    ...     soundfile.write(file.name, np.zeros((8000, 2)), 8000)
    ...     decode(file.name, seconds=0.5)[0].shape
    (4000, 2)
    """
    import soundfile

    try:
        with soundfile.SoundFile(path) as file:
            count = -1 if seconds is None else math.ceil(seconds * file.samplerate)
            return file.read(count, dtype='float32', always_2d=True), file.samplerate
    except soundfile.LibsndfileError as error:
        return _decode_by_ffmpeg(path, seconds, error)


def _decode_by_ffmpeg(path: str, seconds: float | None, first: Exception) -> tuple[np.ndarray, int]:
    import av
    import av.error

    try:
        # A list of files (`ffconcat`) is a format to FFmpeg: it may open nothing but this one.
        with open(path, 'rb') as file, av.open(file, 'r', options={'protocol_whitelist': 'none'}) as container:
            if not container.streams.audio:
                raise BadInputError(f'{path} has no audio stream. Put it in a video, image or document column instead.')
            stream = container.streams.audio[0]
            planar = av.AudioResampler(format='fltp')  # only the sample format; rate and channels stay
            wanted = math.inf if seconds is None else math.ceil(seconds * stream.rate)
            blocks: list[np.ndarray] = []
            done = 0
            for frame in container.decode(stream):
                for converted in planar.resample(frame):
                    blocks.append(converted.to_ndarray())
                    done += converted.samples
                if done >= wanted:
                    break
            rate = stream.rate
            channels = stream.codec_context.channels
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise BadInputError(
            f'{path} cannot be decoded as audio: libsndfile says "{first}", FFmpeg says "{error}". '
            f'Check that it plays, encode it again, or leave it out.'
        ) from error
    samples = np.concatenate(blocks, axis=1).T if blocks else np.zeros((0, channels), np.float32)
    return (samples if seconds is None else samples[: int(wanted)]), rate


@functools.cache
def _mel_transform(n_mels: int) -> torch.nn.Module:
    import torchaudio.transforms

    return torchaudio.transforms.MelSpectrogram(
        RATE, FFT, WINDOW, HOP, f_min=LOWEST, f_max=HIGHEST, n_mels=n_mels, power=1.0, pad_mode='constant'
    )


def _frames(seconds: float) -> int:
    return round(seconds * RATE / HOP)
