"""Encoded sound to samples: one rate, one number of channels, whole or cut to a length."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from mmpipe.errors import ConfigError, DataError

if TYPE_CHECKING:
    import av
    import soundfile

Crop = Literal['random', 'start', 'center']

# Where a resampler reads: taps on each side of a sample, in samples of the lower rate (libswresample's default filter
# has 32). That much more than the wanted window is decoded, so that a cut sounds like the whole, cut afterwards.
_TAPS = 32
# Enough for every codec to be itself again after a seek: Opus wants 0.08 s, AAC one frame of 0.02-0.05 s.
_PREROLL = 0.5  # seconds
_BLOCK = 1 << 16  # samples handed over at once; the whole of a long clip in one frame is three times slower
_AT_ONCE = 1 << 22  # samples of each channel read at once
_UNKNOWN = 1 << 60  # libsndfile's count for a stream without one is above this
# A damaged header must not make a terabyte of samples.
_LARGEST_RATIO = 256
# Lists of files (`ffconcat`) are a format to FFmpeg: nothing but the given bytes is ever opened.
_ONLY_THESE_BYTES = {'protocol_whitelist': 'none'}


def audio(
    *, rate: int = 16_000, seconds: float | None = None, crop: Crop = 'random', channels: int = 1
) -> AudioDecoder:
    """Decode FLAC, WAV, OGG, MP3, M4A and whatever else libsndfile or FFmpeg reads, to float32 samples.

    libsndfile reads where it knows the format, and jumps to the cut; FFmpeg reads the rest, and the sound of videos.
    Rates are converted by FFmpeg's libswresample: no torch, outside Python's lock, with less error and less aliasing
    than `torchaudio.functional.resample` with its defaults.

    Args:
        rate: samples a second of the result, in Hz.
        seconds: length of the result; longer clips are cut and shorter ones followed by zeros. None for the whole of
            each clip, padded in the batch.
        crop: where a longer clip is cut: 'random', another place in each epoch; 'start'; 'center'.
        channels: 1 for the mean of the stored channels, without a dimension for it; more to get them as stored, where
            a stored single channel is repeated.

    Returns:
        A decoder to float32 `[length]` (one channel) or `[length, channels]`, nominally in [-1, 1].

    Raises:
        ConfigError: an argument cannot work.

    >>> import soundfile
    >>> file = io.BytesIO()
    >>> soundfile.write(file, np.zeros(48_000), 48_000, format='FLAC')
    >>> decoder = audio(rate=16_000, seconds=0.5)
    >>> decoder.decode(file.getvalue(), np.float32([0.3]), None).shape
    (8000,)
    """
    return AudioDecoder(rate=rate, seconds=seconds, crop=crop, channels=channels)


@dataclass(frozen=True, kw_only=True)
class AudioDecoder:
    """What `mm.decode.audio` makes; see there. Holds only its arguments, so it pickles and serves any thread."""

    rate: int
    seconds: float | None
    crop: Crop
    channels: int

    def __post_init__(self) -> None:
        if self.rate < 1 or self.rate != int(self.rate):
            raise ConfigError(f'mm.decode.audio(rate={self.rate}): the rate is a whole number of Hz, such as 16000.')
        if self.seconds is not None and not (math.isfinite(self.seconds) and round(self.seconds * self.rate) >= 1):
            raise ConfigError(
                f'mm.decode.audio(seconds={self.seconds}, rate={self.rate}) keeps no sample. '
                f'Give a length in seconds, or None for whole clips.'
            )
        if self.crop not in ('random', 'start', 'center'):
            raise ConfigError(f"mm.decode.audio(crop={self.crop!r}): choose 'random', 'start' or 'center'.")
        if self.channels < 1 or self.channels != int(self.channels):
            raise ConfigError(f'mm.decode.audio(channels={self.channels}): at least one channel is needed.')

    @property
    def rest(self) -> tuple[int, ...]:
        """Shape behind the varying length: () with one channel or a fixed length."""
        return () if self.channels == 1 or self.seconds is not None else (self.channels,)

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Shape of a result; None for whole clips."""
        if self.seconds is None:
            return None
        length = round(self.seconds * self.rate)
        return (length,) if self.channels == 1 else (length, self.channels)

    @property
    def dtype(self) -> str:
        """Always float32."""
        return 'float32'

    @property
    def draws(self) -> int:
        """One random number for a random cut."""
        return int(self.seconds is not None and self.crop == 'random')

    def decode(self, data: bytes, draws: np.ndarray, out: np.ndarray | None) -> np.ndarray:
        """Samples of one clip; see `mmpipe.decode.Decoder`.

        Raises:
            DataError: the bytes hold no sound that can be decoded, end too early, hold NaN or infinite samples, or
                have another number of channels than asked for.
        """
        place = {'random': float(draws[0]) if self.draws else 0.0, 'start': 0.0, 'center': 0.5}[self.crop]
        window = read_window(data, _Window(self.rate, None if self.shape is None else self.shape[0], place))
        if not np.isfinite(window.samples).all():
            raise DataError('the sound holds NaN or infinite samples. Encode it again, or leave it out.')
        mixed = mix(window.samples, self.channels)
        length = math.ceil(window.kept * self.rate / window.rate) if self.shape is None else self.shape[0]
        if out is None:
            out = np.empty((length,) if self.channels == 1 else (length, self.channels), np.float32)
        most = min(length, math.ceil(window.kept * self.rate / window.rate))
        for channel in range(self.channels):
            filled, count = out if out.ndim == 1 else out[:, channel], 0
            skipped = window.before * self.rate // window.rate
            for made in resampled(mixed[:, channel], window.rate, self.rate):
                kept = made[skipped : skipped + most - count]
                skipped = max(0, skipped - len(made))
                filled[count : count + len(kept)] = kept
                count += len(kept)
            filled[count:] = 0
        return out


class _Window(NamedTuple):
    """Which part of a clip is wanted, told before its rate and length are known."""

    rate: int  # Hz of the result
    length: int | None  # samples of the result; None for all
    place: float  # of the cut, in [0, 1) of where it can begin

    def margin(self, stored: int) -> int:
        """Stored samples to read on each side: the resampler's reach, as a whole number of its periods."""
        if stored == self.rate:
            return 0
        period = stored // math.gcd(stored, self.rate)
        return math.ceil(_TAPS * max(1, stored / self.rate) / period) * period

    def needed(self, stored: int) -> int | None:
        """Stored samples that make `length`."""
        return None if self.length is None else math.ceil(self.length * stored / self.rate)

    def start(self, stored: int, total: int) -> int:
        """First stored sample of the cut."""
        needed = self.needed(stored)
        return 0 if needed is None or needed >= total else min(int(self.place * (total - needed + 1)), total - needed)


class _Read(NamedTuple):
    samples: np.ndarray  # float32 [before + kept + behind, stored channels]
    rate: int  # Hz, stored
    before: int  # samples that are only there for the resampler
    kept: int  # samples of the window itself


def read_window(data: bytes, window: _Window) -> _Read:
    """Read the wanted part by libsndfile, or by FFmpeg where libsndfile does not know the format.

    Raises:
        DataError: neither can read it.
    """
    if not data:
        raise DataError('there are no bytes to decode as sound.')
    # libsndfile's MP3 reader writes its warnings to stderr, whoever listens; FFmpeg keeps quiet.
    if data[:3] == b'ID3' or (data[0] == 0xFF and data[1:2] >= b'\xe0'):
        return _by_ffmpeg(data, window, '')
    import soundfile

    try:
        file = soundfile.SoundFile(_Bytes(data))
    except (soundfile.SoundFileError, RuntimeError, ValueError, TypeError) as error:
        return _by_ffmpeg(data, window, f'libsndfile says "{_said(error)}", ')
    with file:
        try:
            return _by_libsndfile(file, window)
        except (soundfile.SoundFileError, RuntimeError, ValueError, MemoryError) as error:
            raise DataError(f'the sound cannot be decoded: libsndfile says "{_said(error)}". {_NEXT}') from error


class _Bytes(io.BytesIO):
    """Stays where it is when a damaged header leads to before the start: a callback's exception goes to stderr."""

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        try:
            return super().seek(offset, whence)
        except (ValueError, OverflowError):
            return self.tell()


def _by_libsndfile(file: soundfile.SoundFile, window: _Window) -> _Read:
    rate, total = file.samplerate, file.frames
    _check_rate(rate, window)
    known = total < _UNKNOWN
    whole = window.length is None or not known
    start = 0 if whole else window.start(rate, total)
    margin = window.margin(rate)
    first = max(0, start - margin)
    needed = window.needed(rate)
    last = total if whole or needed is None else min(total, start + needed + margin)
    if first:
        file.seek(first)
    if last - first <= _AT_ONCE:
        # Into memory that has room in front for the margin: fresh memory costs more than the samples do.
        ahead = max(0, margin - start)
        samples = np.empty((ahead + last - first, file.channels), np.float32)
        samples[:ahead] = 0
        count = len(file.read(out=samples[ahead:])) if last > first else 0
        samples = samples[: ahead + count]
    else:
        # In blocks, since a damaged header may announce more samples than memory holds.
        ahead, count, blocks = 0, 0, []
        while len(block := file.read(min(_AT_ONCE, last - first - count), dtype='float32', always_2d=True)):
            blocks.append(block)
            count += len(block)
        samples = np.concatenate(blocks) if blocks else np.zeros((0, file.channels), np.float32)
    if known and count < last - first:
        raise DataError(f'the sound ends after {first + count:,} of {total:,} samples. {_NEXT}')
    if not known:
        return _cut(samples, rate, window)
    return _framed(samples, rate, first - ahead, start, window)


def _by_ffmpeg(data: bytes, window: _Window, first_said: str) -> _Read:
    """FFmpeg's reading: jumps where the length is known and the jump lands before the cut, else decodes everything."""
    import av
    import av.error

    try:
        with av.open(io.BytesIO(data), 'r', options=_ONLY_THESE_BYTES, metadata_errors='replace') as container:
            if not container.streams.audio:
                raise DataError('the file has no audio stream.')
            stream = container.streams.audio[0]
            if stream.codec_context is None:
                raise DataError(f'FFmpeg has no decoder for the codec of the audio stream. {_NEXT}')
            stream.codec_context.thread_count = 1  # several clips at once instead
            _check_rate(stream.codec_context.sample_rate, window)
            if window.length is not None and stream.duration and stream.time_base:
                read = _jumped(container, stream, window)
                if read is not None:
                    return read
                container.seek(0)
            return _cut(*_joined(container, stream), window)
    except (av.error.FFmpegError, OSError, ValueError, EOFError, MemoryError, IndexError, ArithmeticError) as error:
        raise DataError(f'the sound cannot be decoded: {first_said}FFmpeg says "{_said(error)}". {_NEXT}') from error


def _jumped(container: av.container.InputContainer, stream: av.AudioStream, window: _Window) -> _Read | None:
    """Only the wanted part, by the announced length; None where that length or the jump did not hold."""
    rate = stream.codec_context.sample_rate
    duration, base = stream.duration, stream.time_base
    assert duration is not None
    assert base is not None
    origin = stream.start_time or 0
    total, needed, margin = int(duration * base * rate), window.needed(rate), window.margin(rate)
    assert needed is not None
    start = window.start(rate, total)
    first, last = max(0, start - margin), start + needed + margin
    if first > _PREROLL * rate:
        container.seek(int((first / rate - _PREROLL) / base) + origin, stream=stream)
    blocks: list[np.ndarray] = []
    at = None  # position of the next sample, as the first frame tells it
    for frame, samples in _frames(container, stream):
        if at is None:
            if first <= _PREROLL * rate:
                at = 0
            elif frame.pts is None:
                return None
            else:
                at = round((frame.pts - origin) * base * rate)
            if at > first:
                return None
        low, high = max(first - at, 0), min(last - at, len(samples))
        if high > low:
            blocks.append(samples[low:high])
        at += len(samples)
        if at >= last:
            break
    count = sum(map(len, blocks))
    # The announced length may be a little long (its last frame is partly padding) or a plain guess (MP3 without index).
    if not count or first + count < min(last, total) - margin:
        return None
    return _framed(blocks[0] if len(blocks) == 1 else np.concatenate(blocks), rate, first, start, window)


def _joined(container: av.container.InputContainer, stream: av.AudioStream) -> tuple[np.ndarray, int]:
    rate = stream.codec_context.sample_rate
    blocks = [samples for _, samples in _frames(container, stream)]
    if not blocks:
        raise DataError(f'the sound holds no samples. {_NEXT}')
    samples = np.concatenate(blocks)
    # MP4 states its length; where other formats do, it may be a guess.
    if container.format.name.startswith('mov') and stream.duration and stream.time_base:
        total = int(stream.duration * stream.time_base * rate)
        if len(samples) < total - _PREROLL * rate:
            raise DataError(f'the sound ends after {len(samples):,} of {total:,} samples. {_NEXT}')
    return samples, rate


def _frames(
    container: av.container.InputContainer, stream: av.AudioStream
) -> Iterator[tuple[av.AudioFrame, np.ndarray]]:
    """Frames in order, with their samples as float32 [n, channels].

    Raises:
        DataError: a frame differs from those before in rate or channels.
    """
    import av

    floats = av.AudioResampler(format='fltp')  # only the sample format; rate and channels stay
    rate, channels = stream.codec_context.sample_rate, None
    for frame in container.decode(stream):
        for converted in floats.resample(frame):
            samples = converted.to_ndarray().T
            channels = channels or samples.shape[1]
            if (frame.sample_rate, samples.shape[1]) != (rate, channels):
                raise DataError(f'the sound changes its rate or its channels midway. {_NEXT}')
            yield frame, samples


def _cut(samples: np.ndarray, rate: int, window: _Window) -> _Read:
    """The window out of a whole clip."""
    margin, start, needed = window.margin(rate), window.start(rate, len(samples)), window.needed(rate)
    first = max(0, start - margin)
    last = len(samples) if needed is None else start + needed + margin
    return _framed(samples[first:last], rate, first, start, window)


def _framed(samples: np.ndarray, rate: int, first: int, start: int, window: _Window) -> _Read:
    """With silence where the margin in front reaches over the clip's beginning, so that it has one length always."""
    margin, needed = window.margin(rate), window.needed(rate)
    kept = len(samples) - (start - first)
    if needed is not None:
        kept = min(kept, needed)
    if kept <= 0:
        raise DataError(f'the sound holds no samples. {_NEXT}')
    missing = margin - (start - first)
    if missing:
        samples = np.concatenate([np.zeros((missing, samples.shape[1]), np.float32), samples])
    return _Read(samples, rate, margin, kept)


def mix(samples: np.ndarray, channels: int) -> np.ndarray:
    """Stored channels to the wanted number: float32 [n, stored] to [n, channels].

    Raises:
        DataError: the clip has neither one channel nor `channels`.

    >>> mix(np.float32([[1, 3]]), 1)
    array([[2.]], dtype=float32)
    """
    stored = samples.shape[1]
    if stored == channels:
        return samples
    if channels == 1:
        return samples.mean(axis=1, dtype=np.float32, keepdims=True)
    if stored == 1:
        return np.repeat(samples, channels, axis=1)
    raise DataError(
        f'the sound has {stored} channels, and {channels} are asked for. Ask for {stored}, or for 1 to get their mean.'
    )


def resampled(samples: np.ndarray, stored: int, rate: int) -> Iterator[np.ndarray]:
    """Convert the rate of one channel, float32 [n], piece by piece: the first sample is at the same time.

    >>> sum(len(made) for made in resampled(np.zeros(44_100, np.float32), 44_100, 16_000))
    16000
    """
    if stored == rate or not len(samples):
        yield samples
        return
    import av

    converter = av.AudioResampler(format='fltp', layout='mono', rate=rate)
    for first in range(0, len(samples) + _BLOCK, _BLOCK):
        frame = None  # at the end
        if first < len(samples):
            block = np.ascontiguousarray(samples[None, first : first + _BLOCK], np.float32)
            frame = av.AudioFrame.from_ndarray(block, format='fltp', layout='mono')
            frame.sample_rate = stored
        for converted in converter.resample(frame):
            yield np.frombuffer(memoryview(converted.planes[0]), np.float32)[: converted.samples]


def _check_rate(stored: int, window: _Window) -> None:
    if stored < 1 or not 1 / _LARGEST_RATIO <= window.rate / stored <= _LARGEST_RATIO:
        raise DataError(f'the sound says that it has {stored:,} samples a second, which cannot be. {_NEXT}')


def _said(error: BaseException) -> str:
    return str(error).strip().splitlines()[-1] if str(error).strip() else repr(error)


_NEXT = 'Check that it plays, encode it again, or leave it out.'
