"""Open a medium before it is inserted: Pixeltable loses the path of a corrupt one, and a missing one stops it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import warnings
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from mmpipe.errors import BadInputError, MissingExtraError, require
from mmpipe.pdfium import pdfium_lock
from mmpipe.store.media import media_refusal

MAX_PIXELS = (
    178_956_970  # twice PIL.Image.MAX_IMAGE_PIXELS (89,478,485): where PIL itself raises DecompressionBombError
)
# Lists of files (`ffconcat`, m3u8) are formats to FFmpeg: they would read others than the one that was found.
ONLY_THIS_FILE = {'protocol_whitelist': 'none'}
MAX_DECODED_AUDIO_S = 6 * 3600
IMAGE_MODES = ('1', 'L', 'LA', 'P', 'PA', 'RGB', 'RGBA', 'CMYK', 'YCbCr', 'HSV', 'I;16', 'I;16B', 'I;16L', 'I')


def check(path: Path, kind: str) -> None:
    """Decode a file as far as its kind needs to be sure of it.

    Args:
        path: the file.
        kind: image, video, audio or document.

    Raises:
        BadInputError: missing, empty, truncated, of another type, or a decompression bomb; the message says which.
        MissingExtraError: Pixeltable needs a package for this kind of file that is not installed.
    """
    if not path.exists():
        raise BadInputError('does not exist: add the file, or correct the path')
    if not path.is_file():
        raise BadInputError('is not a file: name a file')
    if path.stat().st_size == 0:
        raise BadInputError('is empty (0 bytes): replace the file')
    checks: dict[str, Callable[[Path], None]] = {
        'image': _check_image, 'video': _check_video, 'audio': _check_audio, 'document': _check_document,
    }  # fmt: skip
    try:
        checks[kind](path)
    except (BadInputError, MissingExtraError):
        raise
    except Exception as error:  # decoders raise anything on damaged bytes: KeyError, struct.error, ...
        raise BadInputError(f'is damaged ({type(error).__name__}: {error}): replace it') from error
    # Images and sound were decoded here more strictly; of the others Pixeltable takes less than FFmpeg and PDFium do.
    refusal = media_refusal(path, kind) if kind in ('video', 'document') else ''
    if refusal:
        hint = ' (fewer than two frames decode?)' if kind == 'video' else ''
        raise BadInputError(f'is no {kind} that Pixeltable takes{hint}: {refusal}. Convert or replace it')


def _check_image(path: Path) -> None:
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', Image.DecompressionBombWarning)
            with Image.open(path) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise BadInputError(
                        f'is a decompression bomb: {image.width}x{image.height} pixels, and at most {MAX_PIXELS:,} '
                        f'are read. Scale it down'
                    )
                if image.mode not in IMAGE_MODES:
                    raise BadInputError(
                        f'has image mode {image.mode}, whose value range is unknown: save it as 8-bit or 16-bit first'
                    )
                image.load()
    except UnidentifiedImageError:
        raise BadInputError('is not an image of a format that Pillow reads: replace or convert it') from None
    except Image.DecompressionBombError:
        raise BadInputError(f'is a decompression bomb: over {MAX_PIXELS:,} pixels. Scale it down') from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise BadInputError(f'is truncated or damaged ({error}): replace it') from None


def _check_video(path: Path) -> None:
    import av

    try:
        with path.open('rb') as file, av.open(file, 'r', options=ONLY_THIS_FILE) as container:
            if not container.streams.video or container.streams.video[0].codec_context is None:
                raise BadInputError('holds no video stream: replace it')
            stream = container.streams.video[0]
            packets = decoded = 0
            starts: list[float] = []
            end = 0.0
            for packet in container.demux():
                if packet.pts is not None and packet.time_base is not None:
                    end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
                if packet.stream.index != stream.index:
                    continue
                packets += packet.size > 0
                if packet.pts is not None and packet.time_base is not None:
                    starts.append(float(packet.pts * packet.time_base))
                if decoded == 0:
                    decoded += len(packet.decode())
            if decoded == 0:
                raise BadInputError('has no frame that decodes: replace it')
            if stream.frames and packets < stream.frames:
                raise BadInputError(f'is truncated: {packets} of {stream.frames} frames are there. Replace it')
            if 'matroska' in container.format.name and container.duration and _says_how_long(path):
                _check_end(container.duration / av.time_base, end, sorted(starts))
    except (av.FFmpegError, OSError, ValueError) as error:
        raise BadInputError(f'is not a video that FFmpeg reads, or is damaged ({error}): replace it') from None


def _says_how_long(path: Path) -> bool:
    """Whether a Matroska or WebM file states its duration (element 0x4489); for others FFmpeg may guess one."""
    with path.open('rb') as file:
        head = file.read(65536)
    return any(b'\x44\x89' + size in head for size in (b'\x84', b'\x88'))  # a float of 4 or 8 bytes


def _check_end(seconds: float, end: float, starts: Sequence[float]) -> None:
    """Such a file counts no frames; its stated duration reaches to the end of its last frame, or a little beyond."""
    longest = max((after - before for before, after in pairwise(starts)), default=0.0)
    if seconds - end > max(1.0, seconds / 10, 2 * longest):
        raise BadInputError(f'is truncated: {end:.1f} of {seconds:.1f} s are there. Replace it')


def _check_audio(path: Path) -> None:
    import av

    samples = 0
    try:
        with path.open('rb') as file, av.open(file, 'r', options=ONLY_THIS_FILE) as container:
            if not container.streams.audio:
                raise BadInputError('holds no audio stream: replace it')
            stream = container.streams.audio[0]
            for frame in container.decode(stream):
                samples += frame.samples
                if samples > MAX_DECODED_AUDIO_S * (stream.rate or 48_000):
                    raise BadInputError(f'is longer than {MAX_DECODED_AUDIO_S // 3600} hours: split it')
            seconds = None if stream.duration is None else float(stream.duration * (stream.time_base or 0))
            rate = stream.rate or 1
    except (av.FFmpegError, OSError, ValueError) as error:
        raise BadInputError(f'is not audio that FFmpeg reads, or is damaged ({error}): replace it') from None
    if samples == 0:
        raise BadInputError('has no sample that decodes: replace it')
    # A container's duration counts the encoder's padding too, so a tenth of a second less is no loss.
    with contextlib.suppress(ZeroDivisionError):
        if path.suffix.lower() in ('.wav', '.flac') and seconds is not None and samples / rate < seconds - 0.1:
            raise BadInputError(f'is truncated: {samples / rate:.1f} of {seconds:.1f} s are there. Replace it')
    _check_wav_length(path)


def _check_wav_length(path: Path) -> None:
    """FFmpeg reads a cut WAV without a word; its header says how many bytes should follow."""
    with path.open('rb') as file:
        head = file.read(12)
        if head[:4] != b'RIFF' or head[8:12] != b'WAVE':
            return
        while len(chunk := file.read(8)) == 8:
            size = int.from_bytes(chunk[4:], 'little')
            if chunk[:4] == b'data':
                left = path.stat().st_size - file.tell()
                # A stream of unknown length writes 0 or the largest number for its size.
                if 0 < size < 0xFFFF_FF00 and left < size:
                    raise BadInputError(f'is truncated: {left} of {size} bytes of sound are there. Replace it')
                return
            file.seek(size + size % 2, 1)


def _check_document(path: Path) -> None:
    with path.open('rb') as file:
        head = file.read(1024)
    suffix = path.suffix.lower()
    if suffix == '.pdf' and b'%PDF-' not in head:
        raise BadInputError('ends in .pdf but is no PDF: replace or rename it')
    if suffix == '.pdf' or head.startswith(b'%PDF-'):
        if suffix not in ('.pdf', ''):  # Pixeltable goes by the ending
            raise BadInputError(f'is a PDF that ends in {suffix}: rename it to end in .pdf')
        _check_pdf(path)
        return
    if head.startswith((b'\xff\xfe', b'\xfe\xff')):
        raise BadInputError('is UTF-16: save it as UTF-8')
    if b'\x00' in head:
        raise BadInputError('is neither a PDF nor text: convert it')
    try:
        path.read_text(encoding='utf-8-sig')
    except UnicodeDecodeError as error:
        raise BadInputError(f'is not UTF-8 at byte {error.start}: save it as UTF-8') from None
    if suffix == '.md':
        require('text', 'mistune', why=f"Pixeltable's check of the Markdown document '{path}'")


def _check_pdf(path: Path) -> None:
    import pypdfium2

    try:
        with pdfium_lock:
            _open_pdf(pypdfium2, path)
    except pypdfium2.PdfiumError as error:
        raise BadInputError(f'is a PDF that cannot be opened ({error}): replace it, or remove its password') from None


def _open_pdf(pypdfium2: Any, path: Path) -> None:
    document = pypdfium2.PdfDocument(path)
    try:
        if len(document) == 0:
            raise BadInputError('is a PDF without pages: replace it')
        document[len(document) - 1].get_textpage().close()
    finally:
        document.close()


def digest_file(path: Path) -> str:
    """BLAKE2b digest of a file's content, 32 hex digits."""
    with path.open('rb') as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def stamp(path: Path) -> list[int]:
    """Size, modification and change time (ns) and inode: while these are the same, so is the content.

    The change time cannot be set back by hand, unlike the modification time.
    """
    return stamp_of(path.stat())


def stamp_of(stat: os.stat_result) -> list[int]:
    """The same of what a file system has said already."""
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
