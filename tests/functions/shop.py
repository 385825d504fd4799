"""A small pipeline over every function, declared as users do: columns are named without their class."""
# ruff: noqa: F821  (Pixeltable puts column names in scope)

from __future__ import annotations

import pixeltable as pxt
from pixeltable.functions.video import frame_iterator

from mmpipe.functions import (
    document_chunks,
    document_text,
    embed_image,
    embed_text,
    log_mel,
    parse_number,
    pixels,
    split_of,
    waveform,
)


def products(directory: str) -> None:
    """Create items of all modalities, and views of their frames and pages; a class binds to one directory only."""
    Tables = pxt.model_base()

    class Items(Tables, name='items'):
        sku: pxt.String
        photo: pxt.Image | None
        speech: pxt.Audio | None
        video: pxt.Video | None
        document: pxt.Document | None
        title: pxt.String | None
        price: pxt.String | None
        split = split_of(sku)
        square = pixels(photo, size=16)
        embedding = embed_image(photo, size=32)
        samples = waveform(speech)
        mel = log_mel(speech, seconds=0.5)
        words = embed_text(title)
        body = document_text(document)
        amount = parse_number(price)

    class Frames(Tables, name='frames', base=Items, iterator=frame_iterator(video=Items.video, fps=1)):
        vector = embed_image(frame, size=32)

    class Pages(Tables, name='pages', base=Items, iterator=document_chunks(Items.document, by='page')):
        vector = embed_text(text)

    Tables.create_all(directory)
