"""Rows of one snapshot dealt unevenly to clients, for experiments.

Yurochkin et al. 2019, "Bayesian Nonparametric Federated Learning of Neural Networks", section 5: of each class, the
shares of the clients are drawn from a Dirichlet distribution; the smaller alpha, the fewer clients have a class. Li et
al. 2022, "Federated Learning on Non-IID Data Silos", call this distribution-based label skew.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmpipe.errors import ConfigError
from mmpipe.shards import Block, Field, Rows, write_snapshot

TRIES = 100


def split_dirichlet(rows: Rows, label: str, *, clients: int, alpha: float, seed: int = 0, least: int = 1) -> list[Rows]:
    """Deal rows to clients, each class by other shares.

    Rows of each split are dealt by the same shares, so that a client's validation rows are like its training rows. Rows
    without the label count as a class of their own. The same rows, seed and alpha give the same parts, in any order of
    the rows.

    Args:
        rows: of any snapshot.
        label: a label, scalar or string field.
        clients: how many parts.
        alpha: of the Dirichlet distribution: 0.1 leaves most clients without most classes, 1000 hardly differs from
            equal shares.
        seed: of the draws.
        least: rows that every client is to have of every split; draws that give less are made again, as in Li et al.

    Returns:
        One selection of rows per client; every row is in one.

    Raises:
        ConfigError: an argument that cannot work, or no draw in a hundred gave every client enough rows.
        DataError: the field is of another kind.

    >>> from mmpipe.data.collate import example_rows
    >>> sorted(len(part) for part in split_dirichlet(example_rows(), 'kind', clients=2, alpha=0.5))
    [1, 1]
    """
    if clients < 1 or not alpha > 0 or least < 0:
        raise ConfigError(
            f'split_dirichlet(clients={clients}, alpha={alpha}, least={least}): positive numbers are meant.'
        )
    classes = np.array(['' if word is None else f'={word}' for word in rows.words(label)], dtype=object)
    splits = rows.system('_split')
    by_hash = np.argsort(rows.hashes, kind='stable')  # not by the place, which compaction may change
    draw = np.random.default_rng(seed)
    for _ in range(TRIES):
        owner = np.empty(len(rows), dtype=np.int64)
        for each in sorted(set(classes)):
            shares = draw.dirichlet(np.full(clients, alpha))
            for split in sorted(set(splits)):
                members = by_hash[(classes[by_hash] == each) & (splits[by_hash] == split)]
                draw.shuffle(members)
                # Where each client's share ends; a small class goes to whom its rows fall.
                ends = np.cumsum(shares) * len(members)
                owner[members] = np.minimum(np.searchsorted(ends, np.arange(len(members)) + 0.5), clients - 1)
        counts = [np.bincount(owner[splits == split], minlength=clients) for split in set(splits)]
        if all(count.min() >= least for count in counts):
            return [rows.take(np.flatnonzero(owner == client)) for client in range(clients)]
    raise ConfigError(
        f'split_dirichlet: in {TRIES} draws of {len(rows)} rows, never had each of {clients} clients {least} rows of '
        f'every split. Use a larger alpha ({alpha} now), fewer clients or a smaller least=.'
    )


def write_parts(parts: Sequence[Rows], root: str | os.PathLike[str]) -> list[str]:
    """Make a snapshot root of each part, as if each client had its own data.

    Args:
        parts: of `split_dirichlet`.
        root: folder; the parts are `client-0`, `client-1`, ... in it.

    Returns:
        The roots.

    >>> import tempfile
    >>> from mmpipe.data.collate import example_rows
    >>> from mmpipe.shards import open_snapshot
    >>> roots = write_parts(split_dirichlet(example_rows(), 'kind', clients=2, alpha=1.0), tempfile.mkdtemp())
    >>> sum(len(open_snapshot(each)) for each in roots)
    2
    """
    roots = []
    for number, rows in enumerate(parts):
        place = Path(root) / f'client-{number}'
        fields = list(rows.fields.values())
        columns = {field.name: _plain(rows, field) for field in fields}
        splits = rows.system('_split').tolist()
        write_snapshot(place, fields, Block(keys=rows.keys.tolist(), columns=columns, splits=splits))
        roots.append(str(place))
    return roots


def _plain(rows: Rows, field: Field) -> list[Any]:
    """Values as `write_snapshot` takes them."""
    if field.kind in ('label', 'string', 'scalar'):
        return rows.words(field.name)
    values, valid = rows.read(field.name)
    if field.kind == 'labels':
        words = field.vocabulary or ()
        values = [[words[at] for at in np.flatnonzero(each)] for each in values]
    return [value if ok else None for value, ok in zip(values, valid, strict=True)]
