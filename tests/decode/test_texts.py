from __future__ import annotations

import json
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from mmpipe.decode.decoder import Decoder
from mmpipe.decode.texts import tokens
from mmpipe.errors import ConfigError, DataError, MissingExtraError
from mmpipe.weights import package_file

FILE = package_file('text', 'wordllama', 'tokenizers/l2_supercat_tokenizer_config.json', why='this test')
LLAMA = tokenizers.Tokenizer.from_file(str(FILE))
DOCUMENTS = sorted((Path(__file__).parent.parent.parent / 'examples' / 'data' / 'documents').glob('*.md'))
NOTHING = np.float32([])


def ids(decoder, text) -> list[int]:
    return decoder.decode(text, NOTHING, None).tolist()


@pytest.fixture(scope='module')
def decoders():
    return {most: tokens(LLAMA, max_tokens=most) for most in (None, 1, 7)}


@settings(deadline=None, max_examples=100)
@given(st.text(st.characters(exclude_categories=['Cs']), max_size=200), st.sampled_from([None, 1, 7]))
def test_ids_are_those_of_the_tokenizer_cut_to_the_most(decoders, text, most):
    result = decoders[most].decode(text.encode(), NOTHING, None)
    assert (result.dtype, result.ndim) == (np.int64, 1)
    assert result.tolist() == LLAMA.encode(text).ids[:most]
    assert ids(decoders[most], text) == result.tolist()


def test_documents_come_as_ids_from_a_file_or_an_object():
    from_file, from_object = tokens(str(FILE)), tokens(LLAMA, special=False)
    assert isinstance(from_file, Decoder)
    assert (from_file.shape, from_file.rest, from_file.dtype, from_file.draws) == (None, (), 'int64', 0)
    assert DOCUMENTS
    for path in DOCUMENTS[:20]:
        text = path.read_text()
        assert ids(from_file, path.read_bytes()) == LLAMA.encode(text).ids
        assert ids(from_object, text) == LLAMA.encode(text, add_special_tokens=False).ids
        assert LLAMA.decode(ids(from_object, text)) == text


def small() -> tokenizers.Tokenizer:
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({'[A]': 0, '[Z]': 1, 'a': 2, '?': 3}, unk_token='?'))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.post_processor = tokenizers.processors.TemplateProcessing(
        single='[A] $0 [Z]', special_tokens=[('[A]', 0), ('[Z]', 1)]
    )
    return words


def test_special_tokens_stay_around_a_cut_text():
    words = small()
    assert ids(tokens(words, max_tokens=4), 'a b a a a') == [0, 2, 3, 1]
    assert ids(tokens(words, max_tokens=4, special=False), 'a b a a a') == [2, 3, 2, 2]
    with pytest.raises(ConfigError, match='at least 2 is needed, since the tokenizer adds 2 special tokens'):
        tokens(words, max_tokens=1)
    assert ids(tokens(words, max_tokens=1, special=False), 'a a') == [2]


def test_padding_and_truncation_of_the_given_tokenizer_neither_count_nor_change():
    given_one, text = small(), 'a b a a a'
    given_one.enable_padding(length=50)
    given_one.enable_truncation(3)
    decoder = tokens(given_one, max_tokens=5)
    assert ids(decoder, text) == [0, 2, 3, 2, 1]
    assert ids(tokens(given_one), text) == [0, 2, 3, 2, 2, 2, 1]
    assert len(given_one.encode(text).ids) == 50
    assert given_one.truncation['max_length'] == 3
    given_one.enable_truncation(2)
    assert ids(decoder, text) == [0, 2, 3, 2, 1]


def test_empty_text_and_text_that_is_none():
    decoder = tokens(LLAMA, special=False)
    assert decoder.decode(b'', NOTHING, None).shape == (0,)
    for bad, said in ((b'caf\xe9', 'not UTF-8'), ('a\ud800b', 'cannot take the text')):
        with pytest.raises(DataError, match=said):
            decoder.decode(bad, NOTHING, None)


def test_threads_and_copies_give_the_same():
    decoder = tokens(FILE, max_tokens=100)
    texts = [path.read_bytes() for path in DOCUMENTS[:30]] * 3
    alone = [ids(decoder, text) for text in texts]
    found: dict[int, list[list[int]]] = {}

    def work(number: int) -> None:
        found[number] = [ids(decoder, text) for text in texts]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    copy = pickle.loads(pickle.dumps(decoder))
    found[4] = [ids(copy, text) for text in texts]
    assert list(found.values()) == [alone] * 5


def test_other_threads_run_while_a_long_text_is_cut_into_tokens():
    """Their turns are counted: a tokenizer that holds the lock leaves the other thread none."""
    decoder, text = tokens(LLAMA), 'The quick brown fox. ' * 10_000
    turns, done = 0, threading.Event()

    def other() -> None:
        nonlocal turns
        while not done.wait(0.001):
            turns += 1

    thread = threading.Thread(target=other)
    thread.start()
    before = turns
    decoder.decode(text, NOTHING, None)
    during = turns - before
    done.set()
    thread.join()
    assert during > 2


def test_importing_and_decoding_load_neither_torch_nor_pixeltable():
    script = f"""
import sys
from mmpipe.decode.texts import tokens
print({{'torch', 'pixeltable', 'tokenizers', 'transformers'}} & set(sys.modules))
print(len(tokens({str(FILE)!r}).decode(b'a cat', None, None)), {{'torch', 'pixeltable'}} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ('set()\n3 set()\n', '')


def test_arguments_that_cannot_work_are_refused_at_once(tmp_path, monkeypatch):
    other = tmp_path / 'config.json'
    other.write_text(json.dumps({'model_type': 'bert'}))
    for tokenizer, said in (
        (tmp_path / 'none.json', 'there is no file'),
        (tmp_path, 'there is no file'),
        (other, 'is no tokenizer of the package'),
        (len, 'takes the path'),
    ):
        with pytest.raises(ConfigError, match=said):
            tokens(tokenizer)
    for most in (0, -1, 1.5):
        with pytest.raises(ConfigError, match='max_tokens='):
            tokens(small(), max_tokens=most)
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'mmpipe\[text\]'"):
        tokens(small())
