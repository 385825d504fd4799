"""mmpipe's side of `loaders.py`, and what is measured of it besides epochs.

Snapshots are written as `mm.snapshot` writes them, in blocks of some 64 MB; no table is needed for that.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from loaders_data import SHAPE, WORDS, Decoded, Photos
from loaders_decoded import SEED
from loaders_encoded import EDGE
from loaders_peer import Batch, Epoch, Peer

DELETED = 0.1  # of the rows, in the fragmented snapshot
DELTAS = 100
BLOCK = 425  # rows of it, some 64 MB
MANY_SHAPE = (3, 64, 64)
THREADS = 2
AHEAD = 2  # batches, as the loader has
TURNS_S = 3  # times as long as loaders are timed, since a difference of two is wanted
Measured = dict[str, tuple[float, str]]


def fields_of(kind: str, shape: tuple[int, ...] = ()) -> list[Any]:
    from mmpipe.shards import Field

    dtype = 'uint8' if kind == 'tensor' else ''
    return [
        Field(name='image', kind=kind, dtype=dtype, shape=shape),
        Field(name='label', kind='label', vocabulary=WORDS),
    ]


def block_of(keys: np.ndarray, images: Any, labels: np.ndarray) -> Any:
    """Rows as a block; a row's key is its number as text."""
    from mmpipe.shards import Block

    columns = {'image': list(images), 'label': [WORDS[label] for label in labels]}
    return Block(keys=[f'{key:06}' for key in keys], columns=columns, splits=['train'] * len(keys))


def write(root: Path, fields: list[Any], blocks: Iterator[Any]) -> Any:
    """A snapshot of blocks."""
    from mmpipe.shards import commit, write_block

    shards = [write_block(root, fields, block, index=i) for i, block in enumerate(blocks)]
    return commit(root, fields, shards, splits={'train': sum(shard.rows for shard in shards)})


def prepare_rows(data: Path, own: Path) -> None:
    decoded = Decoded(data)
    parts = np.array_split(np.arange(len(decoded)), -(-len(decoded) // BLOCK))
    blocks = (block_of(part, decoded.images[part], decoded.labels[part]) for part in parts)
    write(own, fields_of('tensor', SHAPE), blocks)


def prepare_fragmented(data: Path, own: Path) -> None:
    """Half of the rows at once, the others in deltas, and rows deleted in each of them; then the same compacted."""
    from mmpipe.shards import commit, compact, write_block

    decoded = Decoded(data)
    count = len(decoded)
    deltas = min(max(count // 30, 3), DELTAS)
    dead = round(count * DELETED / (1 - DELETED))
    random = np.random.default_rng(2)
    numbers = random.permutation(count + dead)  # from `count` on: rows that will be deleted
    first, rest = numbers[: count // 2], np.array_split(numbers[count // 2 :], deltas)
    parts = [*np.array_split(first, -(-len(first) // BLOCK)), *rest]
    fields, shards, live, deleted = fields_of('tensor', SHAPE), [], 0, []
    for index, part in enumerate(parts):
        images, labels = decoded.images[part % count], decoded.labels[part % count]
        shards.append(write_block(own, fields, block_of(part, images, labels), index=index))
        live += len(part)
        if index >= len(parts) - deltas:  # what was written before, up to here, is deleted evenly
            gone = [(block, row) for block in range(index + 1) for row in np.flatnonzero(parts[block] >= count)]
            share = (index - len(parts) + deltas + 1) / deltas
            deleted = gone[: round(dead * share)]
        dropped = np.array(deleted, dtype=np.int64).reshape(-1, 2)
        last = commit(own, fields, shards, dropped=dropped, splits={'train': live - len(deleted)})
    (own / 'fragmented.txt').write_text(last.id)
    (own / 'compacted.txt').write_text(compact(own).id)


def rows_of(root: Path, which: str = '') -> Any:
    """Rows of the newest snapshot, or of the one that was noted."""
    from mmpipe.shards import open_snapshot

    noted = (root / f'{which}.txt').read_text() if which else None
    return open_snapshot(root, noted).split('train')


def loader_of(rows: Any, batch: int, **options: Any) -> Any:
    import mmpipe as mm

    return mm.DataLoader(rows, batch_size=batch, shuffle=True, seed=SEED, device='cpu', num_workers='auto', **options)


def epochs(loader: Any) -> Epoch:
    """Each pass of the loader is the next epoch."""

    def epoch(number: int) -> Iterator[Batch]:
        return ((found['image'], found['label'], found['_key']) for found in loader)

    return epoch


def open_rows(data: Path, own: Path, batch: int) -> Epoch:
    return epochs(loader_of(rows_of(own), batch))


def open_noted(data: Path, own: Path, batch: int, *, which: str) -> Epoch:
    return epochs(loader_of(rows_of(own.parent / 'fragmented', which), batch))


def prepare_photos(data: Path, own: Path) -> None:
    photos = Photos(data)
    images = [Path(path).read_bytes() for path in photos.paths]
    write(own, fields_of('binary'), iter([block_of(np.arange(len(photos)), images, photos.labels)]))


def open_photos(data: Path, own: Path, batch: int) -> Epoch:
    from mmpipe.decode.images import image

    return epochs(loader_of(rows_of(own), batch, decode={'image': image(size=EDGE, crop='random')}))


def open_large_whole(data: Path, own: Path, batch: int) -> Epoch:
    """The same crops out of photos that are decoded whole and at full size."""
    from mmpipe.decode import jpeg
    from mmpipe.decode.image_boxes import Box
    from mmpipe.decode.image_resize import resize_into
    from mmpipe.decode.images import ImageDecoder, image

    class Whole(ImageDecoder):
        def _decode_jpeg(self, data: bytes, head: Any, draws: np.ndarray, out: np.ndarray) -> None:
            left, top, width, height = self.box(head.width, head.height, draws)
            pixels = jpeg.part(data, head, Box(0, 0, head.width, head.height))
            resize_into(pixels[top : top + height, left : left + width], out, head.orientation)

    whole = Whole(**vars(image(size=EDGE, crop='random')))
    return epochs(loader_of(rows_of(own.parent / 'mmpipe_large'), batch, decode={'image': whole}))


PEERS = {
    'mmpipe': Peer(title='mmpipe', data='decoded', prepare=prepare_rows, open=open_rows),
    'fragmented': Peer(
        title='mmpipe, 100 deltas and 10 % deleted', data='decoded', prepare=prepare_fragmented, open=open_noted,
        settings=({'which': 'fragmented'},),
    ),
    'compacted': Peer(
        title='mmpipe, the same compacted', data='decoded', open=open_noted, settings=({'which': 'compacted'},),
        reads='fragmented',
    ),
    'mmpipe_photos': Peer(
        title='mmpipe', data='photos', prepare=prepare_photos, open=open_photos, batches=(64,)
    ),
    'mmpipe_large': Peer(
        title='mmpipe', data='large', prepare=prepare_photos, open=open_photos, batches=(32,)
    ),
    'mmpipe_large_whole': Peer(
        title='mmpipe, whole photos decoded', data='large', open=open_large_whole, batches=(32,), reads='mmpipe_large'
    ),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Measure:
    """Something else that takes part in the rounds.

    Args:
        run: (folder of the decoded rows, folder of its own, seconds that it should take at least) to figures.
        prepare: (folder of all data, folder of its own, rows of its own) writes what it needs.
        fresh: whether each round is a process of its own.
    """

    run: Callable[[Path, Path, float], Measured]
    prepare: Callable[[Path, Path, int], None] | None = None
    fresh: bool = False


def copying(data: Path, own: Path, least_s: float) -> Measured:
    """Images/s that two threads copy to memory they have used before, in pieces of a batch: the better size."""
    images = np.array(Decoded(data).images)
    halves = np.array_split(images, THREADS)

    def copy(half: np.ndarray, slot: np.ndarray) -> None:
        for start in range(0, len(half) - len(slot) + 1, len(slot)):
            np.copyto(slot, half[start : start + len(slot)])

    figures: Measured = {}
    with ThreadPoolExecutor(THREADS) as threads:
        for batch in (64, 256):
            size = min(batch, len(halves[-1]))
            slots = [np.zeros((size, *SHAPE), np.uint8) for _ in halves]
            copied, seconds = 0, 0.0
            while seconds < least_s:
                started = time.perf_counter()
                list(threads.map(copy, halves, slots))
                seconds += time.perf_counter() - started
                copied += sum(len(half) // size * size for half in halves)
            figures[f'memcpy_b{batch}'] = (copied / seconds, 'images/s')
    figures['memcpy'] = (max(value for value, _ in figures.values()), 'images/s')
    return figures


class Gather:
    """What `BatchTask` does of a batch of images, without all that belongs to it: the same pieces, and no more."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def begin(self, request: Any, allocate: Any, *, parts: int = 1) -> tuple[list[Any], Any]:
        from mmpipe.data.batch import PIECE_BYTES

        positions = request.positions
        out = allocate((len(positions), *SHAPE), 'uint8')
        count = max(1, min(parts, out.nbytes // PIECE_BYTES))
        bounds = [len(positions) * i // count for i in range(count + 1)]

        def fill(start: int, stop: int) -> None:
            self.rows.fill('image', positions[start:stop], out[start:stop])

        return [partial(fill, start, stop) for start, stop in pairwise(bounds)], lambda: {'image': out}


def bare_epoch(reader: Any, positions: list[np.ndarray]) -> float:
    """Seconds of the gather alone, by the same threads into the same lent memory, of batches that are given."""
    import torch

    from mmpipe.data.batch import Request

    started, waiting = time.perf_counter(), deque(positions)
    while waiting or reader.pending:
        while waiting and reader.pending < AHEAD:
            reader.submit(Request(waiting.popleft()))
        torch.from_numpy(reader.next()['image'])
    return time.perf_counter() - started


def whole_epoch(loader: Any) -> float:
    """Seconds of an epoch of the loader, with its state after each batch."""
    started = time.perf_counter()
    for _ in loader:
        loader.state_dict()
    return time.perf_counter() - started


def planned(loader: Any, epoch: int) -> float:
    """Seconds of an epoch's order, the parts of ranks, keys, masks and states alone, in one thread."""
    started = time.perf_counter()
    for step in loader.batches.steps(epoch):
        loader.rows.keys[step.positions].tolist()
        masks = {name: np.ones(len(step.positions), dtype=bool) for name in loader.fields}
        {name: np.flatnonzero(mask) for name, mask in masks.items()}
        loader.state_dict()
    return time.perf_counter() - started


def overhead(data: Path, own: Path, least_s: float) -> Measured:
    """What order, keys, masks and state take of an epoch, and what a whole epoch takes beside its gather alone.

    Epochs of all three take turns.
    """
    rows = rows_of(own.parent / 'mmpipe')
    figures: Measured = {}
    for batch in (64, 256):
        over_bare, planning = turns_of(rows, batch, least_s)
        figures[f'order_overhead_b{batch}'] = (planning, 'of an epoch')
        figures[f'whole_over_gather_b{batch}'] = (over_bare, 'ratio')
    return figures


def turns_of(rows: Any, batch: int, least_s: float) -> tuple[float, float]:
    """Seconds of a whole epoch over those of its gather alone, and of planning it alone: medians of many turns."""
    from mmpipe.data.leases import Leases
    from mmpipe.data.threads import ThreadReader

    loader = loader_of(rows, batch)
    reader = ThreadReader(Gather(rows), threads=loader.num_workers, allocate=Leases())
    random = np.random.default_rng(0)
    found: list[tuple[float, float, float]] = []
    deadline = time.perf_counter() + TURNS_S * least_s
    while time.perf_counter() < deadline or len(found) < 5:
        order = random.permutation(len(rows))
        positions = [order[start : start + batch] for start in range(0, len(order), batch)]
        if len(found) % 2:
            bare, whole = bare_epoch(reader, positions), whole_epoch(loader)
        else:
            whole, bare = whole_epoch(loader), bare_epoch(reader, positions)
        found.append((bare, whole, planned(loader, len(found))))
    reader.close()
    bare, whole, alone = np.array(found[1:]).T  # the first ones touch their memory
    return float(np.median(whole / bare)), float(np.median(alone / whole))


def prepare_many(data: Path, own: Path, count: int) -> None:
    random = np.random.default_rng(3)
    keys = np.arange(count)
    blocks = (
        block_of(part, random.integers(0, 256, (len(part), *MANY_SHAPE), np.uint8), part % len(WORDS))
        for part in np.array_split(keys, -(-count // 5000))
    )
    write(own, fields_of('tensor', MANY_SHAPE), blocks)


def first_batch(data: Path, own: Path, least_s: float) -> Measured:
    """Seconds from before the loader is made to its first batch of 256, in a process that has just imported all."""
    import mmpipe as mm
    import mmpipe.data.loader
    from mmpipe.shards import open_snapshot

    for path in own.rglob('*.arrow'):
        path.read_bytes()  # from the page cache, as all other loaders read
    before = time.perf_counter()
    rows = open_snapshot(own).split('train')
    started = time.perf_counter()
    loader = mm.DataLoader(rows, batch_size=256, shuffle=True, seed=SEED, device='cpu', num_workers='auto')
    batch = next(iter(loader))
    ended = time.perf_counter()
    if tuple(batch['image'].shape) != (min(256, len(rows)), *MANY_SHAPE):
        raise ValueError(f'the first batch has shape {tuple(batch["image"].shape)}')
    return {'first_batch_s': (ended - started, 's'), 'first_batch_with_open_s': (ended - before, 's')}


MEASURES = {
    'memcpy': Measure(run=copying),
    'order': Measure(run=overhead),
    'first_batch': Measure(run=first_batch, prepare=prepare_many, fresh=True),
}
