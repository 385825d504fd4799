"""Rows that a source no longer has: told, and removed when asked for, but never all of them by mistake."""
# ruff: noqa: F821  (Pixeltable puts column names in scope)

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pixeltable as pxt
import pytest
from schemas import doubled, pieces, write_csv

import mmpipe as mm
from mmpipe.cli import app
from mmpipe.errors import SourceError
from mmpipe.functions import counts, reset
from mmpipe.sources import Record

PIPELINE = {
    'schema.py': """
from __future__ import annotations
import pixeltable as pxt
Tables = pxt.model_base()
class Numbers(Tables, name='numbers'):
    key = pxt.Column(type=pxt.String, primary_key=True)
    x: pxt.Int | None
    origin: pxt.Json | None
""",
    'views.py': """
import mmpipe as mm
from pipelines.gone.schema import Numbers
def sources(folder):
    return [(Numbers, mm.sources.rows(f'{folder}/numbers.csv'))]
""",
}


@pytest.fixture(scope='module')
def declared(pixeltable_home):
    """Numbers with a computed column, and a view of the words of their texts."""
    Tables = pxt.model_base()

    class Numbers(Tables, name='numbers'):
        key = pxt.Column(type=pxt.String, primary_key=True)
        x: pxt.Int | None
        text: pxt.String | None
        origin: pxt.Json | None
        twice = doubled(x)

    class Words(Tables, name='words', base=Numbers, iterator=pieces(Numbers.text)):
        pass

    pxt.drop_dir('t_gone', force=True, if_not_exists='ignore')
    mm.apply(mm.plan(Tables, 't_gone'))
    yield SimpleNamespace(Numbers=Numbers, Words=Words)
    pxt.drop_dir('t_gone', force=True)


@pytest.fixture
def shop(declared, tmp_path):
    """An empty table of numbers and their words, and a manifest to change."""
    declared.Numbers.table.delete()
    path = tmp_path / 'numbers.csv'

    def ingest(keys, *, extra=(), wrap=lambda source: source, **options):
        write_csv(path, [*({'key': key, 'x': '1', 'text': 'one two'} for key in keys), *extra])
        return mm.ingest(declared.Numbers, wrap(mm.sources.rows(path)), **options)

    return SimpleNamespace(**vars(declared), path=path, ingest=ingest)


def keys(shop, table=None):
    table = shop.Numbers.table if table is None else table
    return sorted(row['key'] for row in table.select(table.key).collect())


def test_rows_that_are_gone_are_told_and_stay_until_they_are_pruned(shop, tmp_path):
    shop.ingest('abcdef')
    view = {'query': shop.Numbers, 'root': tmp_path / 'shards', 'fields': {'x': shop.Numbers.x}}
    assert mm.snapshot(**view).inserted == 6
    report = shop.ingest('abef')
    assert (report.gone, report.gone_keys, report.removed, report.written) == (2, ('c', 'd'), 0, 0)
    assert "2 rows are gone from the source ('c', 'd'): prune=True (--prune) removes them" in str(report)
    assert keys(shop) == list('abcdef')
    reset()
    report = shop.ingest('abef', prune=True)
    assert (report.gone, report.removed, report.written, report.unchanged) == (2, 2, 2, 4)
    assert '2 removed' in str(report)
    assert counts() == {}
    assert keys(shop) == list('abef')
    assert keys(shop, shop.Words.table) == [key for key in 'abef' for _ in range(2)]
    frozen = mm.snapshot(**view)
    assert (frozen.dropped, frozen.inserted, sorted(frozen.snapshot.rows().keys)) == (2, 0, list('abef'))
    again = shop.ingest('abef', prune=True)
    assert (again.gone, again.removed, again.written) == (0, 0, 0)


def test_more_than_half_is_not_pruned_unless_all_is_meant(shop):
    shop.ingest('abcd')
    said = (
        r"3 of 4 rows from '.*numbers\.csv' are gone from it \('b', 'c', 'd'\), which is more than half, so none was "
        r"removed.*prune='all' \(`mmpipe ingest --prune-all`\)"
    )
    with pytest.raises(SourceError, match=said):
        shop.ingest('ax', prune=True)
    assert keys(shop) == list('abcdx')  # what is new was brought in
    assert shop.ingest('ax', prune='all').removed == 3
    assert keys(shop) == ['a', 'x']
    assert shop.ingest('a', prune=True).removed == 1  # just half


def test_a_source_that_is_empty_or_fails_removes_nothing(shop):
    shop.ingest('abc')
    shop.path.write_text('key,x,text\n')
    with pytest.raises(SourceError, match='3 of 3 rows'):
        mm.ingest(shop.Numbers, mm.sources.rows(shop.path), prune=True)

    class Broken:
        name = str(shop.path)

        def total(self):
            return None

        def records(self, *, key, media):
            yield Record(place='1', values={'key': 'a', 'x': 1, 'text': 'one two'}, root=shop.path.parent)
            raise SourceError('the disk went away')

    with pytest.raises(SourceError, match='went away'):
        mm.ingest(shop.Numbers, Broken(), prune='all')
    assert keys(shop) == list('abc')


def test_a_part_of_a_source_says_nothing_of_the_rest(shop):
    shop.ingest('abcd')
    report = shop.ingest('abcd', wrap=lambda source: mm.sources.every(source, 2))
    assert (report.gone, report.unchanged) == (0, 2)
    for prune in (True, 'all'):
        with pytest.raises(SourceError, match=r'is a part of a source, and cannot tell what is gone'):
            shop.ingest('abcd', wrap=lambda source: mm.sources.every(source, 2), prune=prune)
    assert keys(shop) == list('abcd')
    shop.Numbers.table.delete()
    shop.ingest('abcd', wrap=lambda source: mm.sources.every(source, 2))  # the rows belong to the whole source
    assert shop.ingest('bcd').gone_keys == ('a',)
    assert shop.ingest('bcd', wrap=lambda source: mm.sources.every(source, 1), prune=True).removed == 1


def test_rows_of_other_sources_and_of_nobody_stay(shop, tmp_path):
    shop.ingest('abc')
    other = write_csv(tmp_path / 'other.csv', [{'key': 'o', 'x': '1'}])
    mm.ingest(shop.Numbers, mm.sources.rows(other))
    shop.Numbers.table.insert([{'key': 'mine', 'x': 1}])
    report = shop.ingest('ab', prune=True)
    assert (report.gone, report.removed) == (1, 1)
    assert keys(shop) == ['a', 'b', 'mine', 'o']


def test_a_row_that_is_bad_is_not_gone_and_one_that_cannot_be_read_may_be(shop):
    shop.ingest('abcdef')
    report = shop.ingest('abde', extra=[{'key': 'c', 'x': 'many', 'text': ''}], prune=True)
    assert (report.quarantined, report.removed, keys(shop)) == (1, 1, list('abcde'))
    shop.ingest('abcde')
    with shop.path.open('w') as file:
        file.write('key,x,text\na,1,one two\nb,1,one two\nc,1,one two\nd;1\n')
    source = mm.sources.rows(shop.path)
    with pytest.raises(SourceError, match=r'2 of 5 rows .* line 5 is bad and may be one of them, so none was removed'):
        mm.ingest(shop.Numbers, source, prune=True)
    assert mm.ingest(shop.Numbers, source).gone == 2
    assert mm.ingest(shop.Numbers, source, prune='all').removed == 2


def test_the_command_prunes(pixeltable_home, tmp_path, monkeypatch, capsys):
    folder = tmp_path / 'pipelines' / 'gone'
    folder.mkdir(parents=True)
    for name, text in PIPELINE.items():
        (folder / name).write_text(text)
    (tmp_path / 'pyproject.toml').touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'path', list(sys.path))

    def run(*arguments):
        app(['ingest', 'gone', '.', '--json', *arguments], standalone_mode=False)
        return json.loads(capsys.readouterr().out)['tables'][0]

    try:
        app(['apply', 'gone'], standalone_mode=False)
        capsys.readouterr()
        write_csv(tmp_path / 'numbers.csv', [{'key': key} for key in 'abcde'])
        assert run()['inserted'] == 5
        write_csv(tmp_path / 'numbers.csv', [{'key': key} for key in 'abc'])
        assert (run()['gone'], run('--prune')['removed'], run()['gone']) == (2, 2, 0)
        write_csv(tmp_path / 'numbers.csv', [{'key': 'a'}])
        with pytest.raises(SourceError, match='more than half'):
            run('--prune')
        assert run('--prune-all')['removed'] == 2
    finally:
        pxt.drop_dir('gone', force=True, if_not_exists='ignore')
        for name in [name for name in sys.modules if name.startswith('pipelines.gone')]:
            del sys.modules[name]
