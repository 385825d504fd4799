"""What is taken for unchanged at a glance is what a look at everything takes for unchanged."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from types import SimpleNamespace

import PIL.Image
import pixeltable as pxt
import pytest

import mmpipe as mm
from mmpipe.sources import Record, unchanged
from mmpipe.sources import media as media_files
from mmpipe.sources import write as sources_write

COLUMNS = ('caption', 'price', 'vector', 'facts', 'at', 'origin')
VALUES = {
    'caption': ['a cat', 'Größe 😀', '', None],
    'price': [1.5, 2, -0.0, None],
    'vector': [[1, 0.1], [1, 2], None],
    'facts': [{'n': 2**60 + 1}, [], 'text', {'a': {'b': [None, False]}}, None],
    'at': ['2020-01-02T03:04', '2020-01-02T03:04:00.5+07:00', None],
}


@pytest.fixture(scope='module')
def tables(pixeltable_home):
    """Two tables with the same columns."""
    pxt.drop_dir('t_unchanged', force=True, if_not_exists='ignore')
    Tables = pxt.model_base()

    class Glanced(Tables, name='glanced'):
        key = pxt.Column(type=pxt.String, primary_key=True)
        photo: pxt.Image | None
        caption: pxt.String | None
        price: pxt.Float | None
        vector: pxt.Array[(2,), pxt.Float] | None
        facts: pxt.Json | None
        at: pxt.Timestamp | None
        origin: pxt.Json | None

    class Examined(Tables, name='examined'):
        key = pxt.Column(type=pxt.String, primary_key=True)
        photo: pxt.Image | None
        caption: pxt.String | None
        price: pxt.Float | None
        vector: pxt.Array[(2,), pxt.Float] | None
        facts: pxt.Json | None
        at: pxt.Timestamp | None
        origin: pxt.Json | None

    mm.apply(mm.plan(Tables, 't_unchanged'))
    yield SimpleNamespace(Glanced=Glanced, Examined=Examined)
    pxt.drop_dir('t_unchanged', force=True)


@pytest.fixture
def world(tables, tmp_path):
    """Empty tables, and rows of a manifest with a file each, in two folders."""
    tables.Glanced.table.delete()
    tables.Examined.table.delete()
    made = SimpleNamespace(**vars(tables), root=tmp_path / 'root', outside=tmp_path / 'outside', rows=[])
    for number in range(6):
        name = f'{"ab"[number % 2]}/{number}.bmp'
        draw(made.root / name, number)
        made.rows.append({'key': f'k{number}', 'photo': name, 'caption': 'a cat', 'vector': [1, 0.1]})
    made.outside.mkdir()
    return made


def draw(path: Path, colour: int) -> None:
    """A file whose size says nothing of what is in it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.new('RGB', (4, 4), (colour, 7, 9)).save(path)


def ingest(world, table, **options):
    manifest = world.root / 'items.jsonl'
    manifest.write_text(''.join(json.dumps(row) + '\n' for row in world.rows))
    return mm.ingest(table, mm.sources.rows(manifest), **options)


def everything(table, rows, target, pool):
    """In place of `changed_rows`: every row is in doubt."""
    return list(rows), [row.key for row in rows]


def stored(model):
    table = model.table
    columns = {name: getattr(table, name) for name in ('key', *COLUMNS)}
    rows = table.select(**columns, file=table.photo.fileurl).collect()
    return {row['key']: repr([row[name] for name in (*COLUMNS, 'file')]) for row in rows}


def told(report):
    counts = (report.inserted, report.replaced, report.updated, report.touched, report.unchanged, report.gone)
    return counts, [(bad.place, bad.key, bad.column, bad.path, bad.reason) for bad in report.bad]


def change(world, luck):
    """Something that may happen to a file, a folder or a row of a manifest."""
    files = [path for path in sorted(world.root.rglob('*.bmp')) if path.exists()]
    file, row = luck.choice(files), luck.choice(world.rows)
    what = luck.randrange(13)
    if what == 0:
        os.utime(file)
    elif what == 1:
        draw(file, luck.randrange(256))
    elif what == 2:  # of the same size, with its time set back
        before = file.stat()
        draw(file, luck.randrange(256))
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    elif what == 3:
        os.replace(file, file.with_name(f'{luck.randrange(6)}.bmp'))
    elif what == 4:
        file.unlink()
        file.symlink_to(luck.choice([each for each in files if each != file]))
    elif what == 5 and len(files) > 2:
        file.unlink()
    elif what == 6:  # another folder in its place, at first with the very same files
        moved = luck.choice([world.root / 'a', world.root / 'b'])
        if moved.is_symlink():
            target = moved.readlink()
            moved.unlink()
            target.rename(moved)
        else:
            target = luck.choice([world.root, world.outside]) / f'{moved.name}{luck.randrange(10**9)}'
            moved.rename(target)
            moved.symlink_to(target)
    elif what == 7:
        draw(world.root / luck.choice(world.rows).get('photo', 'a/0.bmp'), luck.randrange(256))
    elif what == 8:
        row['photo'] = luck.choice(
            [*(f'{f}/{n}.bmp' for f in 'ab' for n in range(6)), '../outside/x.bmp', 'b/../a/0.bmp', None, None]
        )
    elif what == 9:
        row.pop(luck.choice(['photo', *VALUES]), None)
    elif what == 10:
        world.rows.append({**row, 'key': f'k{luck.randrange(9)}'})
    elif what == 11 and len(world.rows) > 4:
        world.rows.remove(row)
    else:
        name = luck.choice(list(VALUES))
        row[name] = luck.choice(VALUES[name])


@pytest.mark.slow
@pytest.mark.parametrize('seed', [0, *(pytest.param(seed, marks=pytest.mark.hardening) for seed in range(1, 40))])
def test_a_glance_and_a_look_at_everything_lead_to_the_same_rows_and_reports(world, monkeypatch, seed):
    luck, unchanged_rows = random.Random(seed), 0
    for _ in range(12):
        glanced = ingest(world, world.Glanced)
        with monkeypatch.context() as patched:
            patched.setattr(sources_write, 'changed_rows', everything)
            examined = ingest(world, world.Examined)
        assert told(glanced) == told(examined)
        assert stored(world.Glanced) == stored(world.Examined)
        assert ingest(world, world.Glanced).written == 0
        unchanged_rows += glanced.unchanged
        for _ in range(luck.randrange(1, 4)):
            change(world, luck)
    assert unchanged_rows > 12  # else there was nothing to be wrong about


def test_only_rows_in_doubt_are_looked_at_as_a_whole(world, monkeypatch):
    asked = []
    real = sources_write.rows_with_keys
    monkeypatch.setattr(
        sources_write,
        'rows_with_keys',
        lambda table, keys, *a, **b: asked.append(list(keys)) or real(table, keys, *a, **b),
    )
    world.rows[5].pop('vector')
    assert ingest(world, world.Glanced).inserted == 6
    assert ingest(world, world.Glanced).unchanged == 6
    assert asked == []
    draw(world.root / 'a' / '0.bmp', 99)
    world.rows[1]['caption'] = 'a dog'
    world.rows[3]['vector'] = [3, 4]
    os.utime(world.root / 'a' / '4.bmp')
    world.rows.append({'key': 'new', 'photo': 'a/2.bmp'})
    report = ingest(world, world.Glanced)
    assert (report.replaced, report.updated, report.touched, report.inserted, report.unchanged) == (1, 2, 1, 1, 2)
    assert asked == [[('k0',), ('k1',), ('k3',), ('k4',)]]


def test_a_folder_that_became_a_link_out_of_the_source_is_told_though_its_files_are_the_same(world):
    assert ingest(world, world.Glanced).inserted == 6
    (world.root / 'a').rename(world.root / 'moved')
    (world.root / 'a').symlink_to(world.root / 'moved')
    assert ingest(world, world.Glanced).written == 0
    (world.root / 'a').unlink()
    (world.root / 'moved').rename(world.outside / 'moved')
    (world.root / 'a').symlink_to(world.outside / 'moved')
    report = ingest(world, world.Glanced)
    assert (report.unchanged, [bad.key for bad in report.bad]) == (3, ['k0', 'k2', 'k4'])
    assert all('lies outside' in bad.reason for bad in report.bad)


def test_a_row_is_bad_when_its_recorded_file_lies_outside_of_the_folder_that_is_named_now(world, tmp_path):
    draw(world.outside / 'x.bmp', 1)
    world.rows[0]['photo'] = '../outside/x.bmp'
    assert ingest(world, world.Glanced).inserted == 5
    manifest = world.root / 'items.jsonl'
    wider = tmp_path / 'root' / 'a' / '..' / '..'
    for row in world.rows[1:]:
        row['photo'] = f'root/{row["photo"]}'
    world.rows[0]['photo'] = 'outside/x.bmp'
    manifest.write_text(''.join(json.dumps(row) + '\n' for row in world.rows))
    report = mm.ingest(world.Glanced, mm.sources.rows(manifest, root=wider))
    assert (report.inserted, report.unchanged) == (1, 5)
    world.rows = [{'key': 'k0', 'photo': '../outside/x.bmp'}]
    report = ingest(world, world.Glanced)
    assert (report.unchanged, report.bad[0].key) == (0, 'k0')
    assert 'lies outside' in report.bad[0].reason


def test_files_that_take_long_to_answer_are_asked_on_many_threads(world, monkeypatch):
    world.rows = [{'key': f'k{i}', 'photo': f'a/{i}.bmp'} for i in range(100)]
    for i in range(100):
        draw(world.root / 'a' / f'{i}.bmp', i)
    assert ingest(world, world.Glanced).inserted == 100
    monkeypatch.setattr(unchanged, 'SLOW_S', -1.0)
    monkeypatch.setattr(unchanged, 'SLICE_ROWS', 7)
    for number in (3, 40, 99):
        draw(world.root / 'a' / f'{number}.bmp', 200)
    report = ingest(world, world.Glanced)
    assert (report.replaced, report.unchanged) == (3, 97)


def test_a_source_of_ones_own_may_name_files_by_relative_paths_and_links(world, monkeypatch, tmp_path):
    class Own:
        name = 'own'

        def total(self):
            return None

        def records(self, *, key, media):
            for path in ('root/a/0.bmp', 'root/a/../b/1.bmp', 'root/link.bmp', 'linked/2.bmp'):
                yield Record(place=path, values={'key': path}, media={'photo': Path(path)}, root=Path('linked/..'))

    (tmp_path / 'root' / 'link.bmp').symlink_to(tmp_path / 'root' / 'a' / '4.bmp')
    (tmp_path / 'linked').symlink_to(tmp_path / 'root' / 'a')
    monkeypatch.chdir(tmp_path)
    assert mm.ingest(world.Glanced, Own()).inserted == 4
    read = []
    real = media_files.stamp
    monkeypatch.setattr(media_files, 'stamp', lambda path: read.append(path) or real(path))
    assert mm.ingest(world.Glanced, Own()).unchanged == 4
    assert read == []
    draw(tmp_path / 'root' / 'a' / '4.bmp', 77)
    draw(tmp_path / 'root' / 'a' / '2.bmp', 77)
    report = mm.ingest(world.Glanced, Own())
    assert (report.replaced, report.unchanged) == (2, 2)


def test_a_row_of_which_a_part_lies_in_a_file_is_compared_as_pixeltable_reads_it(world):
    world.Glanced.table.insert([{'key': 'k0', 'facts': {'n': b'bytes', 'm': 1}}, {'key': 'k1', 'facts': {'m': 1}}])
    world.rows = [{'key': 'k0', 'facts': {'m': 1}}, {'key': 'k1', 'facts': {'m': 1}}]
    report = ingest(world, world.Glanced)
    assert (report.updated, report.unchanged) == (1, 1)
    assert ingest(world, world.Glanced).unchanged == 2
