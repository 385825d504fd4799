"""Remove what no kept snapshot needs: old snapshots, replaced shards, and what a killed writer left.

A snapshot that is being written has files that nothing refers to yet. They are younger than the grace period: a file
that is written is new, and one that is there already and taken again is made young (`mmpipe.shards.root.Root.renew`).
Heads go first, so a collection that is stopped leaves no snapshot that lacks a part.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mmpipe.errors import ConfigError
from mmpipe.shards import manifest as manifests
from mmpipe.shards.root import Entry, Root, root_of

GRACE_S = 3600.0
OURS = re.compile(r'[0-9a-f]{32}\.arrow|[0-9a-f]{16}\.json|\..+\.tmp')


@dataclass(frozen=True, kw_only=True)
class Collected:
    """What a collection removed, or would remove.

    Args:
        root: directory of the snapshots.
        kept: ids of the snapshots that stay, newest first.
        removed: ids of the snapshots that can no longer be opened, newest first.
        files: paths of all removed files, relative to the root.
        bytes: their size.
        dry_run: whether they are all still there.
    """

    root: str
    kept: tuple[str, ...]
    removed: tuple[str, ...]
    files: tuple[str, ...]
    bytes: int
    dry_run: bool

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    def __str__(self) -> str:
        what = 'would remove' if self.dry_run else 'removed'
        return (
            f'{self.root}: {what} {len(self.files):,} files, {self.bytes / 1e6:.1f} MB, and with them '
            f'{len(self.removed)} snapshots; {len(self.kept)} kept'
        )


def collect(
    root: str | Path | Root,
    *,
    keep: int = 1,
    also: Collection[str] = (),
    runs: str | Path | None = None,
    grace_s: float = GRACE_S,
    dry_run: bool = False,
) -> Collected:
    """Remove the shards, masks, manifests and left-over files of a root that no kept snapshot needs.

    Kept are the current snapshot, the newest ones, those that a run of the project was trained on, and whatever is
    younger than the grace period. Files that mmpipe did not write are left alone.

    Args:
        root: directory or URL of the snapshots.
        keep: how many of the newest snapshots stay, the current one among them or not.
        also: ids of further snapshots that stay.
        runs: directory of the runs; the project's when None. Each of them, a trial of a study too, names the snapshot
            it was trained on. Runs of other machines are not seen: name their snapshots in `also`.
        grace_s: age in seconds below which nothing is removed: longer than it takes to write a snapshot, unless writers
            are held off, as `mmpipe gc` does where there is Pixeltable. On an object store it is the store's clock that
            says when a file was written, and this machine's that says how long that is ago.
        dry_run: only say what would be removed.

    Returns:
        What was removed.

    Raises:
        ConfigError: a negative `keep`.
        ShardError: a damaged manifest. Nothing is removed then, since nobody can tell what it needs.
        RunError: a damaged run record; likewise.

    >>> import tempfile
    >>> from mmpipe.shards import Block, Field, write_snapshot
    >>> fields, root = [Field(name='price', kind='scalar', dtype='float32')], tempfile.mkdtemp()
    >>> _ = write_snapshot(root, fields, Block(keys=['a'], columns={'price': [1.0]}))
    >>> _ = write_snapshot(root, fields, Block(keys=['a'], columns={'price': [2.0]}))
    >>> len(collect(root, runs=root).files), len(collect(root, runs=root, grace_s=0).removed)
    (0, 1)
    """
    if keep < 0:
        raise ConfigError(f'keep={keep}: give the number of newest snapshots to keep, 0 for the current one alone')
    root = root_of(root)
    latest = manifests.latest_id(root)
    heads = manifests.load_heads(root)
    there = {folder: root.entries(folder) for folder in root.folders}
    newest = sorted(heads, key=lambda identity: heads[identity]['created'], reverse=True)
    written = {identity: there['manifests'].get(manifests.head_path(identity)) for identity in heads}
    young = {identity for identity, entry in written.items() if not _older(entry, grace_s)}
    kept = {*newest[:keep], *also, *_named_by_runs(runs), *young} & heads.keys() | ({latest} if latest else set())
    needed = set().union(*(manifests.files_of(root, identity) for identity in kept))
    removed: list[str] = []
    size = 0
    for group in _heads_first(there):
        ours = [name for name in group if OURS.fullmatch(name.rpartition('/')[2])]
        names = [name for name in ours if name not in needed and _older(group[name], grace_s)]
        gone = names if dry_run else root.remove(names, grace_s=grace_s)
        removed += gone
        size += sum(group[name].size for name in gone)
    return Collected(
        root=root.text,
        kept=tuple(identity for identity in newest if identity in kept),
        removed=tuple(identity for identity in newest if manifests.head_path(identity) in removed),
        files=tuple(removed),
        bytes=size,
        dry_run=dry_run,
    )


def _heads_first(there: Mapping[str, Mapping[str, Entry]]) -> Iterator[Mapping[str, Entry]]:
    """The files of a root in the order in which they are removed."""
    for folder, entries in there.items():
        heads = {name: entry for name, entry in entries.items() if name.endswith('.json')}
        rest = {name: entry for name, entry in entries.items() if name not in heads}
        if folder:
            yield heads
            yield rest
        else:  # right in the root lies the pointer, and what a stopped move of it left
            yield {name: entry for name, entry in rest.items() if name.startswith('.') and name.endswith('.tmp')}


def _older(entry: Entry | None, seconds: float) -> bool:
    return entry is not None and entry.older(seconds)


def _named_by_runs(folder: str | Path | None) -> set[str]:
    """Ids of the snapshots that runs were trained on, whichever root they lay in and however deep a run lies."""
    from mmpipe.home import runs_dir
    from mmpipe.runs import open_run

    found = []
    for place, inside, files in os.walk(folder if folder is not None else runs_dir()):
        if 'run.json' in files:
            found.append(open_run(place).record.get('snapshot'))
            inside.clear()  # a run holds no others; those of a study lie beside its own folder
    return {each['id'] for snapshot in found if snapshot for each in (snapshot, *snapshot.get('parts', {}).values())}
