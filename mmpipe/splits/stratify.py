"""Fill the split column of a table, group by group; what a group was given once is kept in a table of ours."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmpipe.errors import ConfigError, SchemaError, StoreError
from mmpipe.ledger import keeping
from mmpipe.splits.assign import assign
from mmpipe.store import (
    base_of,
    column_types,
    computed_columns,
    path_of,
    primary_key,
    replace_rows,
    start,
    table_of,
    told_plainly,
    update_rows,
    writer_lock,
)

DIRECTORY = 'mmpipe'
TABLE = f'{DIRECTORY}/splits'
CHUNK_ROWS = 1024


@dataclass(frozen=True, kw_only=True)
class StratifyReport:
    """What `stratify` did.

    Args:
        table: path of the table.
        groups: groups that were given a split, for good.
        written: rows whose split was filled in.
        rows: split to label to rows, of the whole table; '' counts rows without a label.
        without_group: rows whose group is null; they have no split.
    """

    table: str
    groups: int
    written: int
    rows: Mapping[str, Mapping[str, int]]
    without_group: int = 0

    def __str__(self) -> str:
        line = f'{self.table}: {self.groups} new groups, {self.written} rows written'
        for split, labels in self.rows.items():
            total = sum(labels.values())
            shares = ', '.join(f'{label or "(none)"} {count / total:.2f}' for label, count in sorted(labels.items()))
            line += f'\n  {split} {total}: {shares}'
        return line + (f'\n  {self.without_group} rows without a group have no split' if self.without_group else '')


@told_plainly()
def stratify(
    table: Any, *, group: str, by: str, val: float = 0.1, test: float = 0.1, seed: int = 0, column: str = 'split'
) -> StratifyReport:
    """Give new groups a split, so that every split gets its share of each label; groups that have one never move.

    `split_of` hashes a key, so its shares hold only on average over many groups, and a rare label has few. This one
    looks at the labels, and has to remember: each group's split is kept in the Pixeltable table `mmpipe/splits`, under
    the path of the table, also when all its rows are deleted. Run it after `mm.ingest` and before `mm.snapshot`, which
    takes the column like any other split; in a pipeline, as the first line of `training_view()`. Labels that change
    later move nothing.

    Args:
        table: bound table class, `pxt.Table` or path, with a primary key.
        group: column that names what must stay together; computed ones too.
        by: column with the label to balance: a string, number or boolean, or JSON with a list of words.
        val: share of rows for validation, in [0, 1].
        test: share of rows for test, in [0, 1].
        seed: any integer; decides between groups of one size.
        column: the column to fill, declared as `split: pxt.String | None`. What it holds already stays, and counts as
            the split of the whole group.

    Returns:
        Counts of what was written, and of labels per split.

    Raises:
        ConfigError: shares that are negative or add up to more than 1.
        SchemaError: a view, no primary key, or a column that is not there or of another type.
        StoreError: rows of one group have different splits.

    >>> report = mm.stratify(Items, group='series', by='category', val=0.15, test=0.15)  # doctest: +SKIP
    >>> mm.stratify(Items, group='series', by='category', val=0.15, test=0.15).written  # doctest: +SKIP
    0
    """
    if val < 0 or test < 0 or val + test > 1:
        raise ConfigError(f'stratify(val={val}, test={test}): shares must be at least 0 and add up to at most 1.')
    target = table_of(table)
    path = path_of(target)
    _check(target, path, group, by, column)
    with writer_lock(f'table:{path}'), keeping(target) as book:
        names = primary_key(target)
        chosen = {'g': group, 'l': by, 's': column, **{f'k{i}': name for i, name in enumerate(names)}}
        rows = list(target.select(**{short: getattr(target, name) for short, name in chosen.items()}).collect())
        grouped: dict[str, Counter[str]] = defaultdict(Counter)
        for row in rows:
            if row['g'] is not None:
                grouped[str(row['g'])].update(_labels(row['l']))
        known = _assigned(path)
        given = _given(path, rows, known)
        shares = {'train': 1 - val - test, 'val': val, 'test': test}
        made = given | assign(grouped, known | given, shares, seed=seed)
        _keep(path, made)  # before the rows: a crash between the two leaves rows to fill in, and no group to move
        splits = known | made
        empty = [row for row in rows if row['s'] is None and row['g'] is not None]
        for part in _chunks(empty):
            book.record(
                update_rows(
                    target,
                    [{**{n: r[f'k{i}'] for i, n in enumerate(names)}, column: splits[str(r['g'])]} for r in part],
                )
            )
            book.keep()
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        if row['g'] is not None:
            counts[splits[str(row['g'])]].update(_labels(row['l']))
    return StratifyReport(
        table=path, groups=len(made), written=len(empty), rows={name: dict(counts[name]) for name in sorted(counts)},
        without_group=sum(row['g'] is None for row in rows),
    )  # fmt: skip


def _chunks(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    return (items[start : start + CHUNK_ROWS] for start in range(0, len(items), CHUNK_ROWS))


def _check(target: Any, path: str, group: str, by: str, column: str) -> None:
    if base_of(target) is not target:
        raise SchemaError(f"'{path}' is a view: splits are written to its base table '{path_of(base_of(target))}'")
    if not primary_key(target):
        raise SchemaError(f"'{path}' has no primary key, by which its rows are written: declare one")
    types = column_types(target)
    have = {**types, **dict.fromkeys(computed_columns(target))}
    for name in (group, by, column):
        if name not in have:
            raise SchemaError(f"'{path}' has no stored column '{name}'; it has {', '.join(have)}. Name one of these.")
    kind = types.get(column)
    if kind is None or not kind.is_string_type() or not kind.nullable:
        raise SchemaError(f"'{path}.{column}' is to be filled with splits: declare it as {column}: pxt.String | None")


def _labels(value: Any) -> Counter[str]:
    """The labels of one row; a row of several counts once for each."""
    words = value if isinstance(value, list) else [value]
    return Counter('' if word is None else str(word) for word in (words or [None]))


def _given(path: str, rows: Sequence[Mapping[str, Any]], known: Mapping[str, str]) -> dict[str, str]:
    """Splits that rows hold and that are not recorded, as from a manifest or from before."""
    found: dict[str, str] = {}
    for row in rows:
        if row['g'] is None or row['s'] is None:
            continue
        group = str(row['g'])
        before = known.get(group) or found.setdefault(group, row['s'])
        if before != row['s']:
            raise StoreError(
                f"'{path}': group '{group}' belongs to {before}, and one of its rows has the split '{row['s']}'. A "
                f'group stays whole and never moves: set that row to null, or to {before}'
            )
    return found


def _table(*, create: bool) -> Any:
    pxt = start()
    table = pxt.get_table(TABLE, if_not_exists='ignore')
    if table is None and create:
        pxt.create_dir(DIRECTORY, if_exists='ignore')
        columns = dict.fromkeys(('table_path', 'group_value', 'split'), pxt.String)
        table = pxt.create_table(
            TABLE, {'id': {'type': pxt.String, 'primary_key': True}, **columns}, if_exists='ignore'
        )
    return table


def _assigned(path: str) -> dict[str, str]:
    store = _table(create=False)
    if store is None:
        return {}
    found = store.where(store.table_path == path).select(group=store.group_value, split=store.split).collect()
    return {row['group']: row['split'] for row in found}


def _keep(path: str, made: Mapping[str, str]) -> None:
    for part in _chunks(sorted(made.items())):
        values = [{'id': _identity(path, g), 'table_path': path, 'group_value': g, 'split': s} for g, s in part]
        replace_rows(_table(create=True), values, [])


def _identity(path: str, group: str) -> str:
    return hashlib.blake2b(f'{path}\x00{group}'.encode(), digest_size=16).hexdigest()
