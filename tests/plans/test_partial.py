"""Parts of an apply: some columns, some rows, up to so many failures; and what the next plan says of the rest."""

# ruff: noqa: F821  (Pixeltable puts column names in scope)

from __future__ import annotations

import math

import pixeltable as pxt
import pytest
from schemas import doubled, tripled

import mmpipe as mm
from mmpipe.errors import ConfigError, FailureBudgetError, PlanError, StaleColumnError
from mmpipe.functions import counts, reset

ROWS = 100


def declare(**functions):
    """Tables with columns `one` and `two`, and `sum`, which reads both; each only with a function for it."""
    Tables = pxt.model_base()
    made = {name: functions.get(name) for name in ('one', 'two')}

    class Items(Tables, name='items'):
        key = pxt.Column(type=pxt.String, primary_key=True)
        x: pxt.Int | None
        origin: pxt.Json | None
        if made['one']:
            one = made['one'](x)
        if made['two']:
            two = made['two'](one)

    class Few(Tables, name='few', base=Items.where(Items.x < 10)):
        pass

    class Others(Tables, name='others'):
        key = pxt.Column(type=pxt.String, primary_key=True)
        x: pxt.Int | None
        origin: pxt.Json | None
        if made['one']:
            one = made['one'](x)

    return Tables, Items, Others


@pytest.fixture
def filled(directory, tmp_path):
    """Two tables, items with a hundred rows and others with ten, no computed column."""
    Tables, Items, Others = declare()
    mm.apply(mm.plan(Tables, directory))
    for table, rows in ((Items, ROWS), (Others, 10)):
        manifest = tmp_path / f'{rows}.csv'
        manifest.write_text('key,x\n' + ''.join(f'k{i},{i + 20}\n' for i in range(rows)))
        mm.ingest(table, mm.sources.rows(manifest))
    reset()
    return directory


def todo(planned):
    return {(change.table.rsplit('/', 1)[-1], change.name): (change.action, change.rows) for change in planned.changes}


def test_a_limit_computes_the_oldest_rows_of_each_table_and_the_rest_later(filled):
    Tables, Items, _ = declare(one=doubled, two=tripled)
    mm.apply(mm.plan(Tables, filled), limit=30)
    assert counts() == {'doubled': 30 + 10, 'tripled': 30}
    table = pxt.get_table(f'{filled}/items')
    assert sorted(row['x'] for row in table.where(table.two != None).select(table.x).collect()) == [*range(20, 50)]  # noqa: E711
    left = mm.plan(Tables, filled)
    assert todo(left) == {('items', 'one'): ('stale', 70), ('items', 'two'): ('stale', 70)}
    assert {change.detail for change in left.changes} == {'not computed yet'}
    with pytest.raises(StaleColumnError, match=r'items.one. holds 70 rows .*not computed yet'):
        mm.snapshot(Items, root=filled, fields={'one': Items.one})
    mm.apply(left)
    assert counts() == {'doubled': ROWS + 10, 'tripled': ROWS}
    assert not mm.plan(Tables, filled).pending


def test_rows_of_one_table_are_chosen_by_an_expression(filled):
    Tables, _, _ = declare(one=doubled)
    table = pxt.get_table(f'{filled}/items')
    mm.apply(mm.plan(Tables, filled), where=table.x >= 115)
    assert counts() == {'doubled': 5}
    assert todo(mm.plan(Tables, filled)) == {('items', 'one'): ('stale', 95), ('others', 'one'): ('stale', 10)}
    mm.apply(mm.plan(Tables, filled), where=table.x >= 110, limit=2)
    assert counts() == {'doubled': 7}


def test_columns_are_chosen_with_what_they_read(filled):
    Tables, _, _ = declare(one=doubled, two=tripled)
    table = pxt.get_table(f'{filled}/items')
    with pytest.raises(PlanError, match=r'columns: items.x is no stored computed column of .*; there are items.one'):
        mm.apply(mm.plan(Tables, filled), columns=['items.x'])
    mm.apply(mm.plan(Tables, filled), columns=['items.two'])
    assert counts() == {'doubled': ROWS, 'tripled': ROWS}
    assert todo(mm.plan(Tables, filled)) == {('others', 'one'): ('stale', 10)}
    mm.apply(mm.plan(Tables, filled), columns=[pxt.get_table(f'{filled}/others').one])
    assert not mm.plan(Tables, filled).pending
    assert table.where(table.two == None).count() == 0  # noqa: E711


@pxt.udf
def breaks(x: int) -> int:
    """Fails for every number but the first."""
    return 1 // (x == 20)


def test_a_function_that_fails_everywhere_is_stopped_with_the_reason_and_goes_on_when_it_is_mended(filled):
    Tables, _, _ = declare(one=breaks)
    planned = mm.plan(Tables, filled)
    with pytest.raises(FailureBudgetError) as raised:
        mm.apply(planned)
    text = str(raised.value)
    assert f"{filled}/items.one: 31 cells are null, since their function raised: row 'k1': ZeroDivisionError" in text
    assert 'Stopped there, since 31 of 32 cells tried had failed, with 68 to go' in text
    assert 'or raise max_failed' in text
    assert todo(mm.plan(Tables, filled)) == {('items', 'one'): ('stale', 68), ('others', 'one'): ('stale', 10)}
    with pytest.raises(FailureBudgetError, match='since 68 of 68 cells tried had failed, with 0 to go'):
        mm.apply(mm.plan(Tables, filled), max_failed=40, columns=['items.one'])
    done = mm.apply(mm.plan(Tables, filled), max_failed=math.inf)
    assert not mm.plan(Tables, filled).pending
    assert [text.partition(',')[0] for text in done.failed] == [f'{filled}/others.one: 9 cells are null']


@pytest.mark.parametrize('options', [{'limit': 0}, {'max_failed': -1}])
def test_numbers_that_are_not_possible_are_refused(filled, options):
    with pytest.raises(ConfigError):
        mm.apply(mm.plan(declare()[0], filled), **options)


def test_a_plan_estimates_by_the_rates_of_the_last_run(filled):
    Tables, _, _ = declare(one=doubled)
    planned = mm.plan(Tables, filled)
    by_name = {change.table.rsplit('/', 1)[-1]: change for change in planned.changes}
    assert by_name['items'].at_most  # by the rate of the ingest, with all columns
    assert by_name['items'].seconds > 0
    assert planned.seconds == sum(change.seconds for change in planned.changes)
    mm.apply(planned)
    changed = mm.plan(declare(one=tripled)[0], filled)
    (altered,) = (change for change in changed.changes if change.table.endswith('items'))
    assert not altered.at_most
    assert 'at most' not in str(altered)
    assert 'under 1 s' in str(altered)
    assert changed.to_json()['seconds'] == changed.seconds
    half = mm.plan(Tables, filled)
    assert not half.pending
    assert half.seconds is None
