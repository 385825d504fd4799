"""What was made by which code: edits make columns stale, plain writes leave rows unrecorded, apply mends both."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import multiplied
import pytest
from schemas import write_csv

import mmpipe as mm
from mmpipe.errors import PlanError, StaleColumnError
from mmpipe.functions import counts, reset
from mmpipe.ledger import Book

UNKNOWN = (('things', 'made'), ('things', 'other'), ('things', 'more'), ('large', 'less'))


@pytest.fixture
def things(directory: str, tmp_path: Path):
    """Ten rows, x from 0 to 9, written by mmpipe."""
    Tables = multiplied.declared(directory)
    mm.apply(mm.plan(Tables, directory))
    manifest = write_csv(tmp_path / 'a.csv', [{'key': f'k{i}', 'x': i} for i in range(10)])
    mm.ingest(f'{directory}/things', mm.sources.rows(manifest))
    reset()
    return Tables


def changes(Tables, directory: str) -> list[tuple[str, str, str, int, str]]:
    found = mm.plan(Tables, directory).changes
    return [(c.action, c.table.rsplit('/', 1)[-1], c.name, c.rows, c.detail) for c in found]


def values(directory: str) -> dict[str, list]:
    import pixeltable as pxt

    table, view = pxt.get_table(f'{directory}/things'), pxt.get_table(f'{directory}/large')
    rows = table.order_by(table.x).select(table.x, table.made, table.more).collect()
    less = view.order_by(view.x).select(view.less).collect()
    return {'made': rows['made'], 'more': rows['more'], 'less': less['less']}


def test_what_mmpipe_wrote_is_fresh_and_nothing_is_pending(things, directory: str) -> None:
    assert changes(things, directory) == []
    before = mm.status(directory)
    assert [(table.stale, table.unrecorded) for table in before.tables] == [({}, {}), ({}, {})]
    mm.apply(mm.plan(things, directory))
    assert counts() == {}


def test_an_edit_makes_its_column_and_those_that_read_it_stale_and_apply_makes_just_those(
    things, directory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(multiplied, 'FACTOR', 3)
    assert changes(things, directory) == [
        ('stale', 'things', 'made', 10, 'constant multiplied.FACTOR changed'),
        ('stale', 'things', 'more', 10, f'input {directory}/things.made changed'),
        ('stale', 'large', 'less', 7, f'input {directory}/things.made changed'),
    ]
    assert mm.status(directory).tables[0].stale == {'made': 10, 'more': 10}
    assert values(directory)['made'] == [2 * x for x in range(10)]  # a plan reads only
    mm.apply(mm.plan(things, directory))
    assert counts() == {'times': 10, 'plus': 10, 'minus': 7}  # `other` reads x alone
    assert values(directory) == {
        'made': [3 * x for x in range(10)],
        'more': [3 * x + 1 for x in range(10)],
        'less': [-3 * x for x in range(3, 10)],
    }
    assert changes(things, directory) == []


def test_code_that_is_put_back_makes_nothing_stale(things, directory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multiplied, 'FACTOR', 3)
    assert changes(things, directory)
    monkeypatch.setattr(multiplied, 'FACTOR', 2)
    assert changes(things, directory) == []


def test_new_rows_are_made_by_the_new_code_and_only_the_old_ones_are_stale(
    things, directory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(multiplied, 'PLUS', 5)
    more = write_csv(tmp_path / 'b.csv', [{'key': 'k20', 'x': 20}])
    mm.ingest(f'{directory}/things', mm.sources.rows(more))
    assert changes(things, directory) == [('stale', 'things', 'more', 10, 'constant multiplied.PLUS changed')]
    reset()
    mm.apply(mm.plan(things, directory))
    assert counts() == {'plus': 10}
    assert values(directory)['more'] == [*(2 * x + 5 for x in range(10)), 45]


def test_rows_that_mmpipe_did_not_write_are_unrecorded_until_they_are_made(things, directory: str) -> None:
    import pixeltable as pxt

    table = pxt.get_table(f'{directory}/things')
    table.insert([{'key': 'theirs', 'x': 11}])
    table.update({'x': 12}, where=table.key == 'k1')
    found = changes(things, directory)
    assert [change[:4] for change in found] == [
        ('unrecorded', 'things', 'made', 2),
        ('unrecorded', 'things', 'other', 2),
        ('unrecorded', 'things', 'more', 2),
        ('unrecorded', 'large', 'less', 2),
    ]
    reset()
    mm.apply(mm.plan(things, directory))
    assert counts() == {'times': 2, 'plus': 2, 'minus': 4}
    assert changes(things, directory) == []


def test_rows_that_were_there_before_can_be_trusted_instead_of_made(things, directory: str, monkeypatch) -> None:
    import pixeltable as pxt

    pxt.get_table(f'{directory}/things').insert([{'key': 'theirs', 'x': 11}])
    reset()
    mm.apply(mm.plan(things, directory), trust=True)
    assert counts() == {}
    assert changes(things, directory) == []
    monkeypatch.setattr(multiplied, 'PLUS', 5)  # from here on they are as known as all others
    assert changes(things, directory)[0][:4] == ('stale', 'things', 'more', 11)


def test_a_plain_insert_between_plan_and_apply_is_noticed(things, directory: str) -> None:
    import pixeltable as pxt

    planned = mm.plan(things, directory)
    pxt.get_table(f'{directory}/things').insert([{'key': 'theirs', 'x': 11}])
    with pytest.raises(PlanError, match='changed since this plan was made'):
        mm.apply(planned)


def test_an_update_by_mmpipe_makes_only_what_reads_the_change(
    things, directory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(multiplied, 'FACTOR', 3)
    manifest = write_csv(tmp_path / 'a.csv', [{'key': f'k{i}', 'x': 90 if i == 4 else i} for i in range(10)])
    mm.ingest(f'{directory}/things', mm.sources.rows(manifest))
    assert [change[:4] for change in changes(things, directory)] == [
        ('stale', 'things', 'made', 9),
        ('stale', 'things', 'more', 9),
        ('stale', 'large', 'less', 6),
    ]


def test_an_update_of_what_no_column_reads_records_nothing(things, directory: str, tmp_path: Path) -> None:
    import pixeltable as pxt

    pxt.get_table(f'{directory}/things').insert([{'key': 'theirs', 'x': 11}])
    unknown = [('unrecorded', table, name, 1) for table, name in UNKNOWN]
    assert [change[:4] for change in changes(things, directory)] == unknown
    manifest = write_csv(tmp_path / 'b.csv', [{'key': 'theirs', 'x': 11, 'note': 'seen'}])
    assert mm.ingest(f'{directory}/things', mm.sources.rows(manifest)).updated == 1
    assert [change[:4] for change in changes(things, directory)] == unknown


def test_a_row_that_enters_a_view_by_an_update_is_fresh_there(things, directory: str, tmp_path: Path) -> None:
    manifest = write_csv(tmp_path / 'a.csv', [{'key': f'k{i}', 'x': 50 if i == 0 else i} for i in range(10)])
    mm.ingest(f'{directory}/things', mm.sources.rows(manifest))
    assert changes(things, directory) == []


def test_a_cell_whose_function_raises_is_made_and_told(things, directory: str, tmp_path: Path, monkeypatch) -> None:
    more = write_csv(tmp_path / 'b.csv', [{'key': 'unlucky', 'x': 13}])
    mm.ingest(f'{directory}/things', mm.sources.rows(more))
    monkeypatch.setattr(multiplied, 'FACTOR', 3)
    done = mm.apply(mm.plan(things, directory))
    assert [text.partition(':')[0] for text in done.failed] == [
        f'{directory}/things.{name}' for name in ('made', 'more')
    ]
    assert changes(things, directory) == []


def test_an_added_and_an_altered_column_are_fresh_for_the_rows_there_are(things, directory: str) -> None:
    import pixeltable as pxt

    Tables = pxt.model_base()

    class Things(Tables, name='things'):
        key = pxt.Column(type=pxt.String, primary_key=True)
        x: pxt.Int | None
        note: pxt.String | None
        origin: pxt.Json | None
        made = multiplied.times(x + 1)  # noqa: F821
        more = multiplied.plus(made)
        other = multiplied.minus(x)  # noqa: F821
        added = multiplied.plus(x)  # noqa: F821

    class Large(Tables, name='large', base=Things.where(Things.x > 2)):
        less = multiplied.minus(made)  # noqa: F821

    mm.apply(mm.plan(Tables, directory))
    assert changes(Tables, directory) == []
    assert values(directory)['less'] == [-2 * (x + 1) for x in range(3, 10)]


def test_a_second_ingest_writes_nothing_into_the_ledger(things, directory: str, tmp_path: Path) -> None:
    import pixeltable as pxt

    from mmpipe.ledger.book import TABLE

    before = pxt.get_table(TABLE).get_metadata()['version']
    assert mm.ingest(f'{directory}/things', mm.sources.rows(tmp_path / 'a.csv')).written == 0
    assert pxt.get_table(TABLE).get_metadata()['version'] == before
    book = Book(pxt.get_table(f'{directory}/things'))
    book.settle()
    assert book.save() is False


def test_a_snapshot_refuses_stale_columns_and_says_what_to_run(
    things, directory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pixeltable as pxt

    table = pxt.get_table(f'{directory}/things')
    frozen = {'query': table, 'root': tmp_path / 'shards'}
    mm.snapshot(**frozen, fields={'more': table.more, 'other': table.other})
    monkeypatch.setattr(multiplied, 'FACTOR', 3)
    why = r'\(constant multiplied.FACTOR changed\)\. Run `mmpipe apply PIPELINE`'
    said = rf"'{directory}/things.made' holds 10 rows .* now {why}"
    with pytest.raises(StaleColumnError, match=said):
        mm.snapshot(**frozen, fields={'more': table.more, 'other': table.other})
    assert mm.snapshot(**frozen, fields={'more': table.more, 'other': table.other}, allow_stale=True).written == 0
    assert mm.snapshot(query=table, root=tmp_path / 'other', fields={'other': table.other}).inserted == 10
    with pytest.raises(StaleColumnError):
        mm.snapshot(table.where(table.made > 3), root=tmp_path / 'filtered', fields={'other': table.other})


def test_failed_cells_are_computed_again_once_their_function_is_mended(
    things, directory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = write_csv(tmp_path / 'b.csv', [{'key': 'unlucky', 'x': 13}])
    mm.ingest(f'{directory}/things', mm.sources.rows(more))
    again = mm.retry(directory)
    assert again.tried == {f'{directory}/things.made': 1, f'{directory}/things.more': 1}
    assert [text.partition(':')[0] for text in again.failed] == [f'{directory}/things.made']
    monkeypatch.setattr(multiplied, 'UNLUCKY', 14)
    reset()
    done = mm.retry(directory)
    assert done.tried == {f'{directory}/things.made': 1}  # what reads it is computed with it
    assert done.failed == ()
    assert counts() == {'times': 1, 'plus': 1, 'minus': 1}
    assert values(directory)['more'][-1] == 27
    assert str(mm.retry(directory)) == 'no cell has failed'


def test_where_the_code_of_a_column_cannot_be_imported_it_is_said_and_nothing_is_taken_for_stale(
    things, directory: str, tmp_path: Path
) -> None:
    script = f"""
import mmpipe as mm, pixeltable as pxt
from mmpipe.errors import MmpipeError
from mmpipe.store import start
start()
table = pxt.get_table('{directory}/things')
print(mm.status('{directory}'))
for act in (
    lambda: mm.ingest(table, mm.sources.rows('{tmp_path}/a.csv')),
    lambda: mm.snapshot(table, root='{tmp_path}/shards', fields={{'made': table.made}}),
):
    try:
        act()
    except MmpipeError as error:
        print(type(error).__name__, error)
print(mm.snapshot(table, root='{tmp_path}/shards', fields={{'made': table.made}}, allow_stale=True).inserted)
"""
    done = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True, check=True, cwd=tmp_path)
    lines = done.stdout.splitlines()
    why = rf"'{directory}/things\.\w+' is computed by [.a-z]+\(x\), which cannot be imported here\. Run from"
    assert ' stale' not in lines[1], done.stdout

    assert len([line for line in lines if re.match(f'  what is stale cannot be told: {why}', line)]) == 1
    assert re.match(f'StoreError {why}', lines[-3])
    assert re.match(f'StaleColumnError {why}', lines[-2])
    assert lines[-1] == '10'
