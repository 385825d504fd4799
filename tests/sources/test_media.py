"""Good media pass, bad media are refused with what is wrong: real files, made by real encoders, then damaged."""

from __future__ import annotations

import struct
import zlib

import av
import media
import numpy as np
import PIL.Image
import pytest
import soundfile

from mmpipe.errors import BadInputError
from mmpipe.sources.media import check, digest_file, stamp


def ogg(path):
    soundfile.write(path, media.tone(16000, 2.0), 16000, format='OGG', subtype='VORBIS')
    return path


def streamable(path):
    """A clip whose index comes first, so that a cut one still opens."""
    with av.open(str(path), 'w', options={'movflags': 'faststart'}) as container:
        stream = container.add_stream('libx264', rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 48, 'yuv420p'
        noise = np.random.default_rng(0)
        for _ in range(10):
            frame = av.VideoFrame.from_ndarray(noise.integers(0, 256, (48, 64, 3), np.uint8), 'rgb24')
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)
    return path


def matroska(path, *, fps=5, frames=50, sound=0.0, live=False):
    """A clip of noise in Matroska or WebM, which states its duration, unless it is written as a live stream is."""
    with av.open(str(path), 'w', options={'live': '1'} if live else {}) as container:
        stream = container.add_stream('libvpx' if path.suffix == '.webm' else 'libx264', rate=fps)
        stream.width, stream.height, stream.pix_fmt = 32, 32, 'yuv420p'
        voice = container.add_stream('libopus', rate=48000, layout='mono') if sound else None
        noise = np.random.default_rng(0)
        for _ in range(frames):
            frame = av.VideoFrame.from_ndarray(noise.integers(0, 256, (32, 32, 3), np.uint8), 'rgb24')
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if voice is not None:
            samples = av.AudioFrame.from_ndarray(media.tone(48000, sound).T.copy(), 'fltp', 'mono')
            samples.sample_rate = 48000
            container.mux(voice.encode(samples))
            container.mux(voice.encode(None))
    return path


GOOD = {
    'photo.jpg': ('image', media.photo),
    'photo.png': ('image', media.photo),
    'photo.webp': ('image', media.photo),
    'speech.wav': ('audio', media.sound),
    'speech.flac': ('audio', lambda path: media.sound(path, seconds=2.0)),
    'speech.ogg': ('audio', ogg),
    'speech.m4a': ('audio', media.m4a),
    'clip.mp4': ('video', media.clip),
    'stream.mp4': ('video', streamable),
    'page.pdf': ('document', lambda path: media.pdf(path, ['One', 'Two'])),
    'page.md': ('document', lambda path: (path.write_text('# *Title*\n\nText'), path)[1]),
}


@pytest.fixture(scope='module')
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp('good')
    return {name: (kind, make(folder / name)) for name, (kind, make) in GOOD.items()}


@pytest.mark.parametrize('name', GOOD)
def test_a_good_file_passes(good, name):
    kind, path = good[name]
    check(path, kind)


CUT = [name for name in GOOD if name != 'page.md']


@pytest.mark.parametrize('share', [0.3, 0.9])
@pytest.mark.parametrize('name', CUT)
def test_a_truncated_file_is_refused(good, tmp_path, name, share):
    kind, path = good[name]
    data = path.read_bytes()
    cut = tmp_path / name
    cut.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(BadInputError, match=r'truncated|damaged|cannot be opened'):
        check(cut, kind)


@pytest.mark.parametrize('name', GOOD)
def test_missing_empty_and_a_folder_are_refused(tmp_path, name):
    kind = GOOD[name][0]
    path = tmp_path / name
    with pytest.raises(BadInputError, match='does not exist: add the file'):
        check(path, kind)
    path.touch()
    with pytest.raises(BadInputError, match=r'is empty \(0 bytes\): replace the file'):
        check(path, kind)
    with pytest.raises(BadInputError, match='is not a file'):
        check(tmp_path, kind)


@pytest.mark.parametrize('name', [name for name in GOOD if name != 'page.md'])
def test_a_text_under_another_name_is_refused(tmp_path, name):
    path = tmp_path / name
    path.write_text('<html>404 not found</html>' * 20)
    with pytest.raises(BadInputError, match=r'is no|is not|has no sample'):
        check(path, GOOD[name][0])


def test_a_medium_of_another_kind_is_refused(good):
    with pytest.raises(BadInputError, match='is not an image'):
        check(good['speech.wav'][1], 'image')
    with pytest.raises(BadInputError, match='no video stream'):
        check(good['speech.m4a'][1], 'video')
    with pytest.raises(BadInputError, match='no audio stream'):
        check(good['clip.mp4'][1], 'audio')
    with pytest.raises(BadInputError, match='neither a PDF nor text'):
        check(good['clip.mp4'][1], 'document')


def png(path, width, height):
    """A PNG head that claims a size, with a line of pixels behind it."""

    def chunk(name, data):
        return struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))

    head = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    path.write_bytes(
        b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', head) + chunk(b'IDAT', zlib.compress(b'\0' * 100)) + chunk(b'IEND', b'')
    )
    return path


@pytest.mark.parametrize('edge', [14_000, 60_000])
def test_a_decompression_bomb_is_refused_without_decoding_it(tmp_path, edge):
    with pytest.raises(BadInputError, match=r'decompression bomb.*Scale it down'):
        check(png(tmp_path / 'bomb.png', edge, edge), 'image')


def test_a_mode_without_a_value_range_is_refused(tmp_path):
    PIL.Image.new('F', (4, 4), 0.5).save(tmp_path / 'depth.tiff')
    with pytest.raises(BadInputError, match='mode F, whose value range is unknown: save it as'):
        check(tmp_path / 'depth.tiff', 'image')


def test_text_that_is_not_utf8_is_refused_with_the_byte(tmp_path):
    (tmp_path / 'a.txt').write_bytes('Größe'.encode('latin-1'))
    with pytest.raises(BadInputError, match='not UTF-8 at byte 2'):
        check(tmp_path / 'a.txt', 'document')


@pytest.mark.parametrize('mark', ['utf-16', 'utf-16-be'])
def test_utf16_is_named(tmp_path, mark):
    (tmp_path / 'a.txt').write_bytes(('\ufeff' if mark == 'utf-16-be' else '').encode(mark) + 'Größe'.encode(mark))
    with pytest.raises(BadInputError, match='is UTF-16: save it as UTF-8'):
        check(tmp_path / 'a.txt', 'document')


def test_a_text_about_pdf_is_a_text_and_a_pdf_under_another_ending_is_told_to_be_renamed(good, tmp_path):
    (tmp_path / 'a.md').write_text('A PDF starts with `%PDF-1.7`.')
    check(tmp_path / 'a.md', 'document')
    (tmp_path / 'b.txt').write_bytes(good['page.pdf'][1].read_bytes())
    with pytest.raises(BadInputError, match=r'is a PDF that ends in \.txt: rename it to end in \.pdf'):
        check(tmp_path / 'b.txt', 'document')
    (tmp_path / 'b').write_bytes(good['page.pdf'][1].read_bytes())
    check(tmp_path / 'b', 'document')


@pytest.mark.parametrize(
    ('name', 'options'),
    [
        ('a.webm', {'sound': 10.0}), ('a.mkv', {'fps': 1, 'frames': 4}), ('a.mkv', {'frames': 2}),
        ('a.mkv', {'sound': 30.0, 'frames': 5}), ('a.webm', {'live': True}), ('a.mkv', {'sound': 0.5}),
    ],
)  # fmt: skip
def test_matroska_is_whole_at_any_rate_with_or_without_sound_and_live(tmp_path, name, options):
    check(matroska(tmp_path / name, **options), 'video')


def test_a_video_of_one_frame_is_refused_here_since_pixeltable_would_abort_the_insert(tmp_path):
    with pytest.raises(BadInputError, match=r'is no video that Pixeltable takes \(fewer than two frames decode\?\)'):
        check(matroska(tmp_path / 'a.mkv', frames=1), 'video')


@pytest.mark.parametrize('name', ['a.mkv', 'a.webm'])
def test_matroska_that_is_cut_is_refused_though_its_head_counts_no_frames(tmp_path, name):
    path = matroska(tmp_path / name)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(BadInputError, match=r'is truncated: [4-6]\.\d of 10\.\d s are there'):
        check(path, 'video')


def test_whatever_a_decoder_raises_is_a_refusal(good, monkeypatch):
    def broken(*_, **__):
        raise KeyError('raw')

    monkeypatch.setattr(PIL.Image, 'open', broken)
    with pytest.raises(BadInputError, match=r"is damaged \(KeyError: 'raw'\): replace it"):
        check(good['photo.jpg'][1], 'image')


def test_digest_and_stamp_change_with_the_content(tmp_path):
    path = tmp_path / 'a'
    path.write_bytes(b'one')
    first = digest_file(path), stamp(path)
    assert (digest_file(path), stamp(path)) == first
    path.write_bytes(b'two!')
    assert digest_file(path) != first[0]
    assert stamp(path) != first[1]


@pytest.mark.parametrize('kind', ['audio', 'video'])
@pytest.mark.parametrize('head', ['ffconcat version 1.0\nfile secret.{0}\n', '#EXTM3U\n#EXTINF:1,\nsecret.{0}\n'])
def test_a_list_that_names_another_file_is_refused_without_opening_it(good, tmp_path, kind, head):
    name = 'speech.ogg' if kind == 'audio' else next(name for name in GOOD if GOOD[name][0] == 'video')
    ending = name.rpartition('.')[2]
    (tmp_path / f'secret.{ending}').write_bytes(good[name][1].read_bytes())
    check(tmp_path / f'secret.{ending}', kind)
    path = tmp_path / f'list.{ending}'
    path.write_text(head.format(ending))
    with pytest.raises(BadInputError):
        check(path, kind)
