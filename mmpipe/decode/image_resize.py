"""Pixels to the size of a batch, antialiased: FFmpeg's libswscale, two to four times as fast as Pillow's resize.

Both weigh every pixel under a triangle as wide as the step between results ('bilinear' with antialias), and libswscale
is as near to the exact sum: within one level of 255, 0.25 on average, against 0.28 of Pillow. Only the border of the
result differs: here the outermost pixels count for what lies beyond them; Pillow counts only what is there.
"""

from __future__ import annotations

import threading

import av
import av.error
import numpy as np
import PIL.Image
from av.video.reformatter import VideoReformatter

from mmpipe.decode.image_boxes import turned

# Of libswscale/swscale.h: a triangle filter, over every pixel of each colour instead of every second one.
_BILINEAR, _EVERY_COLOUR = 0x2, 0x2000 | 0x4000
# One image per thread already. PyAV before 17 knows no other way, and not the argument.
_ONE_THREAD = {'threads': 1} if int(av.__version__.split('.')[0]) >= 17 else {}
_FEWEST = 4  # pixels a side: of fewer, libswscale takes the nearest one
_PADDING = 64  # bytes behind the last pixel, which vector instructions may read
_KEPT = 64 << 20  # bytes of memory that a thread keeps for its next image
_thread = threading.local()


def memory(count: int) -> np.ndarray:
    """Uint8 `[count]` to decode into, the same for each image of a thread: fresh memory is as slow as decoding.

    >>> memory(6) is memory(6), memory(6).base is memory(5).base
    (False, True)
    """
    held = getattr(_thread, 'memory', None)
    if held is None or len(held) < count + _PADDING:
        held = np.empty(count + _PADDING, np.uint8)
        if count <= _KEPT:
            _thread.memory = held
    return held[:count]


def resize_into(pixels: np.ndarray, out: np.ndarray, orientation: int = 1) -> None:
    """Scale pixels to fill `out`, outside Python's lock.

    Args:
        pixels: uint8 `[h, w, 3]`, contiguous within its rows, in a piece of `memory`.
        out: uint8 `[3, size, size]`.
        orientation: EXIF orientation, 1 to 8, of `pixels`; `out` is upright.

    >>> pixels = memory(8 * 6 * 3).reshape(6, 8, 3)
    >>> pixels[:] = 7, 8, 9
    >>> out = np.zeros((3, 4, 4), np.uint8)
    >>> resize_into(pixels, out)
    >>> out.max((1, 2)).tolist()
    [7, 8, 9]
    """
    small = None if min(pixels.shape[:2]) < _FEWEST else _by_swscale(pixels, out.shape[1])
    for channel, plane in enumerate(_by_pillow(pixels, out.shape[1]) if small is None else small):
        out[channel] = turned(plane, orientation)


def _by_swscale(pixels: np.ndarray, size: int) -> list[np.ndarray] | None:
    """Red, green and blue, each `[size, size]`; None where libswscale cannot."""
    if not hasattr(_thread, 'scaler'):
        _thread.scaler = VideoReformatter()  # keeps its filters while sizes stay the same
    try:
        frame = _thread.scaler.reformat(
            av.VideoFrame.from_numpy_buffer(pixels, format='rgb24'),
            width=size, height=size, format='gbrp', interpolation=_BILINEAR | _EVERY_COLOUR, **_ONE_THREAD,
        )  # fmt: skip
    except av.error.FFmpegError:  # it shrinks by at most 256 times
        return None
    green, blue, red = (np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size) for plane in frame.planes)
    return [plane[:size, :size] for plane in (red, green, blue)]


def _by_pillow(pixels: np.ndarray, size: int) -> np.ndarray:
    image = PIL.Image.fromarray(np.ascontiguousarray(pixels))
    return np.asarray(image.resize((size, size), PIL.Image.Resampling.BILINEAR)).transpose(2, 0, 1)
