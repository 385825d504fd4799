from __future__ import annotations

import io
import pickle
import struct
import subprocess
import sys
import threading
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import torch
import torchaudio.functional
from hypothesis import given, settings
from hypothesis import strategies as st

from mmpipe.decode.decoder import Decoder
from mmpipe.decode.sounds import audio
from mmpipe.errors import ConfigError, DataError

sound = sys.modules['mmpipe.decode.sounds']  # the file; the package gives its function this name
EXAMPLES = Path(__file__).parent.parent.parent / 'examples' / 'data'
SPEECH = [path.read_bytes() for path in sorted((EXAMPLES / 'speech').iterdir())[:12]]  # OGG and MP3
NOTHING = np.float32([])


def noise(count: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    """Samples that tell every place of a clip from every other, and survive a lossy codec: float32 [n, channels]."""
    low = np.cumsum(np.random.default_rng(seed).normal(size=(count, channels)), axis=0)
    low -= np.linspace(low[0], low[-1], count)
    return (low / (np.abs(low).max() + 1e-9) * 0.5).astype(np.float32)


def stored(samples: np.ndarray, rate: int, kind: str = 'FLAC', subtype: str | None = None) -> bytes:
    file = io.BytesIO()
    if kind in ('M4A', 'WEBM'):
        with av.open(file, 'w', format={'M4A': 'mp4', 'WEBM': 'webm'}[kind]) as container:
            layout = 'stereo' if samples.shape[1] == 2 else 'mono'
            codec, form = ('aac', 'fltp') if kind == 'M4A' else ('libopus', 'flt')
            stream = container.add_stream(codec, rate=rate, layout=layout)
            for first in range(0, len(samples), 1024):
                block = samples[first : first + 1024]
                block = block.T if form == 'fltp' else block.reshape(1, -1)
                frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(block), form, layout)
                frame.sample_rate, frame.pts = rate, first
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    else:
        soundfile.write(file, samples, rate, format=kind, subtype=subtype)
    return file.getvalue()


def resampled(samples: np.ndarray, before: int, after: int) -> np.ndarray:
    return np.concatenate(list(sound.resampled(samples, before, after)))


def decoded(data: bytes, place: float = 0.0, **options) -> np.ndarray:
    decoder = audio(**options)
    return decoder.decode(data, np.float32([place])[: decoder.draws], None)


class Clips(dict):
    def __repr__(self) -> str:
        return 'clips'  # in the message of a failure


@pytest.fixture(scope='module')
def clips() -> Clips:
    samples = noise(48_000 * 4)
    return Clips({kind: stored(samples, 48_000, kind) for kind in ('WAV', 'FLAC', 'OGG', 'MP3', 'AIFF', 'M4A', 'WEBM')})


@settings(deadline=None, max_examples=30)
@given(
    st.sampled_from([8000, 11_025, 44_100, 48_000]),
    st.integers(1, 3),
    st.integers(1, 5000),
    st.sampled_from([('WAV', 'PCM_16'), ('WAV', 'FLOAT'), ('WAV', 'ULAW'), ('FLAC', 'PCM_24'), ('AIFF', 'PCM_16')]),
    st.integers(1, 7000),
    st.floats(0, 1, exclude_max=True, width=32),
    st.sampled_from(['random', 'start', 'center']),
)
def test_a_clip_at_its_own_rate_is_what_soundfile_reads(rate, channels, count, kind, length, place, crop):
    data = stored(noise(count, channels), rate, *kind)
    expected = soundfile.read(io.BytesIO(data), dtype='float32', always_2d=True)[0]
    whole = decoded(data, rate=rate, channels=channels)
    assert whole.dtype == np.float32
    assert np.array_equal(whole.reshape(count, channels), expected)
    assert np.array_equal(decoded(data, rate=rate), expected.mean(axis=1, dtype=np.float32))
    cut = decoded(data, place, rate=rate, channels=channels, seconds=length / rate, crop=crop).reshape(-1, channels)
    assert len(cut) == length
    spare = max(count - length, 0)
    first = {'random': int(np.float32(place) * (spare + 1)), 'start': 0, 'center': (spare + 1) // 2}[crop]
    kept = min(count, length)
    assert np.array_equal(cut[:kept], expected[first : first + kept])
    assert not cut[kept:].any()


@pytest.mark.parametrize('kind', ['WAV', 'FLAC', 'OGG', 'MP3', 'AIFF', 'M4A', 'WEBM'])
@pytest.mark.parametrize('place', [0.31, 0.99999])
def test_a_cut_is_that_part_of_the_whole_in_every_format_and_rate(clips, kind, place):
    tolerance = {'MP3': 1e-6, 'M4A': 0.01, 'WEBM': 0.01}.get(kind, 0)  # AAC and Opus fill in noise of their own
    for rate in (48_000, 16_000, 22_050):
        whole = decoded(clips[kind], rate=rate)
        assert len(whole) / rate == pytest.approx(4, abs=0.06)
        cut = decoded(clips[kind], place, rate=rate, seconds=0.5)
        # Where it lies is known up to the padding that a lossy codec puts behind the clip: the best of all places.
        spare = len(whole) - len(cut)
        near = [min(max(round(place * spare) + shift, 0), spare) for shift in range(-rate // 25, 2)]
        errors = [np.abs(whole[at : at + len(cut)] - cut).max() for at in near]
        if rate == 48_000:
            assert min(errors) <= tolerance
        else:  # a cut may begin between two samples of the result
            assert min(errors) < 0.01
            assert min(errors) < np.median(errors) / 4


@pytest.mark.parametrize('kind', ['WAV', 'FLAC', 'M4A', 'WEBM'])
def test_a_resampled_cut_has_no_edges_of_its_own(clips, kind):
    """A tone, cut anywhere, is the tone: what lies around the cut was there for the filter."""
    rate = 48_000 if kind == 'WEBM' else 44_100
    tone = np.sin(2 * np.pi * 1000 * np.arange(rate * 4) / rate)[:, None].astype(np.float32) / 2
    data = stored(tone, rate, kind)
    for place in (0.3, 0.5, 0.7):
        cut = decoded(data, place, seconds=0.25)
        t = np.arange(len(cut)) / 16_000
        waves = np.stack([np.sin(2 * np.pi * 1000 * t), np.cos(2 * np.pi * 1000 * t)], axis=1)
        fitted = waves @ np.linalg.lstsq(waves, cut, rcond=None)[0]
        assert np.abs(cut - fitted).max() < (1e-4 if kind in ('WAV', 'FLAC') else 0.02)


@pytest.mark.parametrize('pair', [(44_100, 16_000), (48_000, 16_000), (22_050, 16_000), (8000, 16_000)])
def test_resampling_errs_less_and_aliases_less_than_torchaudio(pair):
    before, after = pair
    t, half = np.arange(before) / before, min(pair) / 2

    def error(converted: np.ndarray, hertz: float, kept: bool) -> float:
        expected = np.sin(2 * np.pi * hertz * np.arange(after) / after) if kept else np.zeros(after)
        return np.abs(converted - expected)[after // 4 : -after // 4].max()

    for share, bound in ((0.1, 2e-5), (0.5, 5e-5), (0.8, 1e-4), (1.1, 0.01), (1.3, 1e-4)):
        if share > 1 and after > before:
            continue
        tone = np.sin(2 * np.pi * half * share * t).astype(np.float32)
        ours = resampled(tone, before, after)
        theirs = torchaudio.functional.resample(torch.from_numpy(tone), before, after).numpy()
        assert len(ours) == len(theirs)
        assert error(ours, half * share, share < 1) < min(bound, error(theirs, half * share, share < 1))


def test_long_clips_are_resampled_block_by_block_without_seams():
    samples = noise(sound._BLOCK * 2 + 777)[:, 0]
    theirs = torchaudio.functional.resample(
        torch.from_numpy(samples), 44_100, 16_000, lowpass_filter_width=64, rolloff=0.945
    ).numpy()
    ours = resampled(samples, 44_100, 16_000)
    assert np.abs(ours - theirs)[100:-100].max() < 1e-3


def test_a_given_buffer_is_filled_to_its_end():
    data = stored(noise(4000, 2), 8000)
    for options in ({'channels': 2}, {'channels': 1}, {'channels': 2, 'rate': 8000}):
        decoder = audio(seconds=1, crop='start', **options)
        assert isinstance(decoder, Decoder)
        out = np.full(decoder.shape, np.nan, decoder.dtype)
        assert decoder.decode(data, NOTHING, out) is out
        assert np.array_equal(out, decoder.decode(data, NOTHING, None))
        assert out[: len(out) // 2].any()
        assert not out[len(out) // 2 :].any()


def test_contract_of_shapes_and_draws():
    assert (audio().shape, audio().rest, audio().draws) == (None, (), 0)
    assert (audio(channels=2).shape, audio(channels=2).rest) == (None, (2,))
    fixed = audio(seconds=1.5, channels=2)
    assert (fixed.shape, fixed.rest, fixed.draws, fixed.dtype) == ((24_000, 2), (), 1, 'float32')
    assert audio(seconds=1, crop='center').draws == 0


def test_channels_are_averaged_repeated_or_refused():
    two, one = stored(noise(100, 2), 16_000, 'WAV', 'FLOAT'), stored(noise(100), 16_000, 'WAV', 'FLOAT')
    assert np.array_equal(decoded(two, channels=2), noise(100, 2))
    assert np.array_equal(decoded(one, channels=3), np.repeat(noise(100), 3, axis=1))
    with pytest.raises(DataError, match='has 2 channels, and 3 are asked for'):
        decoded(two, channels=3)


def test_only_the_cut_is_decoded(monkeypatch):
    minute = noise(16_000 * 30)
    read = []
    real = soundfile.SoundFile.read
    monkeypatch.setattr(
        soundfile.SoundFile, 'read', lambda self, *a, **k: read.append(len(r := real(self, *a, **k))) or r
    )
    for kind in ('FLAC', 'OGG', 'WAV'):
        data = stored(minute, 16_000, kind)
        read.clear()
        decoded(data, 0.9, seconds=1)
        assert sum(read) == 16_000
    frames = []
    unwatched = sound._frames

    def watched(*args):
        for item in unwatched(*args):
            frames.append(len(item[1]))
            yield item

    monkeypatch.setattr(sound, '_frames', watched)
    for kind in ('M4A', 'MP3'):
        data = stored(minute, 16_000, kind)
        frames.clear()
        decoded(data, 0.9, seconds=1)
        assert 16_000 <= sum(frames) < 16_000 * 3


@settings(deadline=None, max_examples=150)
@given(
    st.integers(0, 18),
    st.floats(0, 1),
    st.lists(st.tuples(st.booleans(), st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=8),
    st.floats(0, 1, exclude_max=True, width=32),
)
def test_cut_or_corrupted_files_are_an_error_or_finite_samples(clips, number, end, damage, place):
    good = [*SPEECH, *clips.values()][number][:40_000]
    bad = bytearray(good[: round(end * len(good))])
    for early, share, value in damage if bad else ():
        bad[int(share * min(len(bad), 200 if early else len(bad)))] = value
    for options in ({'seconds': 0.5}, {}):
        try:
            samples = decoded(bytes(bad), place, **options)
        except DataError:
            continue
        assert samples.dtype == np.float32
        assert np.isfinite(samples).all()
        assert samples.shape == (8000,) if options else len(samples)


def test_damage_is_not_written_to_stderr():
    """In a process of its own: C libraries write past Python."""
    script = """
import io, sys, numpy as np, soundfile
from pathlib import Path
from mmpipe.decode.sounds import audio
from mmpipe.errors import DataError
failed = 0
for path in sorted(Path(sys.argv[1]).iterdir())[:40]:
    data = path.read_bytes()
    for bad in (data[: len(data) // 2], data[:100], data[:300] + bytes(200) + data[500:], data[::-1]):
        try:
            audio(seconds=1).decode(bad, np.float32([0.5]), None)
        except DataError:
            failed += 1
file = io.BytesIO()
soundfile.write(file, np.zeros(16_000), 16_000, format='AIFF')
lost = file.getvalue().replace(b'SSND', b'?SND')  # libsndfile looks for it before the start
try:
    audio(seconds=1).decode(lost, np.float32([0.5]), None)
except DataError:
    failed += 100
print(failed > 120, {'torch', 'torchaudio', 'pixeltable'} & set(sys.modules))
"""
    done = subprocess.run(
        [sys.executable, '-c', script, str(EXAMPLES / 'speech')], capture_output=True, text=True, timeout=120
    )
    assert (done.stdout, done.stderr) == ('True set()\n', '')


def test_importing_loads_no_reader_of_media():
    script = 'import sys, mmpipe.decode.sounds; print({"torch", "pixeltable", "av", "soundfile"} & set(sys.modules))'
    done = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == 'set()\n'


@pytest.mark.parametrize(
    ('data', 'said'),
    [
        (b'', 'no bytes'),
        (b'# A text\n' * 40, 'libsndfile says'),
        ((EXAMPLES / 'clips' / '4wd.mp4').read_bytes(), 'no audio stream'),
        (stored(np.float32([[0], [np.nan], [0]]), 16_000, 'WAV', 'FLOAT'), 'NaN or infinite'),
        (stored(np.zeros((0, 1)), 16_000, 'WAV'), 'no samples'),
        (stored(noise(16_000), 16_000, 'WAV').replace(struct.pack('<I', 16_000), struct.pack('<I', 1)), 'cannot be'),
    ],
    ids=['empty', 'text', 'video', 'nan', 'no samples', 'one hertz'],
)
def test_what_is_no_sound_is_told(data, said):
    for seconds in (None, 0.1):
        with pytest.raises(DataError, match=said):
            decoded(data, seconds=seconds)


def test_a_cut_file_is_told_where_its_format_says_how_long_it_is(tmp_path):
    for kind in ('FLAC', 'M4A'):
        data = stored(noise(48_000), 48_000, kind)
        if kind == 'M4A':  # as for streaming: the list of frames in front
            data = streamable(data, tmp_path / 'a.m4a')
        assert len(decoded(data, rate=48_000)) >= 48_000
        with pytest.raises(DataError, match=r'libsndfile says|ends after|FFmpeg says'):
            decoded(data[: len(data) // 2], 0.9, seconds=None if kind == 'FLAC' else 0.1)


def streamable(data: bytes, path: Path) -> bytes:
    with av.open(io.BytesIO(data)) as given, av.open(path, 'w', 'mp4', options={'movflags': 'faststart'}) as made:
        stream = made.add_stream_from_template(given.streams[0])
        for packet in given.demux():
            if packet.size:
                packet.stream = stream
                made.mux(packet)
    return path.read_bytes()


def test_a_header_that_announces_days_of_sound_costs_no_memory():
    data = bytearray(stored(noise(16_000), 16_000))
    assert data[:4] == b'fLaC'
    data[21] |= 0x0F  # STREAMINFO: 36 bits of sample count
    data[22:26] = b'\xff\xff\xff\xff'
    for seconds in (None, 0.1):
        with pytest.raises(DataError, match=r'libsndfile says|ends after 16,000 of 68,719,476,735'):
            decoded(bytes(data), 0.5, seconds=seconds)


def test_a_list_of_files_opens_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('secret.wav').write_bytes(stored(noise(16_000), 16_000, 'WAV'))
    data = b'ffconcat version 1.0\nfile secret.wav\n'
    with av.open(io.BytesIO(data)) as container:  # FFmpeg does, unless it is told not to
        assert container.streams
    with pytest.raises(DataError, match='FFmpeg says'):
        decoded(data)


def test_threads_and_copies_decode_the_same(clips):
    decoder = audio(seconds=0.7)
    jobs = [(data, np.float32([place])) for data in [*clips.values(), *SPEECH] for place in (0.1, 0.6)]
    alone = [decoder.decode(*job, None) for job in jobs]
    found: dict[int, list[np.ndarray]] = {}

    def work(number: int) -> None:
        found[number] = [decoder.decode(*job, None) for job in jobs]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    copy = pickle.loads(pickle.dumps(decoder))
    found[4] = [copy.decode(*job, None) for job in jobs]
    assert len(found) == 5
    for others in found.values():
        assert all(np.array_equal(a, b) for a, b in zip(alone, others, strict=True))


@pytest.mark.parametrize(
    'options', [{'rate': 0}, {'rate': 0.5}, {'seconds': 0}, {'seconds': -1}, {'crop': 'end'}, {'channels': 0}]
)
def test_arguments_that_cannot_work_are_refused_at_once(options):
    with pytest.raises(ConfigError, match=r'mm\.decode\.audio'):
        audio(**options)
