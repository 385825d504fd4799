from __future__ import annotations

import asyncio

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmpipe.functions import embed_text, models


def embed(*texts):
    return asyncio.run(embed_text.py_fn(list(texts)))


@settings(deadline=None, max_examples=30)
@given(st.lists(st.text(max_size=40), min_size=1, max_size=5))
def test_any_text_has_a_finite_vector_that_does_not_depend_on_its_batch(texts):
    vectors = embed(*texts)
    assert all(v.shape == (256,) and v.dtype == np.float32 and np.isfinite(v).all() for v in vectors)
    for text, vector in zip(texts, vectors, strict=True):
        assert np.array_equal(embed(text)[0], vector)


def test_vectors_are_those_of_the_wordllama_package():
    inference = pytest.importorskip('wordllama.inference')
    model = models.text_model()
    import tokenizers

    # Its class switches padding on in the tokenizer it is given, so it gets its own.
    theirs = inference.WordLlamaInference(model.table, tokenizers.Tokenizer.from_str(model.tokenizer.to_str()))
    texts = ['a red bicycle', 'Straße', '日本語', 'word ' * 9000]
    np.testing.assert_allclose(np.stack(embed(*texts)), theirs.embed(texts), rtol=2e-3, atol=2e-4)


def test_meaning_is_near_and_no_tokens_are_zeros():
    cat, kitten, tax, nothing = embed('a photo of a cat', 'a picture of a kitten', 'income tax law', '')
    assert cat @ kitten > cat @ tax
    assert not nothing.any()
