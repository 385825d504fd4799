"""What an epoch visits, as pure functions of (seed, epoch, row keys): one flat sequence, cut into batches elsewhere."""

from __future__ import annotations

from mmpipe.data.sampling.contract import Cutting, Sampled, Sampling, Selection
from mmpipe.data.sampling.whole import Sequential, Shuffle

__all__ = ['Cutting', 'Sampled', 'Sampling', 'Selection', 'Sequential', 'Shuffle']
