from __future__ import annotations

import asyncio
import io

import numpy as np
import PIL.Image
import pixeltable as pxt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_sample_image

from mmpipe import weights
from mmpipe.errors import BadInputError, ConfigError
from mmpipe.functions import embed_image, pixels
from mmpipe.functions.image import square, square_array, to_rgb

from . import media

MODES = ['1', 'L', 'LA', 'La', 'P', 'PA', 'RGB', 'RGBA', 'RGBa', 'RGBX', 'CMYK', 'YCbCr', 'HSV', 'I;16', 'I;16B', 'I']


def blank(mode, size=(6, 4)):
    return PIL.Image.new(mode, size)


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(MODES), st.integers(1, 40), st.integers(1, 40), st.integers(1, 24), st.sampled_from(['crop', 'pad'])
)
def test_every_mode_and_shape_becomes_a_square(mode, width, height, size, fit):
    array = square_array(blank(mode, (width, height)), size, fit)
    assert array.shape == (3, size, size)
    assert array.dtype == np.uint8
    assert array.flags.c_contiguous


@given(st.integers(0, 255), st.sampled_from(['L', 'I;16', 'I']))
def test_grey_of_any_depth_keeps_its_tone(value, mode):
    scale = 1 if mode == 'L' else 257  # 255 * 257 = 65535
    image = PIL.Image.fromarray(np.full((2, 2), value * scale, {'L': np.uint8, 'I;16': np.uint16, 'I': np.int32}[mode]))
    assert image.mode == mode
    assert to_rgb(image).getpixel((0, 0)) == (value,) * 3


def reopened(image, format, **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return PIL.Image.open(buffer)


@pytest.mark.parametrize(
    ('image', 'expected'),
    [
        (PIL.Image.new('RGBA', (2, 2), (255, 0, 0, 0)), (255, 255, 255)),
        (PIL.Image.new('RGBA', (2, 2), (255, 0, 0, 255)), (255, 0, 0)),
        (PIL.Image.new('LA', (2, 2), (0, 128)), (127, 127, 127)),
        (PIL.Image.new('CMYK', (2, 2), (0, 255, 255, 0)), (255, 0, 0)),
        (PIL.Image.new('1', (2, 2), 1), (255, 255, 255)),
    ],
)
def test_colours_and_transparency_on_white(image, expected):
    assert to_rgb(image).getpixel((0, 0)) == expected


def test_transparent_colours_of_png_and_gif_become_white():
    palette = PIL.Image.new('P', (2, 2), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    assert to_rgb(reopened(palette, 'PNG', transparency=1)).getpixel((0, 0)) == (255, 255, 255)
    assert to_rgb(reopened(palette, 'GIF', transparency=1)).getpixel((0, 0)) == (255, 255, 255)
    assert to_rgb(reopened(palette, 'PNG')).getpixel((0, 0)) == (10, 20, 30)
    rgb = PIL.Image.new('RGB', (2, 2), (1, 2, 3))
    assert to_rgb(reopened(rgb, 'PNG', transparency=(1, 2, 3))).getpixel((0, 0)) == (255, 255, 255)
    grey = PIL.Image.new('L', (2, 2), 9)
    assert to_rgb(reopened(grey, 'PNG', transparency=9)).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize('orientation', range(1, 9))
def test_exif_orientation_is_applied(orientation):
    upright = PIL.Image.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 6) * 10).convert('RGB')
    undo = {
        2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
        3: PIL.Image.Transpose.ROTATE_180,
        4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
        5: PIL.Image.Transpose.TRANSPOSE,
        6: PIL.Image.Transpose.ROTATE_90,
        7: PIL.Image.Transpose.TRANSVERSE,
        8: PIL.Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation > 1 else upright
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    result = to_rgb(reopened(stored, 'PNG', exif=exif))
    assert np.array_equal(np.asarray(result), np.asarray(upright))


def test_images_without_a_known_range_are_refused_by_name(tmp_path):
    PIL.Image.fromarray(np.zeros((2, 2), np.float32)).save(tmp_path / 'depth.tif')
    with pytest.raises(BadInputError, match=r'depth\.tif is in mode F'):
        to_rgb(PIL.Image.open(tmp_path / 'depth.tif'))
    with pytest.raises(BadInputError, match='beyond 16 bits'):
        to_rgb(PIL.Image.fromarray(np.full((2, 2), 70000, np.int32)))
    with pytest.raises(BadInputError, match='mode LAB'):
        to_rgb(PIL.Image.new('LAB', (2, 2)))
    with pytest.raises(BadInputError, match='0 x 4 pixels'):
        square(PIL.Image.new('RGB', (0, 4)), 8)
    with pytest.raises(ConfigError, match='size=0'):
        square(PIL.Image.new('RGB', (4, 4)), 0)


def test_crop_keeps_the_centre_and_pad_keeps_everything():
    stripes = np.zeros((10, 30, 3), np.uint8)
    stripes[:, :10, 0] = stripes[:, 10:20, 1] = stripes[:, 20:, 2] = 255
    image = PIL.Image.fromarray(stripes)
    assert (square_array(image, 10) == np.array([0, 255, 0])[:, None, None]).all()
    padded = square_array(image, 30, 'pad')
    assert (padded[:, :10] == 255).all()
    assert (padded[:, 20:] == 255).all()
    assert np.array_equal(padded[:, 10:20], stripes.transpose(2, 0, 1))
    assert square_array(PIL.Image.new('RGB', (1, 4000), 'red'), 8, 'pad').shape == (3, 8, 8)


def test_pixels_are_exact_where_nothing_is_scaled(tmp_path):
    path = media.photo(tmp_path / 'a.png', (16, 16))
    array = asyncio.run(pixels.py_fn(PIL.Image.open(path), size=16))
    assert np.array_equal(array, np.asarray(PIL.Image.open(path)).transpose(2, 0, 1))


def test_embedding_is_the_backbone_of_the_classifier_that_names_the_photo():
    import timm
    import torch

    image = PIL.Image.fromarray(load_sample_image('china.jpg'))
    embedding = asyncio.run(embed_image.py_fn(image, size=224))
    assert embedding.shape == (1280,)
    assert embedding.dtype == np.float32
    model = timm.create_model('tf_efficientnet_lite0')
    model.load_state_dict(weights.load('tf_efficientnet_lite0')[0], strict=True)
    with torch.inference_mode():
        logits = model.eval().classifier(torch.from_numpy(embedding))
    assert logits.argmax() == 698  # ImageNet-1k: palace


def test_one_bad_image_costs_its_own_cell_only(directory, tmp_path):
    table = pxt.create_table(f'{directory}/t', {'n': pxt.Int, 'image': pxt.Image})
    table.add_computed_column(square=pixels(table.image, size=8), on_error='ignore')
    table.add_computed_column(vector=embed_image(table.image, size=32), on_error='ignore')
    PIL.Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / 'float.tif')
    paths = [media.photo(tmp_path / f'{n}.png', seed=n) for n in range(5)]
    paths[2] = tmp_path / 'float.tif'
    table.insert([{'n': n, 'image': str(path)} for n, path in enumerate(paths)], on_error='ignore')
    rows = table.order_by(table.n).select(table.square, table.vector, table.vector.errormsg).collect()
    assert [row['vector'] is None for row in rows] == [False, False, True, False, False]
    assert [row['square'] is None for row in rows] == [False, False, True, False, False]
    assert 'float.tif is in mode F' in rows[2]['vector_errormsg']
