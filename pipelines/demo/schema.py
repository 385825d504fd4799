"""The demo's tables: drawings with a photo-like rendering, a caption, speech, a clip, a document, facts and labels.

Plain Pixeltable. `pxt schema diff pipelines/demo/schema.py demo` reads this file too.
"""

from __future__ import annotations

import pixeltable as pxt
from pixeltable.functions.video import frame_iterator

from mmpipe.functions import document_chunks, embed_frame, embed_image, embed_passage, embed_text, log_mel, split_of
from pipelines.demo.functions import facts, words

Tables = pxt.model_base()


class Items(Tables, name='items'):
    """A drawing, as it came, and what is computed from each of its media."""

    key = pxt.Column(type=pxt.String, primary_key=True)
    group: pxt.String  # drawings of one series stay in one split
    photo: pxt.Image | None
    caption: pxt.String | None
    speech: pxt.Audio | None
    clip: pxt.Video | None
    document: pxt.Document | None
    width: pxt.Int | None
    height: pxt.Int | None
    png_bytes: pxt.Int | None
    editor: pxt.String | None
    uploaded: pxt.String | None
    voice: pxt.String | None  # of the synthetic speech: it made the audio, so it is no task and no input
    category: pxt.String | None
    keywords: pxt.String | None
    detail: pxt.Float | None  # log10 of the number of path commands in the vector source
    origin: pxt.Json | None  # written by mm.ingest: the row's files, with their digests

    split = split_of(group, val=0.15, test=0.2)
    photo_vector = embed_image(photo, size=160)
    caption_vector = embed_text(caption)
    speech_mel = log_mel(speech, seconds=1.5, n_mels=32)
    facts = facts(width, height, png_bytes, editor, uploaded)
    words = words(keywords)


class Frames(Tables, name='frames', base=Items, iterator=frame_iterator(video=Items.clip, num_frames=2)):
    """Two frames of each clip."""

    vector = embed_frame(frame, size=128)


class Pages(Tables, name='pages', base=Items, iterator=document_chunks(document=Items.document, by='page')):
    """A row per page of each document."""

    vector = embed_passage(text)


class Labelled(
    Tables,
    name='labelled',
    base=Items.where((Items.category != None) | (Items.keywords != None) | (Items.detail != None)),  # noqa: E711
):
    """What training uses: every drawing with at least one label."""
