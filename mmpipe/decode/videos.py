"""Encoded video to a few frames at even times, decoded forward in one pass, as pictures of one size."""

from __future__ import annotations

import contextlib
import io
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from mmpipe.decode.image_boxes import DRAWS, TURNS, Box, central_box, random_box, stored_box, turned
from mmpipe.errors import ConfigError, DataError

if TYPE_CHECKING:
    import av

Crop = Literal['random', 'center']
Window = Literal['random', 'start', 'center']

# 8K video has 33 million pixels; a damaged header can ask for 4 billion.
_MOST_PIXELS = 1 << 27
# Lists of files (`ffconcat`) are a format to FFmpeg: nothing but the given bytes is ever opened.
_ONLY_THESE_BYTES = {'protocol_whitelist': 'none'}


def video(
    *,
    frames: int = 8,
    size: int = 112,
    crop: Crop | None = 'random',
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    span: Literal['whole'] | float = 'whole',
    window: Window = 'random',
    jitter: bool = False,
) -> VideoDecoder:
    """Decode MP4, WebM, MKV, AVI and whatever else FFmpeg reads, to uint8 frames `[frames, 3, size, size]`.

    The span is cut into `frames` equal parts, and each part gives the frame that is on screen at its middle, by the
    time stamps of the file: a variable frame rate is followed. A clip with fewer frames than asked for repeats them.
    Pictures are turned as the file's display matrix says (phones film sideways), and pixels that are not square are
    stretched to what a player shows. FFmpeg's libswscale cuts and resizes with an antialiased bilinear filter.

    Decoding starts at the keyframe before the first wanted frame and goes forward once; whole groups between two
    keyframes are passed over where no wanted frame lies in them. Each clip is decoded by one thread, several at once.

    Args:
        frames: frames of the result.
        size: edge of the result in pixels.
        crop: 'random', a part of random area, proportions and place in each epoch, the same in all frames, as
            torchvision's RandomResizedCrop; 'center', the central square; None, the whole picture, squeezed.
        scale: smallest and largest part of the picture's area, for 'random'.
        ratio: smallest and largest width / height, for 'random'.
        span: 'whole', or seconds of the clip that the frames are taken from; a shorter clip gives all it has.
        window: where a span in seconds lies: 'random', another place in each epoch; 'start'; 'center'.
        jitter: take a random instant of each part instead of its middle.

    Returns:
        A decoder to uint8 `[frames, 3, size, size]`, RGB.

    Raises:
        ConfigError: an argument cannot work.

    >>> decoder = video(frames=4, size=64, span=2.0)
    >>> decoder.shape, decoder.draws
    ((4, 3, 64, 64), 23)
    """
    return VideoDecoder(
        frames=frames,
        size=size,
        crop=crop,
        scale=tuple(scale),
        ratio=tuple(ratio),
        span=span,
        window=window,
        jitter=jitter,
    )


@dataclass(frozen=True, kw_only=True)
class VideoDecoder:
    """What `mm.decode.video` makes; see there. Holds only its arguments, so it pickles and serves any thread."""

    frames: int
    size: int
    crop: Crop | None
    scale: tuple[float, ...]
    ratio: tuple[float, ...]
    span: Literal['whole'] | float
    window: Window
    jitter: bool

    def __post_init__(self) -> None:
        if min(self.frames, self.size) < 1 or (self.frames, self.size) != (int(self.frames), int(self.size)):
            raise ConfigError(
                f'mm.decode.video(frames={self.frames}, size={self.size}): both are whole numbers of at least 1.'
            )
        if self.crop not in ('random', 'center', None):
            raise ConfigError(f"mm.decode.video(crop={self.crop!r}): choose 'random', 'center' or None.")
        if self.span != 'whole' and not (isinstance(self.span, int | float) and 0 < self.span < math.inf):
            raise ConfigError(f"mm.decode.video(span={self.span!r}): give 'whole', or a length in seconds.")
        if self.window not in ('random', 'start', 'center'):
            raise ConfigError(f"mm.decode.video(window={self.window!r}): choose 'random', 'start' or 'center'.")
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ConfigError(f'mm.decode.video(scale={self.scale}): two parts of the area, such as (0.08, 1).')
        if len(self.ratio) != 2 or not 0 < self.ratio[0] <= self.ratio[1] < math.inf:
            raise ConfigError(f'mm.decode.video(ratio={self.ratio}): two of width / height, such as (3/4, 4/3).')

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of each result: frames, colours, height, width."""
        return (self.frames, 3, self.size, self.size)

    @property
    def rest(self) -> tuple[int, ...]:
        """Nothing varies."""
        return ()

    @property
    def dtype(self) -> str:
        """Always uint8."""
        return 'uint8'

    @property
    def draws(self) -> int:
        """One for the window, those of a random crop, one for each jittered instant."""
        return self._moves + DRAWS * (self.crop == 'random') + self.frames * self.jitter

    @property
    def _moves(self) -> bool:
        return self.span != 'whole' and self.window == 'random'

    def decode(self, data: bytes, draws: np.ndarray, out: np.ndarray | None) -> np.ndarray:
        """Frames of one clip; see `mmpipe.decode.Decoder`.

        Raises:
            DataError: the bytes hold no moving pictures that can be decoded, or end before the clip does.
        """
        if out is None:
            out = np.empty(self.shape, np.uint8)
        place, box, instants = self._drawn(draws)
        with _opened(data) as container:
            clip = _clip(container)
            times = self._times(clip, place, instants)
            wanted = clip.at(times)
            picture = _Pictures(self.size, lambda width, height: self._box(width, height, box))
            done: dict[int, int] = {}  # frame of the clip to the row of `out` that has it
            for frame, number in _decoded(clip, sorted(set(wanted))):
                row = wanted.index(number)
                picture(frame, clip.pixel, out[row])
                done[number] = row
        for row, number in enumerate(wanted):
            if done[number] != row:
                out[row] = out[done[number]]
        return out

    def _drawn(self, draws: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        """Place of the window in [0, 1), the numbers of the crop, and the instant within each part."""
        first, second = int(self._moves), int(self._moves) + DRAWS * (self.crop == 'random')
        place = float(draws[0]) if self._moves else (0.5 if self.window == 'center' else 0.0)
        instants = draws[second : second + self.frames].astype(np.float64) if self.jitter else np.full(self.frames, 0.5)
        return place, draws[first:second], instants

    def _times(self, clip: _Clip, place: float, instants: np.ndarray) -> np.ndarray:
        length = clip.end - clip.times[0]
        span = length if self.span == 'whole' else min(length, self.span / clip.base)
        return clip.times[0] + place * (length - span) + (np.arange(self.frames) + instants) * (span / self.frames)

    def _box(self, width: int, height: int, draws: np.ndarray) -> Box:
        """The part that is kept of a picture that has this size on the screen."""
        if self.crop == 'random':
            return random_box(width, height, draws, self.scale, self.ratio)
        return central_box(width, height, 1) if self.crop == 'center' else Box(0, 0, width, height)


class _Clip(NamedTuple):
    """All packets of a clip, not decoded yet, in the order of decoding; and its frames, in the order of showing."""

    codec: av.VideoCodecContext
    packets: list[av.Packet]
    times: np.ndarray  # [frames], in units of `base`, ascending
    packet_of: np.ndarray  # [frames] index into `packets`
    numbers: dict[int, int]  # time stamp to frame; empty where the file has no time stamps
    end: float  # when the last frame goes, in the same units
    base: float  # seconds
    pixel: float  # width of a pixel by its height

    def at(self, times: np.ndarray) -> list[int]:
        """Frames on screen at these times."""
        return np.maximum(np.searchsorted(self.times, times, side='right') - 1, 0).tolist()

    def keyframe(self, number: int) -> int:
        """The packet from which decoding reaches this frame.

        A keyframe that is shown after the frame does not do, though decoded before it: the frame refers to pictures
        before the keyframe as well (an open group of pictures).
        """
        if not self.numbers:
            return 0
        for index in range(int(self.packet_of[number]), 0, -1):
            packet = self.packets[index]
            if packet.is_keyframe and packet.pts is not None and packet.pts <= self.times[number]:
                return index
        return 0


@contextlib.contextmanager
def _opened(data: bytes) -> Iterator[av.container.InputContainer]:
    """FFmpeg on bytes; whatever it raises inside is a DataError."""
    import av
    import av.error

    try:
        with av.open(io.BytesIO(data), 'r', options=_ONLY_THESE_BYTES, metadata_errors='replace') as container:
            yield container
    except (av.error.FFmpegError, OSError, ValueError, EOFError, MemoryError, IndexError, ArithmeticError) as error:
        raise DataError(f'the video cannot be decoded: FFmpeg says "{error}". {_NEXT}') from error


def _clip(container: av.container.InputContainer) -> _Clip:
    """Read all packets: 0.01 ms each, beside 0.1 ms and more to decode one, and afterwards every frame is known."""
    from av.stream import Disposition

    # An MP3's cover is a video stream of one picture.
    streams = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    if not streams:
        raise DataError('the file has no video stream.')
    stream = streams[0]
    codec = stream.codec_context
    if codec is None:
        raise DataError(f'FFmpeg has no decoder for the codec of the video stream. {_NEXT}')
    codec.thread_count = 1  # several clips at once instead
    codec.options = {'max_pixels': str(_MOST_PIXELS)}
    packets = [packet for packet in container.demux(stream) if packet.size]
    if not packets:
        raise DataError(f'the video holds no frames. {_NEXT}')
    # MP4 lists its frames at the start or the end of the file: those that are listed and not there were cut off.
    listed = len(stream.index_entries) if container.format.name.startswith('mov') else 0
    if packets[-1].is_corrupt or len(packets) < listed:
        raise DataError(f'the video ends after {len(packets):,} of {max(listed, len(packets)):,} frames. {_NEXT}')
    base = float(stream.time_base or Fraction(1, 25))
    shape = stream.sample_aspect_ratio or codec.sample_aspect_ratio
    pixel = float(shape) if shape else 1.0
    shown = [i for i, packet in enumerate(packets) if not packet.is_discard]
    stamps = [packets[i].pts for i in shown]
    if not shown or any(stamp is None for stamp in stamps):
        # A bare stream without time stamps: its frames count as evenly spaced.
        count = len(packets)
        base = 1 / float(stream.average_rate or stream.guessed_rate or 25)
        return _Clip(codec, packets, np.arange(count), np.arange(count), {}, count, base, pixel)
    times = np.array(stamps, np.int64)
    order = np.argsort(times, kind='stable')
    times, packet_of = times[order], np.array(shown)[order]
    last = packets[int(packet_of[-1])].duration or (np.median(np.diff(times)) if len(times) > 1 else 1)
    numbers = {stamp: number for number, stamp in enumerate(times.tolist())}
    return _Clip(codec, packets, times, packet_of, numbers, float(times[-1] + last), base, pixel)


def _decoded(clip: _Clip, wanted: list[int]) -> Iterator[tuple[av.VideoFrame, int]]:
    """The wanted frames, in the order of showing, decoded forward, and only from the keyframes that are needed.

    Raises:
        DataError: a wanted frame does not come, or comes damaged.
    """
    pending = list(wanted)
    before: av.VideoFrame | None = None
    number, opening = -1, True
    for frame in _forward(clip, wanted):
        if frame is None:  # packets were passed over: nothing decoded before them stays on screen
            before, opening = None, False
            continue
        # Without time stamps, frames are counted.
        number = clip.numbers.get(frame.pts or 0, -1) if clip.numbers else number + 1
        while pending and pending[0] < number and (before is not None or opening):
            # A packet that shows nothing (a hidden reference of VP8): the frame before it stays on screen; and before
            # the first frame that shows (the stream was cut before a keyframe), it is that frame.
            yield _whole(before or frame), pending.pop(0)
        if pending and pending[0] == number:
            yield _whole(frame), pending.pop(0)
        before = frame
        if not pending:
            return
    if not clip.numbers and before is not None:
        for last in pending:  # packets of a bare stream are not all frames; the last frame stays
            yield _whole(before), last
    elif pending:
        raise DataError(f'the video gives no frame {pending[0]:,} of {len(clip.times):,}. {_NEXT}')


def _forward(clip: _Clip, wanted: list[int]) -> Iterator[av.VideoFrame | None]:
    """Decode forward as far as needed; None tells that packets were passed over."""
    # Frames to which no other refers need not be decoded, if they are not wanted: in H.264 a quarter of the time. Other
    # codecs mark as unreferenced what a higher temporal layer may refer to.
    skips = clip.codec.name == 'h264' and bool(clip.numbers)
    needed = {int(clip.packet_of[number]) for number in wanted}
    starts = [clip.keyframe(number) for number in wanted]
    at = None  # next packet
    for start, group in itertools.groupby(zip(starts, wanted, strict=True), key=lambda pair: pair[0]):
        last = max(int(clip.packet_of[number]) for _, number in group)
        if not clip.numbers:
            last = len(clip.packets) - 1
        if at is None or start > at:
            if at is not None:
                yield from clip.codec.decode(None)
                clip.codec.flush_buffers()
                yield None
            at = start
        for index in range(at, last + 1):
            if skips:
                clip.codec.skip_frame = 'DEFAULT' if index in needed else 'NONREF'
            yield from clip.codec.decode(clip.packets[index])
        at = max(at, last + 1)
    yield from clip.codec.decode(None)


def _whole(frame: av.VideoFrame) -> av.VideoFrame:
    if frame.is_corrupt:
        raise DataError(f'a frame of the video is damaged. {_NEXT}')
    return frame


class _Pictures:
    """Cuts, resizes and turns frames into planes of RGB; one filter graph serves all frames of one size and format."""

    def __init__(self, size: int, box: Callable[[int, int], Box]) -> None:
        self._size = size
        self._box = box
        self._key: object = None
        self._graph: av.filter.Graph | None = None

    def __call__(self, frame: av.VideoFrame, pixel: float, out: np.ndarray) -> None:
        """Write one frame, with pixels `pixel` times as wide as high, to `out`: uint8 [3, size, size]."""
        orientation = _orientation(frame)
        key = (frame.width, frame.height, frame.format.name, orientation)
        if self._graph is None or key != self._key:
            self._key, self._graph = key, self._built(frame, pixel, orientation)
        self._graph.vpush(frame)
        cut = self._graph.vpull()
        green, blue, red = (
            np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[: self._size, : self._size]
            for plane in cut.planes
        )
        for target, plane in zip(out, (red, green, blue), strict=True):
            target[...] = turned(plane, orientation)

    def _built(self, frame: av.VideoFrame, pixel: float, orientation: int) -> av.filter.Graph:
        import av.filter

        # The box is chosen on the screen, and the cut is done on what is stored.
        width, height = max(1, round(frame.width * pixel)), frame.height
        upright = (height, width) if TURNS[orientation][2] else (width, height)
        box = stored_box(self._box(*upright), width, height, orientation)
        left, right = (round(x * frame.width / width) for x in (box.left, box.left + box.width))
        left = min(left, frame.width - 1)
        graph = av.filter.Graph()
        graph.threads = 1
        graph.link_nodes(
            graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 1000)),
            graph.add('crop', f'{max(1, right - left)}:{box.height}:{left}:{box.top}:exact=1'),
            graph.add('scale', f'{self._size}:{self._size}:flags=bilinear'),
            graph.add('format', 'gbrp'),  # planes, as the result has them: twice as fast as interleaved colours
            graph.add('buffersink'),
        ).configure()
        return graph


def _orientation(frame: av.VideoFrame) -> int:
    """The display matrix as the nearest EXIF orientation: quarter turns, mirrored or not."""
    side: Any = frame.side_data.get('DISPLAYMATRIX')
    if side is None:
        return 1
    # x on the screen is a * x + c * y of the stored place, and y is b * x + d * y.
    a, b, _, c, d = (int(x) for x in np.frombuffer(memoryview(side), np.int32)[:5])
    if abs(b) > abs(a):
        turn = (c < 0, b < 0, True)
    else:
        turn = (d < 0, a < 0, False)
    return next(orientation for orientation, how in TURNS.items() if how == turn)


_NEXT = 'Check that it plays, encode it again, or leave it out.'
