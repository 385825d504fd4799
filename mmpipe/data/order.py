"""The order of an epoch, and every random number of a sample, as pure functions of (seed, epoch, row key).

Nothing here depends on where a row is stored, on batch size, on the number of ranks or on what was drawn before. So
a run resumes at any step under any world size, and rows that are appended never reorder the old ones:

    hashes            7f.. 03.. c4..          one 64-bit hash per row key
    ^ mix(seed, epoch)                        a salt that differs between epochs
    splitmix64        91.. 5e.. 0a..          a priority per row
    argsort             2    1    0           the order
"""

from __future__ import annotations

import numpy as np

_MASK = (1 << 64) - 1


def splitmix64(values: np.ndarray) -> np.ndarray:
    """A bijection of 64-bit integers whose outputs look random: one step of SplitMix64.

    Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014; constants as in
    Vigna's public-domain https://prng.di.unimi.it/splitmix64.c.

    Args:
        values: uint64 of any shape.

    Returns:
        uint64 of the same shape.

    >>> hex(splitmix64(np.array([0], dtype=np.uint64))[0])
    '0xe220a8397b1dcdaf'
    """
    z = values + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def mix(*numbers: int) -> int:
    """One 64-bit integer made of several, in order; other numbers or another order give another.

    Args:
        numbers: Python integers, taken modulo 2**64.

    Returns:
        An integer in [0, 2**64).

    >>> mix(0, 1) == mix(0, 1), mix(0, 1) == mix(1, 0), mix(3) == mix(3, 0)
    (True, False, False)
    """
    state = 0
    for number in numbers:  # `splitmix64` of one number, which takes Python a tenth of what it takes numpy
        z = ((state ^ (int(number) & _MASK)) + 0x9E3779B97F4A7C15) & _MASK
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
        state = z ^ (z >> 31)
    return state


def epoch_order(hashes: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Positions of the rows in the order in which one epoch visits them.

    Two rows are in the same relative order whatever other rows are there. Rows with equal hashes keep their order.

    Args:
        hashes: uint64 `[N]`, one per row key.
        seed: of the run.
        epoch: from 0.

    Returns:
        int64 `[N]`, a permutation of 0..N-1.

    >>> hashes = np.arange(5, dtype=np.uint64)
    >>> sorted(epoch_order(hashes, seed=0, epoch=0).tolist())
    [0, 1, 2, 3, 4]
    >>> order = epoch_order(np.append(hashes, np.uint64(99)), seed=0, epoch=0)    # one row appended
    >>> (order[order < 5] == epoch_order(hashes, seed=0, epoch=0)).all()
    np.True_
    """
    return np.argsort(priorities(hashes, seed, epoch), kind='stable')


def priorities(hashes: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """What `epoch_order` sorts by: the lower, the earlier.

    Args:
        hashes: uint64 `[N]`, one per row key.
        seed: of the run.
        epoch: from 0.

    Returns:
        uint64 `[N]`. Both steps are bijections of 64-bit integers, so two are equal only where two hashes are.

    >>> hashes = np.arange(5, dtype=np.uint64)
    >>> (np.argsort(priorities(hashes, 0, 0)) == epoch_order(hashes, 0, 0)).all()
    np.True_
    """
    return splitmix64(np.asarray(hashes, dtype=np.uint64) ^ np.uint64(mix(seed, epoch)))


def pass_order(hashes: np.ndarray, seed: int, start: int, count: int) -> np.ndarray:
    """Some draws out of an endless row of passes, each of which visits every row once: draw k is
    `epoch_order(hashes, seed, k // N)[k % N]`.

    Args:
        hashes: uint64 `[N]`, at least one.
        seed: of the run.
        start: number of the first draw, from 0.
        count: how many.

    Returns:
        int64 `[count]` positions of rows.

    >>> hashes = np.arange(3, dtype=np.uint64)
    >>> sorted(pass_order(hashes, 0, start=2, count=4)[1:].tolist())    # the last draw of pass 0, then pass 1
    [0, 1, 2]
    """
    rows = len(hashes)
    first, behind = start // rows, -(-(start + count) // rows)
    # All passes at once, as many may be short: mix(seed, pass) for each, without a loop.
    salts = splitmix64(np.arange(first, behind, dtype=np.uint64) ^ np.uint64(mix(seed)))
    drawn = np.argsort(splitmix64(np.asarray(hashes, dtype=np.uint64) ^ salts[:, None]), axis=1, kind='stable')
    return drawn.reshape(-1)[start - first * rows :][:count]


def uniform(hashes: np.ndarray, seed: int, epoch: int, stream: int) -> np.ndarray:
    """One random number in [0, 1) per row: what an augmentation draws for it in this epoch.

    Args:
        hashes: uint64 `[N]`.
        seed: of the run.
        epoch: from 0.
        stream: which of several independent draws for the same row.

    Returns:
        float32 `[N]`, multiples of 2**-24.

    >>> values = uniform(np.arange(4, dtype=np.uint64), seed=0, epoch=0, stream=0)
    >>> values.dtype, bool((values >= 0).all() and (values < 1).all())
    (dtype('float32'), True)
    """
    # A first tag of its own keeps these numbers apart from epoch_order's, whose rows they would otherwise sort.
    bits = splitmix64(np.asarray(hashes, dtype=np.uint64) ^ np.uint64(mix(0x617567, seed, epoch, stream)))
    return (bits >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)


def rank_slice(count: int, rank: int, world_size: int) -> slice:
    """The part of one global batch that a rank takes: contiguous, sizes differing by one at most, larger ones first.

    Args:
        count: rows in the global batch, which the world size need not divide.
        rank: from 0.
        world_size: number of ranks.

    Returns:
        A slice of the global batch; empty when there are fewer rows than ranks.

    >>> [rank_slice(10, rank, 4) for rank in range(4)]
    [slice(0, 3, None), slice(3, 6, None), slice(6, 8, None), slice(8, 10, None)]
    """
    size, more = divmod(count, world_size)
    start = rank * size + min(rank, more)
    return slice(start, start + size + (rank < more))


def repeats_of(sequence: np.ndarray) -> np.ndarray | None:
    """How many times each position came before in a sequence, so that a sample drawn again is augmented anew.

    Args:
        sequence: int64 positions.

    Returns:
        int64 of the same length; None where no position comes twice.

    >>> repeats_of(np.array([4, 7, 4, 4])), repeats_of(np.array([4, 7]))
    (array([0, 0, 1, 2]), None)
    """
    if np.bincount(sequence).max(initial=0) <= 1:
        return None
    by_position = np.argsort(sequence, kind='stable')
    found = sequence[by_position]
    first = np.ones(len(found), dtype=bool)
    first[1:] = found[1:] != found[:-1]
    places = np.arange(len(found))
    out = np.empty(len(found), dtype=np.int64)
    out[by_position] = places - np.maximum.accumulate(np.where(first, places, 0))
    return out


def sample_hashes(hashes: np.ndarray, repeats: np.ndarray | None) -> np.ndarray:
    """What the random numbers of samples are drawn from: hashes of keys, others where a key comes again in an epoch.

    >>> hashes = np.array([5, 5], dtype=np.uint64)
    >>> sample_hashes(hashes, np.array([0, 1]))[0], sample_hashes(hashes, None).tolist()
    (np.uint64(5), [5, 5])
    """
    if repeats is None:
        return hashes
    return np.where(repeats > 0, splitmix64(hashes + splitmix64(repeats.astype(np.uint64))), hashes)
