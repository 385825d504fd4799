from __future__ import annotations

import io
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import PIL.Image
import pytest
import torch
import torchvision.transforms.transforms as tv
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_sample_image

from mmpipe.decode import jpeg
from mmpipe.decode.decoder import Decoder
from mmpipe.decode.image_boxes import DRAWS, TURNS, Box, random_box, shrunk_box, stored_box, turned
from mmpipe.decode.image_modes import upright_rgb
from mmpipe.decode.image_resize import memory, resize_into
from mmpipe.decode.images import ImageDecoder, image
from mmpipe.errors import BadInputError, ConfigError, DataError

PHOTO = PIL.Image.fromarray(load_sample_image('china.jpg'))  # 640 x 427
NOISE = np.random.default_rng(0).integers(0, 256, (400, 400, 3), np.uint8)
NOTHING = np.empty(0, np.float32)
ORIENTATION = 0x0112

sides = st.integers(1, 900)
draws = st.lists(st.floats(0, 1, exclude_max=True, width=32), min_size=DRAWS, max_size=DRAWS)
draws = draws.map(lambda values: np.array(values, np.float32))


def encoded(picture: PIL.Image.Image, form: str = 'jpeg', **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


def scaled(pixels: np.ndarray, size: int, orientation: int = 1) -> np.ndarray:
    """`resize_into` of any array [h, w, 3]."""
    place = memory(pixels.size).reshape(pixels.shape)
    place[:] = pixels
    out = np.empty((3, size, size), np.uint8)
    resize_into(place, out, orientation)
    return out


def triangle(count: int, size: int) -> np.ndarray:
    """Weights [size, count] of every pixel in every result, the border's pixels standing for what is beyond."""
    step = count / size
    reach = max(1.0, step)
    centres = (np.arange(size) + 0.5) * step
    beyond = int(np.ceil(reach)) + 1
    pixels = np.arange(-beyond, count + beyond)
    weights = np.maximum(0, 1 - np.abs(pixels + 0.5 - centres[:, None]) / reach)
    weights[:, beyond] += weights[:, :beyond].sum(1)
    weights[:, -beyond - 1] += weights[:, -beyond:].sum(1)
    weights = weights[:, beyond:-beyond]
    return weights / weights.sum(1, keepdims=True)


class Given:
    """Stands in for torch where torchvision draws: the given values, in its order."""

    def __init__(self, values: np.ndarray) -> None:
        self.pairs, self.place = iter(values[:-2].tolist()), iter(values[-2:].tolist())

    def __getattr__(self, name: str) -> object:
        return getattr(torch, name)

    def empty(self, _: int) -> Given:
        return self

    def uniform_(self, low: float, high: float) -> torch.Tensor:
        return torch.as_tensor(low + next(self.pairs) * (high - low), dtype=torch.float64)

    def randint(self, low: int, high: int, size: tuple[int, ...]) -> torch.Tensor:
        return torch.tensor(int(low + next(self.place) * (high - low)))

    def log(self, values: torch.Tensor) -> torch.Tensor:
        return torch.log(values.double())


@settings(deadline=None, max_examples=150)
@given(
    sides, sides, draws,
    st.sampled_from([(0.08, 1.0), (0.9, 1.0), (0.001, 0.01)]), st.sampled_from([(3 / 4, 4 / 3), (1, 1), (0.1, 9)]),
)  # fmt: skip
def test_random_crops_are_those_of_torchvision(width, height, values, scale, ratio) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(tv, 'torch', Given(values))
        top, left, h, w = tv.RandomResizedCrop.get_params(PIL.Image.new('1', (width, height)), scale, ratio)
    expected = Box(left, top, max(w, 1), max(h, 1))
    assert random_box(width, height, values, scale, ratio) == expected
    assert 0 <= expected.left <= width - expected.width
    assert 0 <= expected.top <= height - expected.height


@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from(sorted(TURNS)), st.data())
def test_a_part_of_the_upright_image_is_found_in_the_stored_one(width, height, orientation, data) -> None:
    stored = np.arange(width * height).reshape(height, width)
    exif = PIL.Image.Exif()
    exif[ORIENTATION] = orientation
    picture = PIL.Image.open(io.BytesIO(encoded(PIL.Image.fromarray(stored.astype(np.uint8)), 'png', exif=exif)))
    upright = np.asarray(upright_rgb(picture))[:, :, 0]
    assert np.array_equal(turned(stored, orientation), upright)
    left, top = data.draw(st.integers(0, upright.shape[1] - 1)), data.draw(st.integers(0, upright.shape[0] - 1))
    w, h = data.draw(st.integers(1, upright.shape[1] - left)), data.draw(st.integers(1, upright.shape[0] - top))
    box = stored_box(Box(left, top, w, h), width, height, orientation)
    found = stored[box.top : box.top + box.height, box.left : box.left + box.width]
    assert np.array_equal(turned(found, orientation), upright[top : top + h, left : left + w])


@settings(deadline=None, max_examples=40)
@given(st.integers(4, 400), st.integers(4, 400), st.integers(16, 120), st.booleans())
def test_scaling_weighs_every_pixel_under_a_triangle(width, height, size, noisy) -> None:
    pixels = NOISE if noisy else np.asarray(PHOTO)
    pixels = pixels[:height, :width]
    exact = np.einsum('ij,jkc,lk->cil', triangle(height, size), pixels, triangle(width, size), optimize=True)
    difference = np.abs(scaled(pixels, size) - exact)
    assert difference[:, 1:-1, 1:-1].max() <= 1
    assert difference.max() <= 16  # of noise; at the border, the weights beyond it are not all given to one pixel
    assert difference.mean() < 0.5


def test_scaling_differs_from_pillow_at_the_border_only() -> None:
    ours = scaled(np.asarray(PHOTO), 160).astype(int)
    pillow = np.asarray(PHOTO.resize((160, 160), PIL.Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    assert np.abs(ours - pillow)[:, 1:-1, 1:-1].max() <= 2
    assert np.abs(ours - pillow).mean() < 0.5


def test_scaling_that_the_library_does_not_do_is_left_to_pillow() -> None:
    line = np.zeros((3, 60_000, 3), np.uint8)
    line[:, 30_000:] = 200
    expected = np.asarray(PIL.Image.fromarray(line).resize((16, 16), PIL.Image.Resampling.BILINEAR))[:, :, 1]
    assert expected[8].tolist() == [0] * 7 + [25, 175] + [200] * 7
    assert np.array_equal(scaled(line, 16)[1], expected)
    assert np.array_equal(scaled(line, 16, 6)[1], np.rot90(expected, -1))
    few = np.uint8([[[0] * 3, [80] * 3]])
    assert scaled(few, 4)[2].tolist() == [[0, 20, 60, 80]] * 4


@settings(deadline=None, max_examples=60)
@given(st.integers(20, 640), st.integers(20, 427), st.sampled_from(sorted(TURNS)), st.sampled_from([8, 32, 100]), draws)
def test_a_crop_of_a_jpeg_is_that_of_the_whole_image(width, height, orientation, size, values) -> None:
    exif = PIL.Image.Exif()
    exif[ORIENTATION] = orientation
    file = encoded(PHOTO.crop((0, 0, width, height)), exif=exif, quality=92)
    decoder = image(size=size)
    found = decoder.decode(file, values, None)
    upright = upright_rgb(PIL.Image.open(io.BytesIO(file)))
    box = decoder.box(*upright.size, values)
    head = jpeg.header(file)
    assert head is not None
    assert head.orientation == orientation
    stored = stored_box(box, *head[:2], orientation)
    shrink = jpeg.shrink_for(head, stored, size)
    # Edges are on whole pixels of the smaller image.
    small = shrunk_box(stored, -(-head.width // shrink), -(-head.height // shrink), shrink)
    pixels = np.asarray(PIL.Image.open(io.BytesIO(file)))
    pixels = pixels[small.top * shrink :, small.left * shrink :][: small.height * shrink, : small.width * shrink]
    expected = scaled(np.stack([turned(pixels[:, :, channel], orientation) for channel in range(3)], -1), size)
    difference = np.abs(found.astype(int) - expected)
    if shrink == 1:
        # Turned before or after values are rounded, and the first border before or after the last.
        assert difference[:, 1:-1, 1:-1].max() <= (0 if orientation == 1 else 2)
        assert difference.mean() <= (0 if orientation == 1 else 0.5)
    else:
        assert difference.mean() < 5  # a sharper filter


def test_a_decoded_half_is_as_good_as_the_whole() -> None:
    large = PHOTO.resize((1280, 854), PIL.Image.Resampling.BICUBIC)
    found = image(size=224, crop=None).decode(encoded(large, quality=92), NOTHING, None)
    assert jpeg.shrink_for(jpeg.Header(1280, 854, 1, 0), Box(0, 0, 1280, 854), 224) == 2
    assert np.abs(found.astype(int) - scaled(np.asarray(large), 224)).mean() < 1.5


def of_mode(mode: str) -> PIL.Image.Image:
    rng = np.random.default_rng(0)
    if mode in ('I', 'I;16'):
        values = rng.integers(0, 65_536, (16, 16))
        return PIL.Image.fromarray(values.astype(np.int32 if mode == 'I' else np.uint16))
    picture = PHOTO.resize((16, 16)).convert('LA' if mode == 'LA' else 'RGBA')
    picture.putalpha(PIL.Image.fromarray(rng.integers(0, 256, (16, 16), dtype=np.uint8)))
    return picture if picture.mode == mode else picture.convert('RGB').convert(mode)


@pytest.mark.parametrize(
    ('mode', 'form', 'options'),
    [
        ('1', 'png', {}), ('L', 'png', {}), ('L', 'png', {'transparency': 90}), ('LA', 'png', {}), ('P', 'png', {}),
        ('P', 'gif', {'transparency': 3}), ('RGB', 'png', {}), ('RGBA', 'png', {}), ('I;16', 'png', {}),
        ('I;16', 'tiff', {}), ('I', 'tiff', {}), ('CMYK', 'tiff', {}), ('CMYK', 'jpeg', {}), ('YCbCr', 'jpeg', {}),
        ('L', 'jpeg', {}), ('RGB', 'jpeg', {'progressive': True}), ('RGB', 'webp', {}), ('RGBA', 'webp', {}),
        ('RGB', 'bmp', {}), ('RGB', 'gif', {'save_all': True}), ('RGBA', 'webp', {'save_all': True}),
    ],
)  # fmt: skip
@pytest.mark.parametrize('orientation', [1, 6])
def test_every_kind_of_image_becomes_rgb_as_in_a_pipeline(mode, form, options, orientation) -> None:
    from mmpipe.functions.image import to_rgb

    if 'save_all' in options:
        options = {**options, 'append_images': [PIL.Image.new(mode, (16, 16), 'red')], 'duration': 50}
    if orientation != 1 and form in ('png', 'jpeg', 'webp', 'tiff'):
        exif = PIL.Image.Exif()
        exif[ORIENTATION] = orientation
        options = {**options, 'exif': exif}
    file = encoded(of_mode(mode), form, **options)
    expected = np.asarray(to_rgb(PIL.Image.open(io.BytesIO(file))))
    found = image(size=16, crop=None).decode(file, NOTHING, None)
    assert np.array_equal(found, expected.transpose(2, 0, 1))


MODES = ['1', 'L', 'LA', 'La', 'P', 'PA', 'RGB', 'RGBA', 'RGBa', 'RGBX', 'CMYK', 'YCbCr', 'HSV', 'I;16', 'I;16B', 'I']


@pytest.mark.parametrize('mode', [*MODES, 'F', 'LAB'])
def test_modes_in_memory_become_rgb_as_in_a_pipeline(mode: str) -> None:
    from mmpipe.functions.image import to_rgb

    picture = PIL.Image.new(mode, (3, 2))
    if mode in ('F', 'LAB'):
        with pytest.raises(BadInputError):
            to_rgb(picture)
        with pytest.raises(DataError, match=f'in mode {mode}'):
            upright_rgb(picture)
    else:
        assert np.array_equal(np.asarray(upright_rgb(picture)), np.asarray(to_rgb(picture)))


def test_a_central_crop_is_that_of_torchvision() -> None:
    resized = tv.Resize(256)(PHOTO)
    expected = np.asarray(tv.CenterCrop(224)(resized)).transpose(2, 0, 1)
    found = image(size=224, crop='center', resize=256).decode(encoded(PHOTO, 'png'), NOTHING, None)
    # Within a pixel of each other: its cut is on whole pixels of the scaled image, ours on those of the stored one.
    assert np.abs(found.astype(int) - expected).mean() < 8
    whole = image(size=224, crop='center').decode(encoded(PHOTO, 'png'), NOTHING, None)
    assert np.array_equal(whole, scaled(np.asarray(PHOTO)[:, 106:533], 224))


@pytest.mark.parametrize(
    ('data', 'message'),
    [
        (b'', 'no bytes'),
        (b'no image', 'cannot be decoded: Pillow says "cannot identify'),
        (encoded(PHOTO, 'png')[:5000], 'cannot be decoded: Pillow says'),
        (encoded(PHOTO)[:5000], 'ends before its picture does: it has 5,000 bytes'),
        (encoded(PIL.Image.fromarray(np.zeros((2, 2), np.float32)), 'tiff'), 'in mode F'),
        (encoded(PIL.Image.fromarray(np.full((2, 2), 70_000, np.int32)), 'tiff'), 'beyond 16 bits'),
    ],
)
def test_bytes_that_are_no_image_are_refused_in_a_sentence(data: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message) as found:
        image(size=8, crop=None).decode(data, NOTHING, None)
    assert str(found.value).endswith('.')


@pytest.mark.parametrize(
    'options',
    [
        {'size': 0}, {'size': 2.5}, {'crop': 'left'}, {'scale': (0, 1)}, {'scale': (0.5, 0.2)}, {'ratio': (2, 1)},
        {'ratio': (0, 1)}, {'scale': (0.1, 0.2, 0.3)}, {'resize': 256}, {'crop': 'center', 'resize': 100},
    ],
)  # fmt: skip
def test_arguments_that_cannot_work_are_refused(options: dict) -> None:
    with pytest.raises(ConfigError, match=r'mm\.decode\.image\('):
        image(**options)


def test_it_keeps_the_contract_of_a_decoder() -> None:
    decoder = image(size=32)
    assert isinstance(decoder, Decoder)
    assert (decoder.shape, decoder.rest, decoder.dtype, decoder.draws) == ((3, 32, 32), (), 'uint8', DRAWS)
    assert image(crop='center').draws == image(crop=None).draws == 0
    again: ImageDecoder = pickle.loads(pickle.dumps(decoder))
    values = np.full(DRAWS, 0.3, np.float32)
    out = np.zeros((3, 32, 32), np.uint8)
    assert again.decode(encoded(PHOTO), values, out) is out
    assert np.array_equal(out, decoder.decode(memoryview(encoded(PHOTO)), values, None))


def test_threads_get_what_one_thread_gets() -> None:
    rng = np.random.default_rng(0)
    decoder = image(size=48)
    files = [encoded(PHOTO.resize((120 + 7 * i, 90 + 5 * i)), ['jpeg', 'png', 'webp'][i % 3]) for i in range(24)]
    values = rng.random((len(files), DRAWS), np.float32)
    alone = [decoder.decode(file, value, None) for file, value in zip(files, values, strict=True)]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda i: decoder.decode(files[i % 24], values[i % 24], None), range(96)))
    assert all(np.array_equal(found, alone[i % 24]) for i, found in enumerate(together))


def test_importing_it_imports_neither_torch_nor_pixeltable() -> None:
    code = 'import mmpipe.decode.images, sys; print({"torch", "pixeltable", "torchvision"} & set(sys.modules))'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == 'set()'
