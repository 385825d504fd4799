from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmpipe.errors import BadInputError
from mmpipe.functions.document import document_chunks, document_text, paragraphs, read_pages

from . import media


def chunks(path, by='page'):
    return [(row['page'], row['text']) for row in document_chunks.decorated_callable(str(path), by=by)]


def written(path, text, encoding='utf-8'):
    path.write_bytes(text.encode(encoding))
    return path


@given(st.text())
def test_paragraphs_keep_every_word_and_none_is_blank(text):
    parts = paragraphs(text)
    assert ' '.join(parts).split() == text.split()
    assert all(part == part.strip() != '' for part in parts)
    assert paragraphs('\n\n'.join(parts)) == parts


def test_pdf_pages_are_numbered_from_one_and_empty_ones_stay(tmp_path):
    path = media.pdf(tmp_path / 'a.pdf', ['Title\nline two', '', 'Café 5 §'])
    assert chunks(path) == [(1, 'Title\nline two'), (2, None), (3, 'Café 5 §')]
    assert chunks(path, 'paragraph') == [(1, 'Title\nline two'), (3, 'Café 5 §')]
    assert document_text.py_fn(str(path)) == 'Title\nline two\n\nCafé 5 §'


def test_a_pdf_of_pictures_has_pages_and_no_text(tmp_path):
    path = media.pdf(tmp_path / 'scan.pdf', ['', ''])
    assert chunks(path) == [(1, None), (2, None)]
    assert chunks(path, 'paragraph') == []
    assert document_text.py_fn(str(path)) == ''


@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16'])
def test_text_in_unicode_with_any_line_ends(tmp_path, encoding):
    path = written(tmp_path / 'a.txt', 'Ünï – 日本\r\nzwei  \r\rdrei\fSeite 2', encoding)
    assert read_pages(str(path)) == ['Ünï – 日本\nzwei\n\ndrei', 'Seite 2']
    assert chunks(path, 'paragraph') == [(1, 'Ünï – 日本\nzwei'), (1, 'drei'), (2, 'Seite 2')]


def test_markdown_is_its_source(tmp_path):
    path = written(tmp_path / 'a.md', '# *Title*\n\n- one\n- two\n\n```\ncode\n```\n')
    assert chunks(path, 'paragraph') == [(1, '# *Title*'), (1, '- one\n- two'), (1, '```\ncode\n```')]


def test_html_without_its_scripts(tmp_path):
    source = """<html><head><title>T</title><style>p {}</style><script>var x;</script></head><body>
        <h1>Head &amp; shoulders</h1><p>One
        line<br>next <b>bold</b></p><ul><li>a</li><li>b</li></ul>tail</body></html>"""
    path = written(tmp_path / 'a.html', source)
    expected = ['T', 'Head & shoulders', 'One line\nnext bold', 'a', 'b', 'tail']
    assert [text for _, text in chunks(path, 'paragraph')] == expected


def test_an_empty_file_is_one_page_without_text(tmp_path):
    assert chunks(written(tmp_path / 'a.md', '')) == [(1, None)]
    assert chunks(written(tmp_path / 'a.md', ''), 'paragraph') == []


def test_what_cannot_be_read_is_named(tmp_path):
    whole = media.pdf(tmp_path / 'whole.pdf', ['x']).read_bytes()
    for name, content in (('cut.pdf', whole[:100]), ('empty.pdf', b''), ('text.pdf', b'hello')):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BadInputError, match=f'{name} cannot be read as PDF'):
            read_pages(str(tmp_path / name))
    (tmp_path / 'latin.txt').write_bytes('Grüße'.encode('latin-1'))
    with pytest.raises(BadInputError, match=r'latin.txt is not UTF-8 text: byte 2 is 0xfc'):
        read_pages(str(tmp_path / 'latin.txt'))
    with pytest.raises(BadInputError, match=r"kind '\.docx'"):
        read_pages(str(tmp_path / 'a.docx'))


def test_threads_may_read_pdfs_at_the_same_time(tmp_path):
    path = str(media.pdf(tmp_path / 'a.pdf', [f'page {n}' for n in range(20)]))
    found = []
    threads = [threading.Thread(target=lambda: found.append(read_pages(path))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[f'page {n}' for n in range(20)]] * 4
