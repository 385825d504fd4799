"""The iterator of a component view over rows that others wrote: an edit is noticed, though it cannot be run alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pixeltable as pxt
import pytest
from edited_project import Project, project
from schemas import write_csv

import mmpipe as mm
from mmpipe.errors import StaleColumnError


@pytest.fixture
def edited(directory: str, tmp_path: Path) -> Iterator[Project]:
    """The project with its tables made, and nothing in them."""
    with project(tmp_path) as made:
        mm.apply(mm.plan(made.declared(), directory))
        yield made
        pxt.drop_table(f'{directory}/things', force=True)  # while its functions can be found


def changes(edited: Project, directory: str) -> list[tuple[str, str, int]]:
    return [(c.action, c.name, c.rows) for c in mm.plan(edited.declared(), directory).changes if 'parts' in c.table]


def test_an_edit_of_an_iterator_is_noticed_over_rows_that_others_wrote(edited: Project, directory: str) -> None:
    pxt.get_table(f'{directory}/things').insert([{'key': 'theirs', 'x': 1, 'y': 1}])
    mm.apply(mm.plan(edited.declared(), directory))
    assert changes(edited, directory) == []
    edited.edit(replace(edited.code, pieces=1))
    assert changes(edited, directory) == [('recreate', '', 1)]
    parts = pxt.get_table(f'{directory}/parts')
    with pytest.raises(StaleColumnError, match=r'code of edited_shop[.]functions[.]pieces changed'):
        mm.snapshot(parts, root=edited.folder / 'shards', fields={'piece': parts.piece})
    mm.apply(mm.plan(edited.declared(), directory), allow_destructive=True)
    assert pxt.get_table(f'{directory}/parts').count() == 2


def test_where_an_older_or_a_newer_iterator_may_have_run_the_view_is_made_again(
    edited: Project, directory: str, tmp_path: Path
) -> None:
    old = edited.code
    manifest = write_csv(tmp_path / 'a.csv', [{'key': 'ours', 'x': 4, 'y': 1, 'split': 'train'}])
    mm.ingest(f'{directory}/things', mm.sources.rows(manifest))
    edited.edit(replace(old, pieces=1))
    table = pxt.get_table(f'{directory}/things')
    table.update({'x': 5}, where=table.key == 'ours')  # no part by the new iterator, two by the old one
    table.update({'x': 4}, where=table.key == 'ours')
    more = write_csv(tmp_path / 'b.csv', [{'key': 'more', 'x': 3, 'y': 1, 'split': 'train'}])
    mm.ingest(f'{directory}/things', mm.sources.rows(more))
    edited.edit(old)
    found = mm.plan(edited.declared(), directory)
    assert ('recreate', '', 2) in changes(edited, directory)
    mm.apply(found, allow_destructive=True)
    parts = pxt.get_table(f'{directory}/parts')
    assert parts.order_by(parts.key).select(parts.key, parts.piece).collect()['key'] == ['ours']


@pytest.mark.parametrize('writer', ['ours', 'theirs'])
def test_an_iterator_that_gave_no_row_is_stale_like_another(
    edited: Project, directory: str, tmp_path: Path, writer: str
) -> None:
    row = {'key': 'a', 'x': 3, 'y': 1, 'split': 'train'}
    if writer == 'ours':
        mm.ingest(f'{directory}/things', mm.sources.rows(write_csv(tmp_path / 'a.csv', [row])))
    else:
        pxt.get_table(f'{directory}/things').insert([{name: row[name] for name in ('key', 'x', 'y')}])
        mm.apply(mm.plan(edited.declared(), directory))
    assert pxt.get_table(f'{directory}/parts').count() == 0
    edited.edit(replace(edited.code, pieces=1))
    assert changes(edited, directory) == [('recreate', '', 1)]
    mm.apply(mm.plan(edited.declared(), directory), allow_destructive=True)
    assert pxt.get_table(f'{directory}/parts').count() == 1
    assert changes(edited, directory) == []
