"""Files that change between their ingest and the snapshot that reads them, or while it does."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import media
import numpy as np
import PIL.Image
import pixeltable as pxt
import pytest
from schemas import write_csv
from snapshots import content, files

import mmpipe as mm
import mmpipe.snapshots.read as read_module
from mmpipe.errors import SourceChangedError
from mmpipe.functions import pixels
from mmpipe.functions.image import square_array

KEYS = ('one', 'two', 'six')


@pytest.fixture(scope='module')
def table(pixeltable_home: Path) -> Any:
    """Photos with a computed column; the tests share it, since declaring it takes most of a second."""
    pxt.drop_dir('t_changed', force=True, if_not_exists='ignore')
    Tables = pxt.model_base()

    class Items(Tables, name='items'):
        key = pxt.Column(type=pxt.String, primary_key=True)
        photo: pxt.Image | None
        origin: pxt.Json | None
        square = pixels(photo, size=8)  # noqa: F821

    mm.apply(mm.plan(Tables, 't_changed'))
    yield pxt.get_table('t_changed/items')
    pxt.drop_dir('t_changed', force=True)


@pytest.fixture
def items(table: Any, tmp_path: Path) -> SimpleNamespace:
    """Three rows that were ingested; `freeze` writes a snapshot with their pixels and the bytes of their files."""
    table.delete()
    folder = tmp_path / 'source'
    folder.mkdir()
    for key in KEYS:
        media.photo(folder / f'{key}.png', seed=KEYS.index(key))
    manifest = write_csv(folder / 'items.csv', [{'key': key, 'photo': f'{key}.png'} for key in KEYS])

    def ingest() -> Any:
        return mm.ingest(table, mm.sources.rows(manifest))

    def freeze(**options: Any) -> Any:
        fields = {'photo': mm.field.image(table.photo, size=8), 'file': mm.field.file(table.photo), 'sq': table.square}
        return mm.snapshot(table, **{'root': tmp_path / 'shards', 'fields': fields, **options})

    assert ingest().inserted == 3
    return SimpleNamespace(
        table=table, folder=folder, two=folder / 'two.png', root=tmp_path / 'shards', ingest=ingest, freeze=freeze
    )


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def overwritten_in_disguise(path: Path) -> None:
    """As many bytes, and the times of before: as with a copy that keeps times."""
    stat, old = path.stat(), path.read_bytes()
    path.write_bytes(old[:-1] + bytes([old[-1] ^ 1]))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)


def link_to_another(path: Path) -> None:
    other = media.photo(path.parents[1] / 'elsewhere.png', seed=9)
    path.unlink()
    path.symlink_to(other)


def link_to_nothing(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.parents[1] / 'nothing.png')


def folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ('change', 'said'),
    [
        (cut, 'has other content'), (overwritten_in_disguise, 'has other content'),
        (link_to_another, 'has other content'), (link_to_nothing, 'is gone'), (folder_instead, 'is gone'),
    ],
)  # fmt: skip
def test_a_file_that_is_no_longer_what_was_ingested_is_refused_by_row(
    items: SimpleNamespace, change: Callable[[Path], None], said: str
) -> None:
    change(items.two)
    with pytest.raises(SourceChangedError, match=rf"row 'two', column photo: '.*two\.png' {said}.*the snapshot again"):
        items.freeze()
    assert files(items.root) == {}
    media.photo(items.folder / 'new.png', seed=7)
    if items.two.is_dir():
        items.two.rmdir()
    os.replace(items.folder / 'new.png', items.two)
    assert items.ingest().replaced == 1
    assert len(items.freeze().snapshot) == 3


def test_a_link_to_the_same_bytes_is_the_same_file_until_it_is_ingested_from_outside_its_folder(
    items: SimpleNamespace,
) -> None:
    moved = items.folder.parent / 'moved.png'
    os.replace(items.two, moved)
    items.two.symlink_to(moved)
    data = dict(zip(*keys_and(items.freeze().snapshot, 'file'), strict=True))
    assert data['two'] == moved.read_bytes()
    report = items.ingest()
    assert (report.quarantined, report.replaced) == (1, 0)
    assert 'lies outside' in report.bad[0].reason


def test_a_file_that_a_snapshot_holds_already_may_change_and_go(items: SimpleNamespace) -> None:
    first = items.freeze().snapshot
    before = content(first)
    cut(items.two)
    assert items.freeze().snapshot.id == first.id
    media.photo(items.folder / 'new.png', seed=7)
    rows = [{'key': key, 'photo': f'{key}.png'} for key in ('new', 'one')]
    mm.ingest(items.table, mm.sources.rows(write_csv(items.folder / 'more.csv', rows)))
    second = content(items.freeze().snapshot)
    assert {key: second[key] for key in KEYS} == before
    with pytest.raises(SourceChangedError, match="row 'two'"):
        items.freeze(full=True)


def keys_and(snapshot: Any, field: str) -> tuple[list, list]:
    """Keys and values of a snapshot."""
    rows = snapshot.rows()
    return rows.keys.tolist(), list(rows.read(field)[0])


@pytest.mark.parametrize('function', ['check_sources', '_encoded'])
def test_a_file_that_is_overwritten_while_a_snapshot_reads_is_not_frozen(
    items: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    was, real = items.two.read_bytes(), getattr(read_module, function)

    def disturbed(*args: Any) -> Any:
        result = real(*args) if function == 'check_sources' else None  # behind the check, or before the first value
        if items.two.read_bytes() == was:
            media.photo(items.two, seed=99)
        return result if function == 'check_sources' else real(*args)

    monkeypatch.setattr(read_module, function, disturbed)
    with pytest.raises(SourceChangedError, match=r"row 'two', column photo: .*has other content"):
        items.freeze()
    assert items.two.read_bytes() != was
    assert not (items.root / 'LATEST').exists()


def test_after_an_overwrite_while_a_snapshot_read_the_next_ones_hold_what_is_there(
    items: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = read_module._encoded

    def disturbed(*args: Any) -> Any:
        media.photo(items.two, seed=99)
        return real(*args)

    monkeypatch.setattr(read_module, '_encoded', disturbed)
    with contextlib.suppress(SourceChangedError):
        items.freeze()
    monkeypatch.undo()
    assert items.ingest().replaced == 1
    snapshot = items.freeze().snapshot
    for key, data in zip(*keys_and(snapshot, 'file'), strict=True):
        assert data == (items.folder / f'{key}.png').read_bytes()
    for key, image in zip(*keys_and(snapshot, 'photo'), strict=True):
        small = square_array(PIL.Image.open(items.folder / f'{key}.png'), size=8, fit='crop')
        np.testing.assert_array_equal(image, small)
