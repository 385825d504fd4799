"""Small real files, written by the encoders users have: Pillow, libsndfile, FFmpeg (PyAV) and PDFium."""

from __future__ import annotations

import ctypes
import math
from pathlib import Path

import av
import numpy as np
import PIL.Image
import pypdfium2
import pypdfium2.raw
import soundfile


def photo(path: Path, size: tuple[int, int] = (48, 32), seed: int = 0, **options: object) -> Path:
    """A smooth random colour image; the suffix chooses the codec."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    PIL.Image.fromarray(small).resize(size, PIL.Image.Resampling.BICUBIC).save(path, **options)
    return path


def tone(rate: int, seconds: float, hertz: float = 440.0, channels: int = 1) -> np.ndarray:
    """A sine at half of full scale: float32 (samples, channels)."""
    t = np.arange(round(rate * seconds)) / rate
    return np.repeat(0.5 * np.sin(2 * math.pi * hertz * t)[:, None], channels, axis=1).astype(np.float32)


def sound(
    path: Path, rate: int = 16000, seconds: float = 0.5, channels: int = 1, hertz: float = 440.0, **options: object
) -> Path:
    """A tone in any format libsndfile writes."""
    soundfile.write(path, tone(rate, seconds, hertz, channels), rate, **options)
    return path


def m4a(path: Path, rate: int = 44100, seconds: float = 0.5, channels: int = 2, hertz: float = 440.0) -> Path:
    """The same tone as AAC, which libsndfile does not read."""
    layout = 'stereo' if channels == 2 else 'mono'
    with av.open(str(path), 'w') as container:
        stream = container.add_stream('aac', rate=rate, layout=layout)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(tone(rate, seconds, hertz, channels).T), 'fltp', layout)
        frame.sample_rate = rate
        for packet in (*stream.encode(frame), *stream.encode(None)):
            container.mux(packet)
    return path


def clip(path: Path, frames: int = 6, size: tuple[int, int] = (64, 48), fps: int = 2, seed: int = 0) -> Path:
    """An H.264 clip of still colours, one per frame."""
    colours = np.random.default_rng(seed).integers(0, 256, (frames, 3), np.uint8)
    with av.open(str(path), 'w') as container:
        stream = container.add_stream('libx264', rate=fps)
        stream.width, stream.height = size
        stream.pix_fmt = 'yuv420p'
        for colour in colours:
            picture = np.broadcast_to(colour, (size[1], size[0], 3))
            for packet in stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), 'rgb24')):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)
    return path


def pdf(path: Path, pages: list[str]) -> Path:
    """A PDF with one page per string, each line set in Helvetica; '' is a page without text."""
    raw = pypdfium2.raw
    document = pypdfium2.PdfDocument.new()
    for text in pages:
        page = document.new_page(400, 600)
        for row, line in enumerate(text.split('\n')):
            item = raw.FPDFPageObj_NewTextObj(document, b'Helvetica', 12.0)
            encoded = (line + '\0').encode('utf-16-le')
            raw.FPDFText_SetText(item, ctypes.cast(ctypes.create_string_buffer(encoded), raw.FPDF_WIDESTRING))
            raw.FPDFPageObj_Transform(item, 1, 0, 0, 1, 40, 540 - 16 * row)
            if line:
                raw.FPDFPage_InsertObject(page, item)
            else:
                raw.FPDFPageObj_Destroy(item)
        page.gen_content()
        page.close()
    document.save(str(path))
    document.close()
    return path
