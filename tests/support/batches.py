"""Comparing batches."""

from __future__ import annotations

from typing import Any

import torch


def same_batch(a: Any, b: Any) -> bool:
    """Whether two batches hold the same, to the bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same_batch(a[name], b[name]) for name in a)
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    return a == b
