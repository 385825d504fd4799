"""Which split a row belongs to: a function of its group key alone, so new data never moves old rows."""

from __future__ import annotations

import hashlib

import pixeltable as pxt
import pixeltable.type_system as ts

from mmpipe.errors import ConfigError
from mmpipe.functions.counting import counted


@pxt.udf
@counted
def split_of(key: str, *, val: float = 0.1, test: float = 0.1, seed: int = 0) -> str:
    """The split of all rows with this group key.

    The key is hashed (BLAKE2b, RFC 7693) to a number in [0, 1): below `test` is 'test', the next `val` is 'val', the
    rest 'train'. Shares hold on average over many keys. Raising `val` moves rows from train to val only, never into
    test. Pass the key of the group that must stay together (a series, a patient, near duplicates), not the row's own.

    Args:
        key: group key; a null key gives a null split.
        val: share of keys for validation, in [0, 1].
        test: share of keys for test, in [0, 1].
        seed: any integer; another seed is another, independent split.

    Returns:
        'train', 'val' or 'test'.

    Raises:
        ConfigError: the shares are negative or add up to more than 1; raised when the column is declared.

    >>> split_of.py_fn('sku-17'), split_of.py_fn('sku-17', seed=1)
    ('val', 'train')
    >>> [split_of.py_fn(f'sku-{i}') for i in range(1000)].count('test')
    108
    """
    digest = hashlib.blake2b(f'{seed}:{key}'.encode(), digest_size=8).digest()
    place = int.from_bytes(digest, 'big') / 2**64
    return 'test' if place < test else 'val' if place < test + val else 'train'


@split_of.conditional_return_type
def _(val: float, test: float) -> ts.ColumnType:
    if val < 0 or test < 0 or val + test > 1:
        raise ConfigError(f'split_of(val={val}, test={test}): shares must be at least 0 and add up to at most 1.')
    return ts.StringType()
