"""Text out of PDF, Markdown, plain text and HTML, by page or paragraph.

Pixeltable's own `document_splitter` stops an insert at a Markdown heading like `# *Title*` and has no paragraphs for
PDF, so this reads the files itself. Markdown is kept as its source: its marks are part of the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TypedDict

import pixeltable as pxt
import pypdfium2

from mmpipe.errors import BadInputError, ConfigError
from mmpipe.functions.counting import counted
from mmpipe.pdfium import pdfium_lock

UNITS = ('page', 'paragraph')
TEXT_SUFFIXES = ('.md', '.markdown', '.txt', '.text', '.rst', '')
HTML_SUFFIXES = ('.html', '.htm', '.xhtml')

_BLANK_LINES = re.compile(r'\n[^\S\n]*(?:\n[^\S\n]*)+')
# U+FFFE and U+0002 are what PDFium writes for a hyphen at a line's end; U+00AD is the soft hyphen itself.
_LINE_HYPHEN = re.compile('[\ufffe\u0002\u00ad]\n?')
_HTML_BLOCKS = (
    *('title', 'body', 'main', 'section', 'article', 'header', 'footer', 'aside', 'nav', 'div', 'p', 'blockquote'),
    *('pre', 'h1', 'h2', 'h3', 'h4', 'h5', 'h6', 'ul', 'ol', 'li', 'dl', 'dt', 'dd', 'table', 'tr', 'figure'),
)


class DocumentChunk(TypedDict):
    """One row of `document_chunks`.

    Attributes:
        text: the chunk's text; None for a page without any (a scan, a picture).
        page: page number from 1; a form feed starts a new page of a text file, HTML is one page.
    """

    text: str | None
    page: int


@pxt.iterator
@counted
def document_chunks(document: pxt.Document, *, by: str = 'page') -> Iterator[DocumentChunk]:
    """A row per page or paragraph of a document, for a view: `iterator=document_chunks(Items.document, by='page')`.

    Pages come in order and each gives a row, empty ones with a null text, so that page numbers match the document.
    Paragraphs are separated by blank lines and never empty; PDF has no paragraphs of its own, so there they are guessed
    from the layout's line breaks. Pixeltable adds the row's number as `pos`. A null document gives no rows.

    Args:
        document: PDF, Markdown, plain text or HTML.
        by: 'page' or 'paragraph'.

    Yields:
        `text` and `page`; see `DocumentChunk`.

    Raises:
        ConfigError: `by` is neither; raised when the view is declared.
        BadInputError: the file cannot be read as the kind its name says.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile('w', suffix='.md') as file:
    ...     _ = file.write('# *Title*\\n\\nOne.'); file.flush()
    ...     list(document_chunks.decorated_callable(file.name, by='paragraph'))
    [{'text': '# *Title*', 'page': 1}, {'text': 'One.', 'page': 1}]
    """
    for page, text in enumerate(read_pages(document), 1):
        if by == 'page':
            yield {'text': text or None, 'page': page}
        else:
            for paragraph in paragraphs(text):
                yield {'text': paragraph, 'page': page}


@document_chunks.validate
def _(arguments: dict) -> bool:
    by = arguments.get('by', 'page')
    if by not in UNITS:
        raise ConfigError(f"document_chunks(by={by!r}): it is 'page' or 'paragraph'.")
    return True


@pxt.udf
@counted
def document_text(document: pxt.Document) -> str:
    """The whole text of a document, its pages joined by blank lines; '' when it has none.

    Runs on Pixeltable's own thread, since PDFium is not thread-safe.

    Args:
        document: PDF, Markdown, plain text or HTML.

    Raises:
        BadInputError: the file cannot be read as the kind its name says.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile('w', suffix='.txt') as file:
    ...     _ = file.write('one\\r\\ntwo\\f three'); file.flush()
    ...     document_text.py_fn(file.name)
    'one\\ntwo\\n\\nthree'
    """
    return '\n\n'.join(text for text in read_pages(document) if text)


def read_pages(path: str) -> list[str]:
    """Text of each page of a file, tidied: `\\n` line ends, no trailing blanks, words joined over a line-end hyphen.

    Args:
        path: a local file; its suffix says what it is.

    Returns:
        At least one string; '' for a page without text.

    Raises:
        BadInputError: unknown suffix, damaged or password-protected PDF, or text that is not UTF-8 (or UTF-16 with a
            byte order mark).

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile('w', suffix='.html') as file:
    ...     _ = file.write('<p>One <b>bold</b><p>Two'); file.flush()
    ...     read_pages(file.name)
    ['One bold\\n\\nTwo']
    """
    suffix = Path(path).suffix.lower()
    if suffix == '.pdf':
        pages = _pdf_pages(path)
    elif suffix in HTML_SUFFIXES:
        pages = [_html_text(_decode(path))]
    elif suffix in TEXT_SUFFIXES:
        pages = _decode(path).split('\f')
    else:
        raise BadInputError(
            f"{path}: documents of kind '{suffix}' are not read here, only PDF, Markdown, plain text and HTML. "
            f"Convert it, or use Pixeltable's document_splitter."
        )
    return [_tidy(page) for page in pages]


def paragraphs(text: str) -> list[str]:
    """Parts between blank lines, none of them empty.

    >>> paragraphs('one\\nmore\\n \\n\\n two')
    ['one\\nmore', 'two']
    """
    return [part for part in (piece.strip() for piece in _BLANK_LINES.split(text)) if part]


def _pdf_pages(path: str) -> list[str]:
    try:
        with pdfium_lock:
            document = pypdfium2.PdfDocument(path)
            try:
                return [_pdf_page(document, index) for index in range(len(document))] or ['']
            finally:
                document.close()
    except (pypdfium2.PdfiumError, OSError, ValueError) as error:
        raise BadInputError(
            f'{path} cannot be read as PDF: {error}. If it has a password, save it without; else check that it opens.'
        ) from error


def _pdf_page(document: pypdfium2.PdfDocument, index: int) -> str:
    page = document[index]
    textpage = page.get_textpage()
    try:
        return textpage.get_text_bounded()
    finally:
        textpage.close()
        page.close()


def _html_text(source: str) -> str:
    from bs4 import BeautifulSoup

    soup = BeautifulSoup(source, 'html.parser')
    for tag in soup(['script', 'style', 'template', 'noscript']):
        tag.decompose()
    for tag in soup(['br']):
        tag.replace_with('\ue000')  # private use: survives the folding of blanks below
    for tag in soup(list(_HTML_BLOCKS)):
        tag.insert_before('\ue001')
        tag.insert_after('\ue001')
    text = re.sub(r'\s+', ' ', soup.get_text()).replace('\ue000', '\n')
    return '\n\n'.join(part.strip() for part in text.split('\ue001') if part.strip())


def _decode(path: str) -> str:
    content = Path(path).read_bytes()
    encoding = 'utf-16' if content[:2] in (b'\xff\xfe', b'\xfe\xff') else 'utf-8-sig'
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise BadInputError(
            f'{path} is not {encoding.removesuffix("-sig").upper()} text: byte {error.start} is '
            f'0x{content[error.start]:02x}. Convert it: iconv -f <its encoding> -t UTF-8'
        ) from error


def _tidy(text: str) -> str:
    text = _LINE_HYPHEN.sub('', text.replace('\r\n', '\n').replace('\r', '\n'))
    # Postgres stores no NUL, and it means nothing in text.
    return '\n'.join(line.rstrip() for line in text.replace('\0', '').split('\n')).strip()
