from __future__ import annotations

import io
import sys
import threading

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_sample_image

from mmpipe.decode import jpeg
from mmpipe.decode.image_boxes import DRAWS, Box
from mmpipe.decode.image_resize import memory, resize_into
from mmpipe.decode.images import image
from mmpipe.errors import DataError

PHOTO = PIL.Image.fromarray(load_sample_image('china.jpg'))  # 640 x 427
BACKENDS = ['pillow', *(['simplejpeg'] if jpeg.backend() == 'simplejpeg' else [])]

kinds = st.fixed_dictionaries(
    {'mode': st.sampled_from(['RGB', 'L']), 'quality': st.integers(5, 99), 'subsampling': st.integers(0, 2)},
    optional={'progressive': st.just(True), 'restart_marker_blocks': st.integers(1, 9), 'keep_rgb': st.just(True)},
)


def encoded(picture: PIL.Image.Image, *, mode: str = 'RGB', **options) -> bytes:
    file = io.BytesIO()
    if options.get('keep_rgb'):
        options['subsampling'] = 0  # libjpeg writes it no other way
    picture.convert(mode).save(file, 'jpeg', **options)
    return file.getvalue()


def whole(data: bytes, shrink: int = 1) -> np.ndarray:
    picture = PIL.Image.open(io.BytesIO(data))
    if shrink > 1:
        picture.draft(None, (picture.width // shrink, picture.height // shrink))
    return np.asarray(picture.convert('RGB'))


def cut(pixels: np.ndarray, box: Box) -> np.ndarray:
    return pixels[box.top : box.top + box.height, box.left : box.left + box.width]


def some_box(data: st.DataObject, width: int, height: int) -> Box:
    left, top = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    return Box(left, top, data.draw(st.integers(1, width - left)), data.draw(st.integers(1, height - top)))


@settings(deadline=None, max_examples=80)
@given(kinds, st.integers(1, 90), st.integers(1, 90), st.data())
def test_a_part_has_the_pixels_of_the_whole(kind: dict, width: int, height: int, data: st.DataObject) -> None:
    file = encoded(PHOTO.crop((200, 100, 200 + width, 100 + height)), **kind)
    head = jpeg.header(file)
    assert head is not None
    assert head[:3] == (width, height, 1)
    assert (head.height_at == 0) == ('progressive' in kind)
    box = some_box(data, width, height)
    for backend in BACKENDS:
        assert np.array_equal(jpeg.part(file, head, box, using=backend), cut(whole(file), box)), backend


@settings(deadline=None, max_examples=40)
@given(kinds, st.integers(64, 150), st.integers(64, 150), st.sampled_from(jpeg.SHRINKS), st.data())
def test_a_part_of_a_smaller_image_is_that_of_the_whole_smaller_image(
    kind: dict, width: int, height: int, shrink: int, data: st.DataObject
) -> None:
    file = encoded(PHOTO.crop((200, 100, 200 + width, 100 + height)), **kind)
    head = jpeg.header(file)
    assert head is not None
    box = some_box(data, -(-width // shrink), -(-height // shrink))
    for backend in BACKENDS:
        found = jpeg.part(file, head, box, shrink, using=backend)
        assert np.array_equal(found, cut(whole(file, shrink), box)), backend


@pytest.mark.parametrize('backend', BACKENDS)
def test_what_is_below_a_part_is_not_decoded(backend: str) -> None:
    file = bytearray(encoded(PHOTO, quality=90))
    expected = whole(bytes(file))[:100]
    file[len(file) // 2 : -2] = bytes(len(file) - len(file) // 2 - 2)  # the lower half, but the end
    head = jpeg.header(bytes(file))
    assert head is not None
    assert np.array_equal(jpeg.part(bytes(file), head, Box(0, 0, 640, 100), using=backend), expected)
    assert not np.array_equal(whole(bytes(file))[-100:], whole(encoded(PHOTO, quality=90))[-100:])


@pytest.mark.parametrize('work', [*BACKENDS, 'scaling'])
def test_other_threads_run_meanwhile(work: str) -> None:
    file = encoded(PHOTO)
    head = jpeg.header(file)
    assert head is not None
    out = np.empty((3, 224, 224), np.uint8)

    def step() -> None:
        if work == 'scaling':
            resize_into(memory(640 * 427 * 3).reshape(427, 640, 3), out)
        else:
            jpeg.part(file, head, Box(0, 0, 640, 427), using=work)

    step()  # imports and memory
    go, running, seen = threading.Event(), [], []

    def wait() -> None:
        go.wait()
        seen.append(bool(running))

    thread = threading.Thread(target=wait)
    thread.start()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e6)  # Python takes its lock from nobody: the other thread runs where `step` lets go of it
    try:
        go.set()
        running.append(True)
        for _ in range(500):  # it needs a core, too
            if not seen:
                step()
        running.clear()
    finally:
        sys.setswitchinterval(interval)
    thread.join()
    assert seen == [True]


@settings(deadline=None, max_examples=30)
@given(st.floats(0.02, 0.999))
def test_an_image_that_ends_early_is_refused_wherever_the_part_is(share: float) -> None:
    file = encoded(PHOTO)[: int(share * len(encoded(PHOTO)))]
    with pytest.raises(DataError, match='ends before its picture does'):
        image(size=8).decode(file, np.zeros(DRAWS, np.float32), None)


@settings(deadline=None, max_examples=200)
@given(
    st.sampled_from([encoded(PHOTO.resize((120, 80))), encoded(PHOTO.resize((90, 120)), progressive=True)]),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=4)), min_size=1, max_size=6),
    st.booleans(),
    st.lists(st.floats(0, 1, exclude_max=True, width=32), min_size=DRAWS, max_size=DRAWS),
)
def test_damaged_images_are_decoded_or_refused_by_all_alike_and_end_nothing(
    file: bytes, damages: list[tuple[float, bytes]], in_header: bool, draws: list[float]
) -> None:
    damaged = bytearray(file)
    for share, patch in damages:
        at = int(share * (700 if in_header else len(file)))
        damaged[at : at + len(patch)] = patch
    found = []
    for backend in BACKENDS:
        with pytest.MonkeyPatch.context() as patched:
            if backend == 'pillow':
                patched.setattr(jpeg, '_simplejpeg', lambda: None)
            try:
                pixels = image(size=16).decode(bytes(damaged), np.array(draws, np.float32), None)
            except DataError as error:
                assert str(error).endswith('.')  # noqa: PT017 (or there is no error)
                found.append(None)
            else:
                assert pixels.shape == (3, 16, 16)
                found.append(pixels.tolist())
    assert all(pixels == found[0] for pixels in found)


def test_what_parts_cannot_be_taken_of_is_left_to_pillow() -> None:
    for mode in ('CMYK', 'YCbCr'):
        assert (jpeg.header(encoded(PHOTO, mode=mode)) is None) == (mode == 'CMYK')
    file = io.BytesIO()
    PHOTO.save(file, 'png')
    assert jpeg.header(file.getvalue()) is None
    assert jpeg.header(b'\xff\xd8\xff') is None
    assert jpeg.header(encoded(PHOTO)[:300]) is None


def test_an_image_with_impossible_sizes_is_refused_before_memory_is_taken_for_it() -> None:
    file = bytearray(encoded(PHOTO))
    head = jpeg.header(bytes(file))
    assert head is not None
    file[head.height_at : head.height_at + 4] = b'\xff\xff\xff\xff'
    with pytest.raises(DataError, match='65,535 x 65,535 pixels'):
        jpeg.header(bytes(file))


def test_without_simplejpeg_pillow_decodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, 'simplejpeg', None)
    jpeg._simplejpeg.cache_clear()
    try:
        assert jpeg.backend() == 'pillow'
        draws = np.full(DRAWS, 0.5, np.float32)
        assert image(size=8).decode(encoded(PHOTO), draws, None).std() > 10
    finally:
        monkeypatch.undo()
        jpeg._simplejpeg.cache_clear()


@pytest.mark.gpu
def test_nvjpeg_decodes_what_the_cpu_decodes() -> None:
    from mmpipe.decode.cuda import decode_jpegs

    files = [encoded(PHOTO, quality=95, subsampling=0), encoded(PHOTO, mode='L')]
    for file, found in zip(files, decode_jpegs(files), strict=True):
        assert found.is_cuda
        difference = np.abs(found.cpu().numpy().transpose(1, 2, 0).astype(int) - whole(file))
        assert difference.mean() < 1
    with pytest.raises(DataError, match='one of 2 images'):
        decode_jpegs([files[0], b'no image at all'])
