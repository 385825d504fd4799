"""Plans on a real catalog: what they say, what applying them computes, and what they refuse."""
# ruff: noqa: F821  (Pixeltable puts column names in scope)

from __future__ import annotations

import json

import pixeltable as pxt
import pytest
from schemas import doubled, numbers, pieces, tripled

import mmpipe as mm
from mmpipe.errors import ConfigError, DestructiveError, PlanError, SchemaError
from mmpipe.functions import counts, pixels, reset
from mmpipe.ledger import keeping
from mmpipe.store import declared_models, replace_rows


def declare(
    *, function=None, extra=False, words=pieces, minimum=0, plain=('text',), views=True, unlucky=False, weigh=tripled
):
    """Versions of one schema: another function, another column, another iterator, another filter."""
    Tables = pxt.model_base()
    if 'text' in plain:

        class Items(Tables, name='items'):
            key = pxt.Column(type=pxt.String, primary_key=True)
            x: pxt.Int
            text: pxt.String | None
            if function is not None:
                y = function(x)
            if extra:
                z = tripled(x)
            if unlucky:
                n: pxt.Int | None
                u = doubled(x)
                v = tripled(u)
    else:

        class Items(Tables, name='items'):
            key = pxt.Column(type=pxt.String, primary_key=True)
            x: pxt.Int
            if function is not None:
                y = function(x)

    if views:

        class Big(Tables, name='big', base=Items.where(Items.x > minimum)):
            w = weigh(Items.x)

        class Bigger(Tables, name='bigger', base=Big.where(Big.x > 100)):
            pass

    return Tables


def actions(plan):
    return [(change.action, change.table.rsplit('/', 1)[-1], change.name) for change in plan.changes]


def arrive(directory, rows):
    """Rows that mmpipe writes, so that it knows what made them."""
    table = pxt.get_table(f'{directory}/items')
    with keeping(table) as book:
        book.record(replace_rows(table, rows, []))


@pytest.fixture
def filled(directory):
    """Applied with `doubled`, and three rows in it."""
    mm.apply(mm.plan(declare(function=doubled), directory))
    arrive(directory, [{'key': f'k{i}', 'x': i + 1, 'text': 'a b'} for i in range(3)])
    reset()
    return directory


def values(directory, column):
    table = pxt.get_table(f'{directory}/items')
    return sorted(row['v'] for row in table.select(v=getattr(table, column)).collect())


def test_a_plan_reads_only_and_applying_it_leaves_nothing_to_do(directory):
    Tables = declare(function=doubled)
    plan = mm.plan(Tables, directory)
    assert actions(plan) == [('create', 'items', ''), ('create', 'big', ''), ('create', 'bigger', '')]
    assert pxt.list_tables(directory) == []
    assert plan.pending
    assert 'Nothing is dropped.' in str(plan)
    assert f'+ {directory}/items' in str(plan)
    assert mm.apply(plan) is plan
    done = mm.plan(Tables, directory)
    assert not done.pending
    assert str(done) == f'{directory}: nothing to do, 3 tables and views are as declared.'
    mm.apply(done)


def test_a_plan_is_json_that_says_everything(filled):
    plan = mm.plan(declare(function=tripled, extra=True), filled)
    told = json.loads(json.dumps(plan.to_json()))
    assert told['directory'] == filled
    assert told['pending'] is True
    assert told['unchanged'] == [f'{filled}/big', f'{filled}/bigger']
    by_name = {change['name']: change for change in told['changes']}
    assert by_name['y'] == {
        'action': 'alter', 'table': f'{filled}/items', 'name': 'y', 'detail': 'doubled(x) -> tripled(x)', 'rows': 3,
        'destructive': False, 'instead': '', 'seconds': None, 'at_most': False,
    }  # fmt: skip
    assert (by_name['z']['action'], by_name['z']['rows']) == ('add', 3)


def test_an_added_column_computes_itself_and_nothing_else(filled):
    mm.apply(mm.plan(declare(function=doubled, extra=True), filled))
    assert counts() == {'tripled': 3}
    assert values(filled, 'z') == [3, 6, 9]


def test_an_altered_column_is_computed_again_for_every_row(filled):
    mm.apply(mm.plan(declare(function=tripled), filled))
    assert values(filled, 'y') == [3, 6, 9]
    assert counts() == {'tripled': 3}
    pxt.get_table(f'{filled}/items').insert([{'key': 'new', 'x': 10}])
    assert values(filled, 'y') == [3, 6, 9, 30]


def test_a_cell_that_an_added_or_altered_function_cannot_compute_stops_nothing_and_is_told(filled, caplog):
    mm.apply(mm.plan(declare(function=tripled), filled))
    arrive(filled, [{'key': 'bad', 'x': 13}, {'key': 'big', 'x': 130}])
    plan = mm.plan(declare(function=doubled, unlucky=True), filled)
    assert actions(plan) == [
        ('alter', 'items', 'y'),
        ('add', 'items', 'n'),
        ('add', 'items', 'u'),
        ('add', 'items', 'v'),
    ]
    done = mm.apply(plan)
    assert done.changes == plan.changes
    for message, column in zip(done.failed, 'uvy', strict=True):
        for word in (
            f'{filled}/items.{column}: 1 cell is null', "row 'bad'", '13 is unlucky',
            f"then mm.retry('{filled}')",
        ):  # fmt: skip
            assert word in message
        assert message in str(done)
        assert message in caplog.text
    assert json.loads(json.dumps(done.to_json()))['failed'] == list(done.failed)
    table = pxt.get_table(f'{filled}/items')
    found = {
        row['x']: (row['y'], row['u'], row['v']) for row in table.select(table.x, table.y, table.u, table.v).collect()
    }
    assert found == {**{x: (2 * x, 2 * x, 6 * x) for x in (1, 2, 3, 130)}, 13: (None, None, None)}
    assert not mm.plan(declare(function=doubled, unlucky=True), filled).pending
    table.where(table.x == 13).update({'x': 14})
    assert values(filled, 'v') == [6, 12, 18, 84, 780]


def test_a_view_made_over_a_row_that_it_cannot_compute_is_there_and_tells_it(directory):
    mm.apply(mm.plan(declare(views=False), directory))
    pxt.get_table(f'{directory}/items').insert([{'key': 'bad', 'x': 13}, {'key': 'good', 'x': 1}])
    (message,) = mm.apply(mm.plan(declare(weigh=doubled), directory)).failed
    assert f"{directory}/big.w: 1 cell is null, since their function raised: row 'bad': ValueError: 13" in message
    assert pxt.get_table(f'{directory}/big').count() == 2


def test_rows_that_come_between_plan_and_apply_are_altered_too(filled):
    pxt.get_table(f'{filled}/items').delete()
    plan = mm.plan(declare(function=tripled), filled)
    arrive(filled, [{'key': 'late', 'x': 5}])
    mm.apply(plan)
    assert values(filled, 'y') == [15]


def test_a_drop_is_said_and_asked_for(filled):
    plan = mm.plan(declare(), filled)
    assert actions(plan) == [('drop', 'items', 'y')]
    assert '1 of them loses stored values' in str(plan)
    with pytest.raises(DestructiveError, match=r'items.y \(drop\)\. .* --yes .*allow_destructive=True in Python'):
        mm.apply(plan)
    assert values(filled, 'y') == [2, 4, 6]
    mm.apply(plan, allow_destructive=True)
    assert 'y' not in pxt.get_table(f'{filled}/items').columns()


def test_a_changed_filter_makes_the_view_and_the_views_over_it_again_after_asking(filled):
    pxt.create_view(f'{filled}/mine', pxt.get_table(f'{filled}/big'))
    plan = mm.plan(declare(function=doubled, minimum=1), filled)
    assert actions(plan) == [('recreate', 'big', ''), ('recreate', 'bigger', ''), ('drop', 'mine', '')]
    assert [change.rows for change in plan.changes] == [3, 0, 3]
    with pytest.raises(DestructiveError, match='mine'):
        mm.apply(plan)
    assert pxt.get_table(f'{filled}/big').count() == 3
    mm.apply(plan, allow_destructive=True)
    assert pxt.get_table(f'{filled}/big').count() == 2
    assert pxt.get_table(f'{filled}/mine', if_not_exists='ignore') is None
    assert not mm.plan(declare(function=doubled, minimum=1), filled).pending


def test_a_changed_iterator_makes_its_view_again_after_asking(directory):
    def words(by):
        Tables = pxt.model_base()

        class Items(Tables, name='items'):
            key = pxt.Column(type=pxt.String, primary_key=True)
            text: pxt.Document | None

        class Parts(Tables, name='parts', base=Items, iterator=mm.functions.document_chunks(Items.text, by=by)):
            pass

        return Tables

    mm.apply(mm.plan(words('page'), directory))
    plan = mm.plan(words('paragraph'), directory)
    assert actions(plan) == [('recreate', 'parts', '')]
    assert 'iterator' in plan.changes[0].detail
    with pytest.raises(DestructiveError):
        mm.apply(plan)
    mm.apply(plan, allow_destructive=True)
    assert not mm.plan(words('paragraph'), directory).pending


def test_a_catalog_that_moved_since_the_plan_is_refused(filled):
    plan = mm.plan(declare(function=tripled), filled)
    mm.apply(mm.plan(declare(function=doubled, extra=True), filled))
    with pytest.raises(PlanError, match=f"'{filled}' changed since this plan was made. Make a new one"):
        mm.apply(plan)
    assert values(filled, 'y') == [2, 4, 6]


def test_a_table_of_another_kind_is_refused_with_the_next_move(filled):
    Tables = pxt.model_base()

    class Big(Tables, name='big'):
        x: pxt.Int

    plan = mm.plan(Tables, filled)
    assert plan.unsupported
    with pytest.raises(PlanError, match=r"'big' is a view.*declare the table under a new name and ingest"):
        mm.apply(plan, allow_destructive=True)
    assert pxt.get_table(f'{filled}/big').count() == 3


def test_a_type_that_changed_is_refused_with_the_column(filled):
    Tables = pxt.model_base()

    class Items(Tables, name='items'):
        key = pxt.Column(type=pxt.String, primary_key=True)
        x: pxt.String
        text: pxt.String | None
        y = doubled(3)

    plan = mm.plan(Tables, filled)
    assert ('unsupported', 'items', 'x') in actions(plan)
    assert 'instead: declare it under a new name; or, to keep the name, delete it from its class' in str(plan)
    with pytest.raises(PlanError, match=r'nothing was changed\. .*items\.x \(type: Int -> String\).*declare it under'):
        mm.apply(plan, allow_destructive=True)


def test_what_the_plan_says_instead_of_another_type_works(directory):
    """A computed column of another type, read by a column of a view and by the filter of another."""

    def sized(size):
        Tables = pxt.model_base()

        class Items(Tables, name='items'):
            key = pxt.Column(type=pxt.String, primary_key=True)
            photo: pxt.Image | None
            if size:
                square = pixels(photo, size=size)

        class All(Tables, name='all_items', base=Items):
            if size:
                same = square

        class Seen(Tables, name='seen', base=Items.where(Items.square != None if size else Items.photo != None)):  # noqa: E711
            pass

        return Tables

    mm.apply(mm.plan(sized(16), directory))
    arrive(directory, [{'key': 'k'}])
    plan = mm.plan(sized(8), directory)
    assert [change.name for change in plan.unsupported] == ['square', 'same']
    for step in (sized(None), sized(8)):
        mm.apply(mm.plan(step, directory), allow_destructive=True)
    table = pxt.get_table(f'{directory}/all_items')
    assert '8' in table.get_metadata()['columns']['same']['type_']
    assert not mm.plan(sized(8), directory).pending


@pytest.mark.parametrize('view', [False, True])
def test_a_column_that_takes_no_null_is_not_added_to_rows(filled, view):
    Tables = declare(function=doubled)
    where = 'bigger' if view else 'items'
    declared_models(Tables)[where].__columns__['late'] = {'type': pxt.Int}
    plan = mm.plan(Tables, filled)
    assert actions(plan) == [('unsupported', where, 'late')]
    with pytest.raises(PlanError, match=rf'{where}\.late \(Int takes no null.*declare it pxt\.Int \| None'):
        mm.apply(plan)
    assert 'late' not in pxt.get_table(f'{filled}/{where}').columns()


def test_tables_that_no_class_declares_are_told_and_stay(filled):
    pxt.create_dir(f'{filled}/inside')
    pxt.create_table(f'{filled}/inside/deeper', {'x': pxt.Int})
    plan = mm.plan(declare(function=doubled, views=False), filled)
    assert plan.undeclared == (f'{filled}/big', f'{filled}/bigger')
    assert plan.to_json()['undeclared'] == list(plan.undeclared)
    assert not plan.pending
    assert str(plan).splitlines() == [
        f'{filled}: nothing to do, 1 table or view is as declared.',
        f'= {f"{filled}/big":<32} not declared; stays',
        f'= {f"{filled}/bigger":<32} not declared; stays',
    ]
    mm.apply(plan)
    assert pxt.get_table(f'{filled}/big').count() == 3


def test_a_directory_in_the_way_is_named(directory):
    pxt.create_dir(f'{directory}/items')
    with pytest.raises(SchemaError, match=r"items' needs to be a table but is a directory.*Rename the table"):
        mm.plan(declare(), directory)


def test_a_class_bound_to_another_directory_is_named(filled):
    Tables = declare(function=doubled)
    mm.apply(mm.plan(Tables, filled))
    plan = mm.plan(Tables, f'{filled}/other')
    with pytest.raises(PlanError, match=f"'{filled}/other'"):
        mm.apply(plan)


@pytest.mark.parametrize('name', ['select', 'count', 'where', 'Insert', 'order_by', 'table', 'is_bound'])
def test_a_column_named_like_a_method_is_refused_before_anything_is_made(directory, name):
    Tables = pxt.model_base()
    variables = {'Tables': Tables, 'pxt': pxt, '__name__': __name__}
    exec(f"class Clash(Tables, name='clash'):\n    {name}: pxt.Int", variables)
    place = rf"test_plan\.py: class Clash, table '{directory}/clash', column '{name.lower()}': .*Rename the column"
    with pytest.raises(SchemaError, match=place):
        mm.plan(Tables, directory)
    assert pxt.list_tables(directory) == []


def test_a_class_that_pixeltable_would_refuse_later_is_refused_by_the_plan(directory):
    Tables = pxt.model_base()

    class Items(Tables, name='items'):
        key = pxt.Column(type=pxt.Int | None, primary_key=True)

    with pytest.raises(SchemaError, match=r"class Items, table .*/items': Primary key column 'key' cannot be nullable"):
        mm.plan(Tables, directory)


def test_two_classes_of_one_name_are_refused_by_name(pixeltable_home):
    Tables = pxt.model_base()

    class One(Tables, name='same'):
        x: pxt.Int

    with pytest.raises(pxt.Error, match=r"`Two` has name 'same'.*used by `One`"):

        class Two(Tables, name='same'):
            y: pxt.Int


def test_what_is_no_schema_is_refused(pixeltable_home):
    with pytest.raises(SchemaError, match=r'not made by pxt.model_base\(\)'):
        mm.plan(object, 'shop')
    with pytest.raises(SchemaError, match='no table class is declared'):
        mm.plan(pxt.model_base(), 'shop')
    for name in ('a b', '../x', '', 'a//b', 'shop/', '_x', 'a.b'):
        with pytest.raises(
            ConfigError, match=rf"^'{name}' cannot be a directory of tables: give another one \(--dir\)"
        ):
            mm.plan(declare(), name)


def test_a_query_made_before_its_class_was_bound_is_refused(directory, tmp_path):
    Tables = declare()
    Items = Tables.__registered_models__['items']
    early = Items.where(Items.x > 0)
    with pytest.raises(SchemaError, match=r'Items is declared, but not bound.*mm\.apply'):
        mm.snapshot(early, root=tmp_path, fields={'x': Items.x})


def test_every_view_of_a_schema_can_be_planned_twice(directory):
    declared = numbers(directory)
    assert not mm.plan(declared.Tables, directory).pending
