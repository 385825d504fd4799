"""Texts into vectors, without torch and without a download."""

from __future__ import annotations

import numpy as np
import pixeltable as pxt
import pixeltable.type_system as ts
from pixeltable.func import Batch

from mmpipe.errors import ModelError
from mmpipe.fingerprints import loads
from mmpipe.functions import models
from mmpipe.functions.batching import BATCH
from mmpipe.functions.counting import counted
from mmpipe.functions.parallel import in_pool
from mmpipe.functions.types import array_type


@pxt.udf(batch_size=BATCH)
@counted
@loads(models.text_files)
async def embed_text(
    text: Batch[str], *, model: str = models.DEFAULT_TEXT_MODEL
) -> Batch[pxt.Array[(None,), np.float32]]:
    """Static text vectors: the mean of the token vectors, whatever the length of the text.

    WordLlama (github.com/dleemiller/WordLlama, model l2_supercat): token embeddings distilled from large language
    models, 256 wide, read from its package. Order of words does not matter to it; it knows mostly English.

    Args:
        text: any string.
        model: 'wordllama'.

    Returns:
        float32 (256,), not normalised; zeros for a text without tokens.

    Raises:
        ModelError: there is no such model; raised when the column is declared.
        MissingExtraError: wordllama or tokenizers is not installed.

    >>> import asyncio
    >>> cat, kitten, tax = asyncio.run(embed_text.py_fn(['a cat', 'a kitten', 'income tax']))
    >>> cat.shape, bool(cat @ kitten > cat @ tax)
    ((256,), True)
    """
    return list(await in_pool(models.embed_texts, model, text))


@pxt.udf(batch_size=BATCH)
@counted
@loads(models.text_files)
async def embed_passage(
    text: Batch[str], *, model: str = models.DEFAULT_TEXT_MODEL
) -> Batch[pxt.Array[(None,), np.float32]]:
    """`embed_text` for the pages or paragraphs of a document, under a name of its own, to count by themselves.

    Args:
        text: text of a chunk, as `document_chunks` gives it.
        model: 'wordllama'.

    Returns:
        float32 (256,), as `embed_text`.

    Raises:
        ModelError: there is no such model; raised when the column is declared.
        MissingExtraError: wordllama or tokenizers is not installed.

    >>> import asyncio
    >>> asyncio.run(embed_passage.py_fn(['Page one.']))[0].shape
    (256,)
    """
    return list(await in_pool(models.embed_texts, model, text))


@embed_text.conditional_return_type
def _(model: str) -> ts.ColumnType:
    return _vector_type(model)


@embed_passage.conditional_return_type
def _(model: str) -> ts.ColumnType:
    return _vector_type(model)


def _vector_type(model: str) -> ts.ColumnType:
    if model not in models.TEXT_FEATURES:
        raise ModelError(f"there is no text model '{model}'; there is {', '.join(models.TEXT_FEATURES)}.")
    return array_type((models.TEXT_FEATURES[model],), 'float32')
