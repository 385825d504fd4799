"""What Pixeltable's own check says of a file: asked before the insert, which one refused file would abort."""

from __future__ import annotations

from pathlib import Path

from mmpipe.pdfium import pdfium_lock


def media_refusal(path: Path, kind: str) -> str:
    """Why Pixeltable refuses a file; '' when it takes it.

    Args:
        path: the file.
        kind: image, video, audio or document.

    >>> media_refusal(Path(__file__), 'video').partition(':')[0]
    'Not a valid video'
    """
    from pixeltable import type_system as ts

    kinds = {'image': ts.ImageType, 'video': ts.VideoType, 'audio': ts.AudioType, 'document': ts.DocumentType}
    try:
        with pdfium_lock:
            kinds[kind]().validate_media(str(path))
    except Exception as error:  # noqa: BLE001 (decoders raise anything)
        cause = error.__cause__
        return ' '.join(f'{error}{f" ({type(cause).__name__}: {cause})" if cause else ""}'.split())
    return ''
