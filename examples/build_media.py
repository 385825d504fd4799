"""Encoders of the bundled demo data: one source drawing in, one small photo, spoken caption, clip or document out.

Used by `build_data.py` only. Every choice (size, format, voice, camera path) is drawn from a hash of the item's key,
so that it depends on no label and the same packages give the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import subprocess
import unicodedata
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import TypeVar
from xml.sax.saxutils import escape

import av
import numpy as np
import soundfile
from PIL import Image
from reportlab.lib.pagesizes import A5
from reportlab.lib.styles import getSampleStyleSheet
from reportlab.platypus import Paragraph, SimpleDocTemplate

PHOTO_SIDES = (112, 128, 144, 160)  # px, longest side
CLIP_SIDE = 112  # px, square
CLIP_FRAMES = 8
CLIP_RATE = 8  # frames per second
SPEECH_RATE = 16_000  # Hz, mono
SPEECH_SECONDS = 6.0  # longer ones are cut
VOICES = ('en-gb', 'en-us', 'en-gb-scotland', 'en-gb-x-rp', 'en-us+f2', 'en-gb+f4', 'en-029', 'en-us+m3')
SPEEDS = (140, 155, 170, 185)  # words per minute

Choice = TypeVar('Choice')


class BuildError(RuntimeError):
    """The demo data cannot be built; the message says what to install or to look at."""


def draw(key: str, purpose: str) -> float:
    """A number in [0, 1) that depends on the key and the purpose only.

    >>> draw('ant', 'clip') == draw('ant', 'clip'), draw('ant', 'clip') == draw('ant', 'speech')
    (True, False)
    """
    digest = hashlib.blake2b(f'{purpose}:{key}'.encode(), digest_size=8).digest()
    return int.from_bytes(digest, 'big') / 2**64


def pick(key: str, purpose: str, options: tuple[Choice, ...]) -> Choice:
    """One of `options`, chosen by `draw`."""
    return options[int(draw(key, purpose) * len(options))]


def on_white(image: Image.Image) -> Image.Image:
    """RGB copy of an image of any mode, transparent parts on white.

    >>> on_white(Image.new('RGBA', (1, 1), (0, 0, 0, 0))).getpixel((0, 0))
    (255, 255, 255)
    """
    rgba = image.convert('RGBA')
    return Image.alpha_composite(Image.new('RGBA', rgba.size, 'white'), rgba).convert('RGB')


def content_box(flat: Image.Image) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of what is not white in an RGB image; the whole of it where all is white."""
    box = Image.eval(flat.convert('L'), lambda value: 255 * (value < 250)).getbbox()
    return box or (0, 0, *flat.size)


def write_photo(image: Image.Image, key: str, folder: Path) -> Path:
    """Store a small copy of the drawing; format, mode and size vary with the key as they do in a real collection.

    Empty margins are cut off: some drawings fill a hundredth of their page.

    Returns:
        The file: WebP (RGBA), PNG (P with transparency, or the source's own L/LA), JPEG (RGB, L or CMYK, on white).
    """
    side = pick(key, 'side', PHOTO_SIDES)
    box = content_box(on_white(image))
    has_palette, small = image.mode == 'P', (image.convert('RGBA') if image.mode == 'P' else image).crop(box)
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    kind = draw(key, 'format')
    if kind < 0.40:
        path = folder / f'{key}.webp'
        small.convert('RGBA').save(path, quality=80, method=6)
    elif kind < 0.70:
        path = folder / f'{key}.png'
        if small.mode == 'RGBA':
            small = small.quantize(64 if has_palette else 48, method=Image.Quantize.FASTOCTREE)
        small.save(path, optimize=True)
    else:
        path = folder / f'{key}.jpg'
        mode = 'L' if image.mode in ('L', 'LA') else 'CMYK' if kind > 0.97 else 'RGB'
        on_white(small).convert(mode).save(path, quality=85, optimize=True)
    return path


def write_clip(image: Image.Image, key: str, folder: Path) -> Path:
    """Store a short H.264 clip: the camera starts on the whole drawing and moves into one part of it.

    The frames are cut from the full-size drawing, so the end of the clip shows detail which the photo has lost.
    """
    whole = on_white(image)
    side = max(whole.size)
    centre = np.array([side / 2, side / 2])
    corner = np.array([(side - whole.width) // 2, (side - whole.height) // 2])
    target = corner + np.array(whole.size) * [0.3 + 0.4 * draw(key, 'x'), 0.3 + 0.4 * draw(key, 'y')]
    end_zoom = 1.6 + 1.4 * draw(key, 'zoom')
    square = Image.new('RGB', (side, side), 'white')
    square.paste(whole, tuple(corner.tolist()))
    path = folder / f'{key}.mp4'
    with av.open(str(path), 'w', options={'fflags': '+bitexact', 'movflags': '+faststart'}) as container:
        options = {'crf': '27', 'preset': 'slow', 'threads': '1'}
        stream = container.add_stream('libx264', rate=CLIP_RATE, options=options)
        stream.width = stream.height = CLIP_SIDE
        stream.pix_fmt = 'yuv420p'
        stream.codec_context.flags |= av.codec.context.Flags.bitexact
        for step in np.linspace(0.0, 1.0, CLIP_FRAMES):
            half = side / (1 + (end_zoom - 1) * step) / 2
            x, y = np.clip(centre + (target - centre) * step, half, side - half)
            box = (x - half, y - half, x + half, y + half)
            frame = square.resize((CLIP_SIDE, CLIP_SIDE), Image.Resampling.BICUBIC, box, reducing_gap=3.0)
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())
    return path


def voice_of(key: str) -> str:
    """The espeak-ng voice that speaks the item's caption."""
    return pick(key, 'voice', VOICES)


def write_speech(text: str, key: str, folder: Path) -> Path:
    """Store the text as spoken by espeak-ng: mono, three quarters Ogg Opus, one quarter MP3 at 16 kHz.

    Raises:
        BuildError: espeak-ng failed.
    """
    command = ['espeak-ng', '-v', voice_of(key), '-s', str(pick(key, 'speed', SPEEDS)), '--stdout', text]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode or not done.stdout:
        raise BuildError(f'espeak-ng said {done.stderr.decode(errors="replace").strip()!r} for {key!r} ({text!r}).')
    samples, rate = soundfile.read(io.BytesIO(_whole_wav(done.stdout)), dtype='int16')
    samples = samples[: int(SPEECH_SECONDS * rate)]
    suffix, codec, bit_rate = ('ogg', 'libopus', 14_000) if draw(key, 'codec') < 0.75 else ('mp3', 'libmp3lame', 24_000)
    path = folder / f'{key}.{suffix}'
    with av.open(str(path), 'w', options={'fflags': '+bitexact'}) as container:
        stream = container.add_stream(codec, rate=SPEECH_RATE, layout='mono')
        stream.bit_rate = bit_rate
        stream.codec_context.flags |= av.codec.context.Flags.bitexact
        frame = av.AudioFrame.from_ndarray(samples[None, :], format='s16', layout='mono')
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        context = stream.codec_context
        context.open()
        resampler = av.AudioResampler(context.format, 'mono', SPEECH_RATE, context.frame_size)
        for source in (frame, None):
            for part in resampler.resample(source):
                container.mux(stream.encode(part))
        container.mux(stream.encode())
    return path


def _whole_wav(data: bytes) -> bytes:
    """The same WAV with true sizes in its header; espeak-ng does not know them when it writes to a pipe."""
    size = len(data)
    return data[:4] + (size - 8).to_bytes(4, 'little') + data[8:40] + (size - 44).to_bytes(4, 'little') + data[44:]


def write_pdf(title: str, lines: Iterable[tuple[str, str]], key: str, folder: Path) -> Path:
    """Store a one-page PDF with a heading, then a labelled line for each pair; no timestamps inside."""
    styles = getSampleStyleSheet()
    parts = [Paragraph(escape(latin(title)), styles['Title'])]
    parts += [Paragraph(f'<b>{escape(name)}:</b> {escape(latin(text))}', styles['BodyText']) for name, text in lines]
    path = folder / f'{key}.pdf'
    SimpleDocTemplate(str(path), pagesize=A5, invariant=1, pageCompression=1, title=title).build(parts)
    return path


def latin(text: str) -> str:
    """The text in Latin-1, which PDF's built-in fonts can show; other letters lose their accents.

    >>> latin('Koco\u0144')
    'Kocon'
    """
    plain = (unicodedata.normalize('NFKD', char).encode('ascii', 'ignore').decode() for char in text)
    return ''.join(char if ord(char) < 256 else other for char, other in zip(text, plain, strict=True))


def write_markdown(title: str, lines: Iterable[tuple[str, str]], key: str, folder: Path) -> Path:
    """Store the same record as `write_pdf` does, as Markdown."""
    body = [f'# {title}', *(f'**{name}:** {text}' for name, text in lines)]
    path = folder / f'{key}.md'
    path.write_text('\n\n'.join(body) + '\n', encoding='utf-8')
    return path
