"""Batches on their way to a CUDA device: each crosses on a stream of its own while the step before it computes.

Not yet run: no test machine had a CUDA device (`tests/data/test_loader.py`, marked gpu).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from mmpipe.data.device import Transfer, to_device


def crossed(
    batches: Iterable[tuple[Any, dict[str, Any]]], device: torch.device, *, on_transfer: Transfer | None = None
) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Batches on the device, each sent while the one before it is used.

    Args:
        batches: (anything, batch in page-locked memory).
        device: a CUDA device.
        on_transfer: told of every tensor that crosses.
    """
    stream = torch.cuda.Stream(device)
    sent: deque[tuple[Any, dict[str, Any], torch.cuda.Event]] = deque()
    reading: deque[tuple[torch.cuda.Event, dict[str, Any]]] = deque()  # their memory is lent until they are across

    def take() -> tuple[Any, dict[str, Any]]:
        what, there, event = sent.popleft()
        current = torch.cuda.current_stream(device)
        current.wait_event(event)
        for tensor in _tensors(there):
            tensor.record_stream(current)  # else its memory could be used again by a copy before this stream is done
        while reading and reading[0][0].query():
            reading.popleft()
        return what, there

    try:
        for what, batch in batches:
            with torch.cuda.stream(stream):
                there = to_device(batch, device, non_blocking=True, on_transfer=on_transfer)
                event = torch.cuda.Event()
                event.record(stream)
            sent.append((what, there, event))
            reading.append((event, batch))
            if len(sent) > 1:
                yield take()
        while sent:
            yield take()
    finally:
        stream.synchronize()  # before the memory that it still reads is lent again


def _tensors(batch: Any) -> Iterator[torch.Tensor]:
    if isinstance(batch, torch.Tensor):
        yield batch
    elif isinstance(batch, dict):
        for value in batch.values():
            yield from _tensors(value)
