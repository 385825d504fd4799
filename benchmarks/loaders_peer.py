"""What a loader is to `loaders.py`: how its files are written, and how an epoch of batches comes out of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Batch = tuple[Any, Any, Any]
"""(uint8 images `[B, ...]`, labels `[B]`, keys `[B]`), on the CPU; numpy, torch or lists."""
Epoch = Callable[[int], Iterator[Batch]]
"""Batches of the epoch of a number."""
Setting = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Peer:
    """One loader, over one kind of data.

    Args:
        title: as plots and tables name it.
        data: 'decoded', 'photos' or 'large': folder of what it loads.
        open: (folder of the data, folder of its own files, batch size, **setting) to the epochs.
        prepare: (folder of the data, folder of its own files) writes its files; None where it reads the data as it is.
        settings: what is tried; the fastest takes part.
        batches: sizes that are measured.
        shuffle: how well it shuffles, in a word.
        package: distribution whose version is kept.
        streaming: whether it is one of those that stream from their own format.
        reads: name of another loader whose files it reads.
        owned: whether a batch stays as it is while others are loaded.
    """

    title: str
    data: str
    open: Callable[..., Epoch]
    prepare: Callable[[Path, Path], None] | None = None
    settings: tuple[Setting, ...] = ({},)
    batches: tuple[int, ...] = (64, 256)
    shuffle: str = 'whole epoch'
    package: str = ''
    streaming: bool = False
    reads: str = ''
    owned: bool = True


WORKERS = ({'workers': 0}, {'workers': 2})
