"""What an epoch visits, as pure functions of (seed, epoch, row keys): one flat sequence, cut into batches elsewhere."""

from __future__ import annotations

from mmpipe.data.sampling.blocks import BlockShuffle, Mixing, mixing
from mmpipe.data.sampling.buckets import Buckets, padding_share
from mmpipe.data.sampling.contract import Cutting, Sampled, Sampling, Selection, sequence_digest
from mmpipe.data.sampling.mixture import Mixture, mixture
from mmpipe.data.sampling.since import Since, since
from mmpipe.data.sampling.weighted import Balanced, Weighted
from mmpipe.data.sampling.whole import Sequential, Shuffle

__all__ = [
    'Balanced', 'BlockShuffle', 'Buckets', 'Cutting', 'Mixing', 'Mixture', 'Sampled', 'Sampling', 'Selection',
    'Sequential', 'Shuffle', 'Since', 'Weighted', 'mixing', 'mixture', 'padding_share', 'sequence_digest', 'since',
]  # fmt: skip
