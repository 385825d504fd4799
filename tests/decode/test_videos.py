from __future__ import annotations

import functools
import io
import pickle
import struct
import subprocess
import sys
import threading
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import PIL.Image
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from mmpipe.decode.decoder import Decoder
from mmpipe.decode.image_boxes import DRAWS, random_box
from mmpipe.decode.videos import video
from mmpipe.errors import ConfigError, DataError

module = sys.modules['mmpipe.decode.videos']  # the file; the package gives its function this name
EXAMPLES = Path(__file__).parent.parent.parent / 'examples' / 'data'
CLIPS = [path.read_bytes() for path in sorted((EXAMPLES / 'clips').iterdir())[:12]]
NOTHING = np.float32([])
SIZE = 64
TURN = 1 << 16  # 1.0 in a display matrix


def picture(number: int, width: int = SIZE, height: int = SIZE) -> np.ndarray:
    """A smooth picture that says which frame it is by its colour, and is like no turn of itself."""
    y, x = np.mgrid[:height, :width] / max(width, height)
    return np.stack([90 + 120 * x, 60 + 150 * y, np.full_like(x, 40 + number * 37 % 160)], -1).astype(np.uint8)


def stored(
    count: int = 40,
    size: tuple[int, int] = (SIZE, SIZE),
    *,
    codec: str = 'libx264',
    form: str = 'mp4',
    group: int = 12,
    stamps: list[int] | None = None,
    pixels: str = 'yuv420p',
    faststart: Path | None = None,
    **options: str,
) -> bytes:
    """A clip of `picture`s at 25 frames a second, or shown at `stamps` in milliseconds."""
    file = faststart or io.BytesIO()
    with av.open(file, 'w', form, options={'movflags': 'faststart'} if faststart else {}) as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height = size
        stream.pix_fmt, stream.gop_size = pixels, group
        stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(picture(number, *size), 'rgb24')
            frame.time_base, frame.pts = Fraction(1, 1000), 40 * number if stamps is None else stamps[number]
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return faststart.read_bytes() if faststart else file.getvalue()


def turned(data: bytes, a: int, b: int, c: int, d: int) -> bytes:
    """The same MP4 with another display matrix in its track header, as a phone writes it."""
    at = data.index(b'tkhd') + 44
    return data[:at] + struct.pack('>9i', a, b, 0, c, d, 0, 0, 0, 1 << 30) + data[at + 36 :]


@functools.lru_cache(maxsize=32)
def plain(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Every frame, by PyAV alone: RGB [frames, 3, h, w], and seconds."""
    with av.open(io.BytesIO(data)) as container:
        frames = list(container.decode(video=0))
    planes = [frame.reformat(format='gbrp').to_ndarray().transpose(2, 0, 1) for frame in frames]
    return np.stack(planes), np.array([np.nan if frame.pts is None else frame.time for frame in frames])


def decoded(data: bytes, draws: np.ndarray = NOTHING, **options) -> np.ndarray:
    options = {'size': SIZE, 'crop': None, **options}
    return video(**options).decode(data, draws, None)


def shown(data: bytes, result: np.ndarray) -> list[int]:
    """Which frame of the clip each of the result is; exactly."""
    frames, _ = plain(data)
    found = [[n for n, frame in enumerate(frames) if np.array_equal(frame, one)] for one in result]
    assert all(found), 'a picture that is no frame of the clip'
    return [matches[0] for matches in found]


FORMS = {
    'mp4 h264': {},
    'mp4 h264 open groups': {'x264-params': 'open-gop=1:bframes=3:b-adapt=0:keyint=12:min-keyint=12:scenecut=0'},
    'mkv h264': {'form': 'matroska'},
    'ts h264': {'form': 'mpegts'},
    'bare h264': {'form': 'h264'},
    'mp4 hevc': {'codec': 'libx265', 'x265-params': 'log-level=none'},
    'avi mpeg4': {'codec': 'mpeg4', 'form': 'avi', 'bf': '2'},
    'webm vp8 hidden frames': {'codec': 'libvpx', 'form': 'webm', 'auto-alt-ref': '1', 'lag-in-frames': '16'},
    'webm vp9': {'codec': 'libvpx-vp9', 'form': 'webm', 'cpu-used': '8'},
    'mp4 all keyframes': {'group': 1},
}


class Clips(dict):
    def __repr__(self) -> str:
        return 'clips'  # in the message of a failure


@pytest.fixture(scope='module')
def clips() -> Clips:
    return Clips({name: stored(**options) for name, options in FORMS.items()})


@settings(deadline=None, max_examples=30)
@given(st.sampled_from(sorted(FORMS)), st.integers(1, 50), st.sampled_from([None, 0.2, 0.7, 9]), st.floats(0, 0.99))
def test_frames_are_those_on_screen_at_even_times_in_every_format(clips, name, count, span, place):
    data = clips[name]
    frames, times = plain(data)
    if np.isnan(times).any():
        times = np.arange(len(times)) / 25
    place = float(np.float32(place))
    draws = np.float32([place]) if span else NOTHING
    result = decoded(data, draws, frames=count, span=span or 'whole')
    length = times[-1] + 0.04 - times[0]
    window = min(span or length, length)
    wanted = times[0] + place * (length - window) + (np.arange(count) + 0.5) * window / count
    # At the very instant when the picture changes, both are right: times are rounded to the ticks of the file.
    early, late = (np.searchsorted(times, wanted + shift, side='right') - 1 for shift in (-0.002, 0.002))
    same = 'avi' in name  # FFmpeg gives the last two frames of an AVI with B-frames one time
    for one, first, last in zip(result, np.maximum(early, 0), np.maximum(late, 0), strict=True):
        assert any(np.array_equal(one, frames[n]) for n in range(max(first - same, 0), last + 1))


def test_a_variable_frame_rate_is_followed():
    stamps = [0, 40, 80, 1000, 1040, 3000, 3040, 3960]  # the picture of 1.04 s stays for two seconds
    data = stored(8, stamps=stamps)
    assert shown(data, decoded(data, frames=4)) == [2, 4, 4, 6]


def test_a_clip_with_fewer_frames_than_asked_for_repeats_them():
    data = stored(3)
    assert shown(data, decoded(data, frames=9)) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert shown(stored(1), decoded(stored(1), frames=3)) == [0, 0, 0]


def test_frames_that_an_edit_leaves_out_are_not_shown():
    data = stored(40, bf='0')
    at = data.index(b'elst') + 16  # in the one entry, where in the media it begins
    scale = struct.unpack('>I', data[(clock := data.index(b'mdhd') + 16) : clock + 4])[0]
    begin = struct.unpack('>i', data[at : at + 4])[0] + scale * 40 * 17 // 1000
    data = data[:at] + struct.pack('>i', begin) + data[at + 4 :]
    assert len(plain(data)[0]) == 23
    assert shown(data, decoded(data, frames=23)) == list(range(23))


def test_windows_lie_at_the_start_in_the_center_or_anywhere():
    data = stored(40)  # 1.6 s
    for window, first in (('start', 0), ('center', 15)):
        assert shown(data, decoded(data, frames=10, span=0.4, window=window)) == list(range(first, first + 10))
    for place, first in ((0, 0), (0.5, 15), (0.9999, 30)):
        assert shown(data, decoded(data, np.float32([place]), frames=2, span=0.4))[0] in (first + 2, first + 3)


@given(st.lists(st.floats(0, 1, exclude_max=True, width=32), min_size=8, max_size=8))
@settings(deadline=None, max_examples=8)
def test_jitter_takes_another_frame_of_the_same_part(clips, instants):
    data = clips['mp4 h264']
    numbers = shown(data, decoded(data, np.float32(instants), frames=8, jitter=True))
    assert [number // 5 for number in numbers] == list(range(8))
    assert numbers == [int((part + u) * 5) for part, u in enumerate(instants)]


def counted(monkeypatch) -> list[int]:
    """Frames that the decoder gave since the last `clear`."""
    frames: list[int] = []
    forward = module._forward

    def watched(*args):
        for frame in forward(*args):
            frames.extend([1] * (frame is not None))
            yield frame

    monkeypatch.setattr(module, '_forward', watched)
    return frames


def test_only_groups_with_wanted_frames_are_decoded_and_each_once(clips, monkeypatch):
    data = stored(120, group=10, bf='0', **{'x264-params': 'scenecut=0'})
    frames = counted(monkeypatch)
    decoded(data, frames=4)  # the frames 15, 45, 75 and 105, from their keyframes
    assert len(frames) == 4 * 6
    frames.clear()
    decoded(data, frames=120)
    assert len(frames) == 120
    frames.clear()
    decoded(data, np.float32([0.999]), frames=4, span=0.4)  # the last ten
    assert len(frames) <= 11
    frames.clear()
    decoded(data, np.float32([0.0]), frames=2, span=0.2)
    assert len(frames) <= 6
    # Of one group with frames that no other refers to, those are left out.
    data = stored(60, group=60, bf='3', **{'x264-params': 'scenecut=0:b-adapt=0:b-pyramid=none'})
    frames.clear()
    decoded(data, frames=3)
    assert len(frames) < 30


@pytest.mark.parametrize('crop', [None, 'center'])
@pytest.mark.parametrize(
    ('matrix', 'seen'),
    [
        ((0, TURN, -TURN, 0), lambda p: np.rot90(p, -1, (2, 3))),  # a phone held upright
        ((0, -TURN, TURN, 0), lambda p: np.rot90(p, 1, (2, 3))),
        ((-TURN, 0, 0, -TURN), lambda p: np.rot90(p, 2, (2, 3))),
        ((-TURN, 0, 0, TURN), lambda p: p[..., ::-1]),  # a mirrored front camera
        ((TURN, 0, 0, -TURN), lambda p: p[..., ::-1, :]),
        ((0, TURN, TURN, 0), lambda p: p.swapaxes(2, 3)),
    ],
)
def test_pictures_are_turned_as_the_file_says(matrix, seen, crop):
    data = stored(4, (96, 64))
    assert np.array_equal(decoded(turned(data, *matrix), frames=2, crop=crop), seen(decoded(data, frames=2, crop=crop)))


def test_turned_pictures_are_cut_as_they_are_seen():
    data, draws = stored(2, (96, 64)), np.random.default_rng(3).random(DRAWS, np.float32)
    box = random_box(64, 96, draws, (0.08, 1.0), (3 / 4, 4 / 3))
    result = decoded(turned(data, 0, TURN, -TURN, 0), draws, frames=1, crop='random', size=32)[0]
    upright = np.rot90(plain(data)[0][1], -1, (1, 2))
    cut = upright[:, box.top : box.top + box.height, box.left : box.left + box.width]
    expected = PIL.Image.fromarray(cut.transpose(1, 2, 0)).resize((32, 32), PIL.Image.Resampling.BILINEAR)
    assert np.abs(result.transpose(1, 2, 0) - np.asarray(expected, int)).mean() < 2


@pytest.mark.parametrize('size', [16, 40, 112])
def test_resizing_is_as_pillow_does_it_with_antialias(size):
    data = stored(2, (160, 96))
    whole = PIL.Image.fromarray(plain(data)[0][1].transpose(1, 2, 0))
    for crop, box in ((None, (0, 0, 160, 96)), ('center', (32, 0, 128, 96))):
        expected = whole.resize((size, size), PIL.Image.Resampling.BILINEAR, box=box)
        result = decoded(data, frames=1, size=size, crop=crop)[0].transpose(1, 2, 0)
        assert np.abs(result - np.asarray(expected, int)).mean() < 1.5


def test_a_random_crop_is_the_same_in_all_frames_and_another_by_other_draws():
    data = stored(10, (96, 64), qp='0')
    rng = np.random.default_rng(0)
    boxes = [decoded(data, rng.random(DRAWS, np.float32), frames=5, crop='random') for _ in range(4)]
    for result in boxes:
        assert np.abs(result[:, :2].astype(int) - result[0, :2]).max() < 12  # only blue tells the frames apart
    assert len({result.tobytes() for result in boxes}) == 4


def with_wide_pixels(data: bytes) -> bytes:
    file = io.BytesIO()
    with av.open(io.BytesIO(data)) as given, av.open(file, 'w', 'mp4') as made:
        stream = made.add_stream_from_template(given.streams[0])
        stream.codec_context.sample_aspect_ratio = Fraction(2, 1)
        for packet in given.demux():
            if packet.size:
                packet.stream = stream
                made.mux(packet)
    return file.getvalue()


def test_pixels_that_are_not_square_are_shown_as_a_player_does():
    narrow = with_wide_pixels(stored(2, (48, 64)))
    frames, _ = plain(narrow)
    # 48 pixels twice as wide as high fill 96: the central square is the middle 32 of them.
    cut = PIL.Image.fromarray(np.ascontiguousarray(frames[1][:, :, 8:40].transpose(1, 2, 0)))
    result = decoded(narrow, frames=1, crop='center')[0].transpose(1, 2, 0)
    assert np.abs(result - np.asarray(cut.resize((64, 64), PIL.Image.Resampling.BILINEAR), int)).mean() < 1.5


@pytest.mark.parametrize('pixels', ['yuv420p', 'yuvj420p', 'yuv444p', 'yuv420p10le', 'gray'])
def test_colours_of_every_pixel_format_are_as_pyav_gives_them(pixels):
    data = stored(2, pixels=pixels)
    frames, _ = plain(data)
    rounding = 2 if '10' in pixels else 0
    assert np.abs(decoded(data, frames=2) - frames.astype(int)).max() <= rounding
    assert np.abs(frames[0].astype(int) - frames[1]).max() > 10 or pixels == 'gray'


def test_a_given_buffer_is_filled_and_the_contract_kept():
    decoder = video(frames=3, size=20, crop='random', span=0.5, jitter=True)
    assert isinstance(decoder, Decoder)
    assert (decoder.shape, decoder.rest, decoder.dtype) == ((3, 3, 20, 20), (), 'uint8')
    assert decoder.draws == 1 + DRAWS + 3
    assert video(crop=None).draws == 0
    draws = np.random.default_rng(0).random(decoder.draws, np.float32)
    out = np.full(decoder.shape, 77, np.uint8)
    assert decoder.decode(CLIPS[0], draws, out) is out
    assert np.array_equal(out, decoder.decode(CLIPS[0], draws, None))


def test_threads_and_copies_decode_the_same(clips):
    decoder = video(frames=5, size=32, span=0.5)
    draws = np.random.default_rng(0).random((2, decoder.draws), np.float32)
    jobs = [(data, numbers) for data in [*CLIPS[:4], *clips.values()] for numbers in draws]
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


@settings(deadline=None, max_examples=120)
@given(
    st.integers(0, 21),
    st.floats(0, 1),
    st.lists(st.tuples(st.booleans(), st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=8),
    st.floats(0, 1, exclude_max=True, width=32),
)
def test_cut_or_corrupted_files_are_an_error_or_pictures(clips, number, end, damage, place):
    every = [*CLIPS, *clips.values()]
    good = every[number % len(every)]
    bad = bytearray(good[: round(end * len(good))])
    for early, share, value in damage if bad else ():
        bad[int(share * min(len(bad), 1500 if early else len(bad)))] = value
    out = np.full((3, 3, 16, 16), 77, np.uint8)
    try:
        result = video(frames=3, size=16, crop='center', span=0.3).decode(bytes(bad), np.float32([place]), out)
    except DataError:
        return
    assert result is out
    assert bytes(bad) == good[: len(bad)] or not (out == 77).all()


def test_a_cut_file_is_told_where_its_format_says_how_long_it_is(tmp_path):
    data = stored(100, faststart=tmp_path / 'a.mp4')
    assert shown(data, decoded(data, frames=3)) == [16, 50, 83]
    for part in (0.5, 0.9):
        with pytest.raises(DataError, match=r'ends after \d+ of 100 frames'):
            decoded(data[: int(len(data) * part)], frames=1)


def sound(kind: str) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.zeros(4000), 8000, format=kind)
    return file.getvalue()


@pytest.mark.parametrize(
    ('data', 'said'),
    [
        (b'', 'cannot be decoded'),
        (b'# A text\n' * 99, 'cannot be decoded'),
        (sound('WAV'), 'no video stream'),
        (sound('OGG'), 'no video stream'),
        (stored(20)[:300], 'cannot be decoded'),
    ],
    ids=['empty', 'text', 'wav', 'ogg', 'cut'],
)
def test_what_is_no_video_is_told(data, said):
    with pytest.raises(DataError, match=said):
        decoded(data)


def test_the_cover_of_a_song_is_no_video():
    cover = io.BytesIO()
    PIL.Image.fromarray(picture(0)).save(cover, 'png')
    body = b'\0image/png\0\x03\0' + cover.getvalue()
    frame = b'APIC' + struct.pack('>I', len(body)) + b'\0\0' + body
    size = bytes(len(frame) >> shift & 0x7F for shift in (21, 14, 7, 0))
    data = b'ID3\x03\0\0' + size + frame + sound('MP3')
    with av.open(io.BytesIO(data)) as container:
        assert len(container.streams.video) == 1
    with pytest.raises(DataError, match='no video stream'):
        decoded(data)


def test_a_list_of_files_opens_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('secret.ts').write_bytes(stored(4, form='mpegts'))
    data = b'ffconcat version 1.0\nfile secret.ts\n'
    with av.open(io.BytesIO(data)) as container:  # FFmpeg does, unless it is told not to
        assert container.streams
    with pytest.raises(DataError, match='FFmpeg says'):
        decoded(data)


def test_damage_is_not_written_to_stderr_and_imports_are_light():
    script = """
import sys
import numpy as np
from pathlib import Path
from mmpipe.decode.videos import video
print({'torch', 'pixeltable', 'av', 'PIL'} & set(sys.modules))
from mmpipe.errors import DataError
failed = 0
for path in sorted(Path(sys.argv[1]).iterdir())[:20]:
    data = path.read_bytes()
    for bad in (data[: len(data) // 2], data[:1500] + bytes(200) + data[1700:], data[::-1]):
        try:
            video(crop=None).decode(bad, np.float32([]), None)
        except DataError:
            failed += 1
print(failed >= 40, {'torch', 'pixeltable'} & set(sys.modules))
"""
    done = subprocess.run(
        [sys.executable, '-c', script, str(EXAMPLES / 'clips')], capture_output=True, text=True, timeout=120
    )
    assert (done.stdout, done.stderr) == ('set()\nTrue set()\n', '')


@pytest.mark.parametrize(
    'options',
    [
        {'frames': 0},
        {'size': 0},
        {'size': 1.5},
        {'crop': 'left'},
        {'span': 0},
        {'span': 'all'},
        {'window': 'end'},
        {'scale': (0.5, 0.1)},
        {'ratio': (0, 1)},
    ],
)
def test_arguments_that_cannot_work_are_refused_at_once(options):
    with pytest.raises(ConfigError, match=r'mm\.decode\.video'):
        video(**options)
