"""Parts of JPEG images: decoded down to where the part ends, and at a half, a quarter or an eighth of the size.

The rows of a JPEG follow each other in one stream, so what is above a part has to be read to know it, and what is
below does not. Decoders offer no way to stop, but all of them stop at the height that the header tells: the copy that
is decoded says that the image ends where the part does. Its pixels are those of the whole image, bit by bit.

Where simplejpeg is installed it decodes, in a tenth to a third less time than Pillow, which makes the same pixels: both
contain libjpeg-turbo.
"""

from __future__ import annotations

import functools
import io
import struct
from types import ModuleType
from typing import NamedTuple

import numpy as np
import PIL.Image

from mmpipe.decode.image_boxes import TURNS, Box
from mmpipe.decode.image_resize import memory
from mmpipe.errors import DataError

ORIENTATION = 0x0112  # EXIF 2.3, tag 274
MAX_PIXELS = 178_956_970  # where Pillow speaks of a decompression bomb; a damaged header may announce 65,535 x 65,535
SHRINKS = (8, 4, 2)  # of 1/8, 2/8, ... 16/8, those that Pillow offers, too
# Scaled chroma of the last rows depends on rows below them, by one or two.
_MARGIN = 8
_SMALLEST = 64  # pixels: below it, simplejpeg's choice of a scale by the size it should give has more than one answer
# What libjpeg says of rows that it has decoded all the same, as it does for Pillow: the first also of every cut copy.
_WARNINGS = ('extraneous bytes before marker', 'bad Huffman code', 'premature end of data segment', 'instead of RST')
_FRAMES = range(0xC0, 0xD0)
_OTHER_TABLES = (0xC4, 0xC8, 0xCC)  # in the range of frames by number only
_BASELINE, _EXTENDED, _PROGRESSIVE = 0xC0, 0xC1, 0xC2
_SHORTEST_FRAME = 11  # bytes, of one channel
_END, _SCAN, _APP1 = 0xD9, 0xDA, 0xE1


class Header(NamedTuple):
    """What decoding a part of a JPEG needs to know of it.

    Attributes:
        width: stored, in pixels, before EXIF turns it.
        height: stored, in pixels.
        orientation: EXIF orientation, 1 to 8.
        height_at: where the header has the height; 0 where every row has to be decoded (progressive).
    """

    width: int
    height: int
    orientation: int
    height_at: int


def backend() -> str:
    """What decodes parts of JPEG images here: 'simplejpeg', or 'pillow' where that is not installed.

    >>> backend() in ('simplejpeg', 'pillow')
    True
    """
    return 'pillow' if _simplejpeg() is None else 'simplejpeg'


def header(data: bytes) -> Header | None:
    """Read what comes before the pixels.

    Args:
        data: a whole file.

    Returns:
        None for what is left to Pillow: other formats, CMYK, 12 bits, arithmetic coding, or a damaged header.

    Raises:
        DataError: the picture has no end, or more than 178,956,970 pixels.

    >>> file = io.BytesIO()
    >>> PIL.Image.new('RGB', (40, 30)).save(file, 'jpeg')
    >>> header(file.getvalue())
    Header(width=40, height=30, orientation=1, height_at=163)
    """
    if data[:3] != b'\xff\xd8\xff':
        return None
    at, turned, frame = 2, False, None
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # filling
            at += 1
            continue
        length = int.from_bytes(data[at + 2 : at + 4])
        if marker == _SCAN:
            return None if frame is None else _checked(data, at, frame, turned)
        if marker in _FRAMES and marker not in _OTHER_TABLES:
            if frame is not None or length < _SHORTEST_FRAME or marker not in (_BASELINE, _EXTENDED, _PROGRESSIVE):
                return None
            frame = at
        elif marker == _APP1:
            turned = turned or _may_turn(data[at + 4 : at + 2 + length])
        elif marker < 0xC0 or 0xD0 <= marker <= _END or length < 2:
            return None
        at += 2 + length
    return None


def part(data: bytes, head: Header, box: Box, shrink: int = 1, *, using: str | None = None) -> np.ndarray:
    """Decode a part of a JPEG.

    Args:
        data: the file that `head` is of.
        head: from `header`.
        box: the part, in pixels of the stored image when it is `shrink` times smaller (rounded up).
        shrink: 1, 2, 4 or 8; see `shrink_for`.
        using: 'simplejpeg' or 'pillow'; None for `backend()`.

    Returns:
        uint8 `[box.height, box.width, 3]`, red, green, blue: a view of memory that this thread uses again for its next
        image.

    Raises:
        Exception: whatever Pillow raises for damaged bytes.

    >>> file = io.BytesIO()
    >>> PIL.Image.new('RGB', (40, 30), 'white').save(file, 'jpeg')
    >>> data = file.getvalue()
    >>> part(data, header(data), Box(10, 5, 3, 2)).tolist()
    [[[255, 255, 255], [255, 255, 255], [255, 255, 255]], [[255, 255, 255], [255, 255, 255], [255, 255, 255]]]
    """
    rows = min(head.height, (box.top + box.height) * shrink + _MARGIN * shrink)
    cut: bytes | bytearray = data
    if head.height_at and rows < head.height:
        cut = bytearray(data)
        cut[head.height_at : head.height_at + 2] = rows.to_bytes(2)
    else:
        rows = head.height
    library = _simplejpeg() if using in (None, 'simplejpeg') else None
    pixels = None if library is None else _by_simplejpeg(library, cut, head._replace(height=rows), shrink)
    if pixels is not None:
        return pixels[box.top : box.top + box.height, box.left : box.left + box.width]
    return _by_pillow(cut, head.width, rows, box, shrink)


def shrink_for(head: Header, box: Box, size: int) -> int:
    """How many times smaller an image can be decoded, with the part still of at least `size` x `size` pixels.

    >>> head = Header(1600, 1200, 1, 0)
    >>> [shrink_for(head, Box(0, 0, side, side), 224) for side in (300, 448, 1200)]
    [1, 2, 4]
    """
    if min(head.width, head.height) < _SMALLEST:
        return 1
    return next((shrink for shrink in SHRINKS if min(box.width, box.height) // shrink >= size), 1)


def _by_simplejpeg(library: ModuleType, data: bytes | bytearray, head: Header, shrink: int) -> np.ndarray | None:
    """The decoded rows; None when it refuses them, and Pillow shall say why, or do it."""
    small = -(-head.height // shrink), -(-head.width // shrink)
    place = memory(small[0] * small[1] * 3)
    try:
        found = library.decode_jpeg(
            data, 'rgb', buffer=place,
            min_height=small[0] if shrink > 1 else 0, min_width=small[1] if shrink > 1 else 0,
        )  # fmt: skip
    except ValueError as error:
        # With strict=False it would take an error after a warning for a warning, and rows stay undecoded.
        if not head.height_at or not any(warning in str(error) for warning in _WARNINGS):
            return None
    else:
        if found.shape != (*small, 3):
            return None
    return place.reshape(*small, 3)


def _by_pillow(data: bytes | bytearray, width: int, height: int, box: Box, shrink: int) -> np.ndarray:
    with PIL.Image.open(io.BytesIO(data), formats=['JPEG']) as image:
        if shrink > 1:
            image.draft(None, (width // shrink, height // shrink))
        if image.size != (-(-width // shrink), -(-height // shrink)):
            raise DataError(f'the JPEG has two headers that differ, or none that can be read. {NEXT}')
        found = image.crop((box.left, box.top, box.left + box.width, box.top + box.height))
    pixels = memory(box.height * box.width * 3).reshape(box.height, box.width, 3)
    pixels[:] = np.asarray(found if found.mode == 'RGB' else found.convert('RGB'))
    return pixels


def _checked(data: bytes, scan: int, frame: int, turned: bool) -> Header | None:
    """The header of 8-bit grey or colour; None for other kinds."""
    bits, height, width, channels = struct.unpack_from('>BHHB', data, frame + 4)
    if bits != 8 or channels not in (1, 3) or not height or not width:
        return None
    if width * height > MAX_PIXELS:
        raise DataError(f'the JPEG says that it has {width:,} x {height:,} pixels; at most {MAX_PIXELS:,} are read.')
    if data.rfind(bytes([0xFF, _END]), scan) < 0:
        raise DataError(f'the JPEG ends before its picture does: it has {len(data):,} bytes. {NEXT}')
    # Rows are in order in one scan with all channels; in several, one channel or one digit follows the other.
    in_order = data[frame + 1] != _PROGRESSIVE and data[scan + 4] == channels
    return Header(width, height, _orientation(data) if turned else 1, frame + 5 if in_order else 0)


def _may_turn(segment: bytes) -> bool:
    """Whether an APP1 segment can hold an orientation: EXIF in either byte order, or XMP."""
    if segment[:4] == b'Exif':
        return b'\x01\x12' in segment or b'\x12\x01' in segment
    return b'Orientation' in segment


def _orientation(data: bytes) -> int:
    with PIL.Image.open(io.BytesIO(data), formats=['JPEG']) as image:
        found = image.getexif().get(ORIENTATION, 1)
    return found if found in TURNS else 1


@functools.cache
def _simplejpeg() -> ModuleType | None:
    try:
        import simplejpeg
    except ImportError:
        return None
    return simplejpeg


NEXT = 'Check that it opens, encode it again, or leave it out.'
