"""Tux Paint's stamps: a picture, a caption, the caption spoken in one of eight languages, and labels.

Plain Pixeltable. `pxt schema diff pipelines/stamps/schema.py stamps` reads this file too.
"""

from __future__ import annotations

import pixeltable as pxt

from mmpipe.functions import embed_image, embed_text, log_mel, split_of
from pipelines.stamps.functions import bands, rules, series, unnamed

Tables = pxt.model_base()


class Stamps(Tables, name='stamps'):
    """One row per stamp."""

    key = pxt.Column(type=pxt.String, primary_key=True)
    photo: pxt.Image | None  # null for the stamps that are SVG only
    caption: pxt.String | None  # the English one
    speech: pxt.Audio | None
    dat: pxt.String | None  # text of the .dat file; null where the author wrote none
    category: pxt.String
    kind: pxt.String | None
    language: pxt.String | None
    origin: pxt.Json | None  # written by mm.ingest: the row's files, with their digests

    series = series(key)
    split = split_of(series, val=0.15, test=0.15, seed=6)  # a seed that leaves the 158 letters in train
    photo_vector = embed_image(photo, size=160, fit='pad')
    caption_vector = embed_text(unnamed(caption))
    speech_mel = log_mel(speech, seconds=2.0, n_mels=40)
    speech_bands = bands(speech_mel)
    rules = rules(dat)
