"""What a snapshot holds, in a form to compare."""

from __future__ import annotations


def content(snapshot):
    """Key to (split, digest of every field): what a snapshot holds, however it is stored."""
    found = {key: rest for key, *rest in by_rowid(snapshot).values()}
    assert len(found) == len(snapshot)
    splits = snapshot.rows().system('_split')
    assert {name: (splits == name).sum() for name in snapshot.splits} == snapshot.splits
    return found


def by_rowid(snapshot):
    """The store's name of each row to (key, split, digest of every field)."""
    rows = snapshot.rows()
    columns = ['_key', '_split', *(f'_digest.{name}' for name in snapshot.fields)]
    return dict(zip(rows.system('_rowid'), zip(*map(rows.system, columns), strict=True), strict=True))


def files(root):
    """Every file below a folder with its time of modification and its size."""
    found = {path: path.stat() for path in root.rglob('*') if path.is_file()}
    return {str(path.relative_to(root)): (stat.st_mtime_ns, stat.st_size) for path, stat in found.items()}
