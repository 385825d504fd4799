"""A table per modality with the demo's functions, so that each can be timed by itself."""
# ruff: noqa: F821  (Pixeltable puts column names into the scope of a table class)

from __future__ import annotations

import pixeltable as pxt
from pixeltable.functions.video import frame_iterator

from mmpipe.functions import document_chunks, embed_frame, embed_image, embed_passage, embed_text, log_mel

Tables = pxt.model_base()


class Photos(Tables, name='photos'):
    key = pxt.Column(type=pxt.String, primary_key=True)
    photo: pxt.Image
    origin: pxt.Json | None
    vector = embed_image(photo, size=160)


class Captions(Tables, name='captions'):
    key = pxt.Column(type=pxt.String, primary_key=True)
    caption: pxt.String
    origin: pxt.Json | None
    vector = embed_text(caption)


class Speech(Tables, name='speech'):
    key = pxt.Column(type=pxt.String, primary_key=True)
    speech: pxt.Audio
    origin: pxt.Json | None
    mel = log_mel(speech, seconds=1.5, n_mels=32)


class Clips(Tables, name='clips'):
    key = pxt.Column(type=pxt.String, primary_key=True)
    clip: pxt.Video
    origin: pxt.Json | None


class Frames(Tables, name='frames', base=Clips, iterator=frame_iterator(video=Clips.clip, num_frames=2)):
    vector = embed_frame(frame, size=128)


class Documents(Tables, name='documents'):
    key = pxt.Column(type=pxt.String, primary_key=True)
    document: pxt.Document
    origin: pxt.Json | None


class Pages(Tables, name='pages', base=Documents, iterator=document_chunks(document=Documents.document, by='page')):
    vector = embed_passage(text)


COLUMNS = {'photo': Photos, 'caption': Captions, 'speech': Speech, 'clip': Clips, 'document': Documents}
