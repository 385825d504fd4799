"""Decoders: from the stored bytes of a medium to the array of a batch, on the CPU, in threads.

image      JPEG, PNG, WebP and what Pillow reads: uint8 [3, size, size]; of a JPEG only the region that is wanted
audio      FLAC, WAV, OGG, MP3 and what FFmpeg reads: float32 samples at one rate
video      frames at even times, in one pass: uint8 [T, 3, size, size]
tokens     text: int64 token ids

The contract (`mmpipe.decode.decoder.Decoder`) is small, and any object that keeps it decodes a `binary` field:

    mm.DataLoader(rows, batch_size=64, decode={'photo': mm.decode.image(size=224, crop='random')})

Nothing here imports torch or Pixeltable, so that a worker process starts quickly; each decoder and its library is
imported on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_WHERE = {'Decoder': 'decoder', 'audio': 'sounds', 'image': 'images', 'tokens': 'texts', 'video': 'videos'}

__all__ = ['Decoder', 'audio', 'image', 'tokens', 'video']

if TYPE_CHECKING:
    from mmpipe.decode.decoder import Decoder as Decoder
    from mmpipe.decode.images import image as image
    from mmpipe.decode.sounds import audio as audio
    from mmpipe.decode.texts import tokens as tokens
    from mmpipe.decode.videos import video as video


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f'module mmpipe.decode has no attribute {name!r}')
    value = getattr(importlib.import_module(f'mmpipe.decode.{_WHERE[name]}'), name)
    globals()[name] = value
    return value
