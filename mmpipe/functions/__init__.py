"""Functions for computed columns: what Pixeltable calls per cell, in threads, models in batches, and counted.

    image     pixels, embed_image          uint8 squares; vectors of a pretrained timm backbone
    video     embed_frame, mean_pool       vectors of frames (Pixeltable's frame_iterator), and one per clip from them
    audio     waveform, log_mel            16 kHz mono; 64 mel bands x 100 frames a second
    document  document_chunks, document_text
    text      embed_text, embed_passage    static vectors of texts, and of a document's chunks; no torch
    tabular   parse_number, ratio, log1p, hash_bucket
    predict   predict, predict_vector      what a run's model says of a row; see `mmpipe.functions.predictions`
    split     split_of                     train, val or test from a stable hash of the group key

Importing this imports Pixeltable, and no torch. A null in gives a null out, and is not counted.
"""

from mmpipe.home import configure_pixeltable

# Before the first Pixeltable import: schemas import this package first, and Pixeltable reads its home only once.
configure_pixeltable()

from mmpipe.functions.audio import log_mel, waveform
from mmpipe.functions.caching import cached
from mmpipe.functions.counting import counted, counts, reset
from mmpipe.functions.document import document_chunks, document_text
from mmpipe.functions.image import embed_image, pixels
from mmpipe.functions.predictions import predict, predict_vector
from mmpipe.functions.split import split_of
from mmpipe.functions.tabular import hash_bucket, log1p, parse_number, ratio
from mmpipe.functions.text import embed_passage, embed_text
from mmpipe.functions.video import embed_frame, mean_pool

__all__ = [
    'cached',
    'counted',
    'counts',
    'document_chunks',
    'document_text',
    'embed_frame',
    'embed_image',
    'embed_passage',
    'embed_text',
    'hash_bucket',
    'log1p',
    'log_mel',
    'mean_pool',
    'parse_number',
    'pixels',
    'predict',
    'predict_vector',
    'ratio',
    'reset',
    'split_of',
    'waveform',
]
