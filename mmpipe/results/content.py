"""The content of values as bytes: to tell inputs apart, and to keep results without a pickle."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

_ARRAY, _JSON = b'N', b'J'


def content_key(print_digest: str, arguments: Mapping[str, Any]) -> bytes | None:
    """Name of a result: 32 bytes that differ when the function, or the content of any argument does.

    Args:
        print_digest: fingerprint of the function.
        arguments: by parameter name. Images count by mode, size, orientation and pixels, paths by their file's bytes.

    Returns:
        The key; None where an argument has no content that could be told.

    >>> content_key('f', {'x': 1}) == content_key('f', {'x': 1}) != content_key('f', {'x': 1.0})
    True
    >>> content_key('f', {'x': object()}) is None
    True
    """
    digest = hashlib.blake2b(print_digest.encode(), digest_size=32)
    for name, value in sorted(arguments.items()):
        content = _content(value)
        if content is None:
            return None
        digest.update(f'{name}:{len(content)}:'.encode())
        digest.update(content)
    return digest.digest()


def _content(value: Any) -> bytes | None:
    if isinstance(value, np.ndarray):
        if value.dtype.hasobject:
            return None
        return f'array {value.dtype.str} {value.shape} '.encode() + np.ascontiguousarray(value).tobytes()
    if isinstance(value, bytes):
        return b'bytes ' + value
    if isinstance(value, Path):
        with value.open('rb') as file:
            return b'file ' + hashlib.file_digest(file, 'blake2b').digest()
    if type(value).__module__.startswith('PIL.'):
        palette = value.getpalette() if value.mode in ('P', 'PA') else None
        about = (value.mode, value.size, value.getexif().get(0x0112), palette, repr(value.info.get('transparency')))
        return f'image {about} '.encode() + value.tobytes()
    try:
        return f'{type(value).__name__} {json.dumps(value, sort_keys=True, allow_nan=False)}'.encode()
    except (TypeError, ValueError):
        return None


def to_bytes(value: Any) -> bytes | None:
    """A result as bytes; None for one that cannot be kept: not an array, and not plain JSON.

    >>> from_bytes(to_bytes({'a': [1, None]})), from_bytes(to_bytes(np.zeros(2, np.float32))).dtype
    ({'a': [1, None]}, dtype('float32'))
    >>> to_bytes((1, 2)) is None
    True
    """
    if isinstance(value, np.ndarray):
        if value.dtype.hasobject:
            return None
        sink = io.BytesIO()
        np.save(sink, value, allow_pickle=False)
        return _ARRAY + sink.getvalue()
    try:
        text = json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return None
    return _JSON + text.encode() if _plain(json.loads(text), value) else None


def from_bytes(content: bytes) -> Any:
    """What `to_bytes` was given.

    >>> from_bytes(to_bytes('text'))
    'text'
    """
    if content[:1] == _ARRAY:
        return np.load(io.BytesIO(content[1:]), allow_pickle=False)
    return json.loads(content[1:])


def _plain(read: Any, value: Any) -> bool:
    """Whether a value comes back from JSON as itself: no tuple, no key that is a number, no NumPy number."""
    if type(read) is not type(value):
        return False
    if isinstance(value, dict):
        return read.keys() == value.keys() and all(_plain(read[key], value[key]) for key in value)
    if isinstance(value, list):
        return all(_plain(a, b) for a, b in zip(read, value, strict=True))
    return read == value
