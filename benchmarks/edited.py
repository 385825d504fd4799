"""Tables and functions of `incremental.py`, which raises EDITION in copies of this file, as a user edits a function."""
# ruff: noqa: F821  (Pixeltable puts column names into the scope of a table class)

from __future__ import annotations

import numpy as np
import pixeltable as pxt

from mmpipe.functions import counted, embed_image, log_mel, models, pixels, split_of
from mmpipe.functions.audio import read_log_mel
from mmpipe.functions.image import image_vector, square_array
from mmpipe.functions.parallel import in_pool

EDITION = 1

EDGE = 160  # pixels of an image before its backbone
SECONDS = 10.0  # of sound
BANDS = 64
SQUARE = 224  # pixels of a photo scaled down


@pxt.udf
@counted
async def tones(photo: pxt.Image) -> pxt.Array[(6,), np.float32]:
    """Mean and deviation of each channel."""
    return await in_pool(_tones, photo)


def _tones(photo) -> np.ndarray:
    channels = np.asarray(photo, np.float32).reshape(-1, 3)
    return EDITION * np.concatenate([channels.mean(axis=0), channels.std(axis=0)])


@pxt.udf
@counted
async def vector(photo: pxt.Image) -> pxt.Array[(1280,), np.float32]:
    """What `embed_image` computes, in a function of one's own."""
    return EDITION * await image_vector(photo, models.DEFAULT_IMAGE_MODEL, EDGE, 'crop')


@pxt.udf
def serial_log_mel(sound: pxt.Audio) -> pxt.Array[(BANDS, round(100 * SECONDS)), np.float32]:
    """`log_mel` as a plain function, which Pixeltable calls cell after cell on one thread."""
    return read_log_mel(sound, SECONDS, BANDS)


@pxt.udf
def serial_pixels(photo: pxt.Image) -> pxt.Array[(3, SQUARE, SQUARE), np.uint8]:
    """`pixels` as a plain function."""
    return square_array(photo, SQUARE)


def threaded_log_mel(sound):
    """A column of `log_mel`."""
    return log_mel(sound, seconds=SECONDS, n_mels=BANDS)


def threaded_pixels(photo):
    """A column of `pixels`."""
    return pixels(photo, size=SQUARE)


Tables = pxt.model_base()
Bare = pxt.model_base()
Grown = pxt.model_base()
Whole = pxt.model_base()


class Tiles(Tables, name='tiles'):
    key = pxt.Column(type=pxt.String, primary_key=True)
    photo: pxt.Image
    label: pxt.String
    origin: pxt.Json | None
    split = split_of(key)
    feature = tones(photo)


class BarePhotos(Bare, name='photos'):
    key = pxt.Column(type=pxt.String, primary_key=True)
    photo: pxt.Image
    origin: pxt.Json | None


class GrownPhotos(Grown, name='photos'):
    key = pxt.Column(type=pxt.String, primary_key=True)
    photo: pxt.Image
    origin: pxt.Json | None
    vector = vector(photo)


class WholePhotos(Whole, name='photos'):
    key = pxt.Column(type=pxt.String, primary_key=True)
    photo: pxt.Image
    origin: pxt.Json | None
    vector = embed_image(photo, size=EDGE)
