"""What a query and an expression are made of."""

from __future__ import annotations

import pixeltable as pxt
import pytest

from mmpipe.errors import SchemaError
from mmpipe.functions import mean_pool, pixels
from mmpipe.store.expressions import (
    aggregated,
    column_id,
    columns_in_scope,
    filter_of,
    id_of,
    is_expression,
    owners_of,
    source_of,
    tables_behind,
)


def test_a_table_a_view_and_a_filter_say_what_they_are_made_of(directory):
    table = pxt.create_table(f'{directory}/t', {'photo': pxt.Image | None, 'x': pxt.Int})
    view = pxt.create_view(f'{directory}/v', table.where(table.x > 0), additional_columns={'y': pxt.Int | None})
    query = view.where(view.x < 9)
    for source, found in ((table, table), (view, view), (query, view), (f'{directory}/v', view)):
        assert id_of(source_of(source)[0]) == id_of(found)
    assert source_of(query)[1] is query
    assert (str(filter_of(query)), filter_of(view)) == ('x < 9', None)
    assert columns_in_scope(view) == ['y', 'photo', 'x']
    for query in (view.select(view.x), view.group_by(view.x)):
        with pytest.raises(SchemaError, match=r'this query has (select|group_by)\. Name the fields in fields='):
            source_of(query, whole=True)
    for clause, query in (('limit', view.limit(1)), ('order_by', view.order_by(view.x)), ('sample', view.sample(n=1))):
        with pytest.raises(SchemaError, match=rf'depends on other rows \({clause} .*full=True'):
            source_of(query)
        assert source_of(query, whole=True)[1] is query

    assert [is_expression(value) for value in (view.x, view.x + 1, 'x', None)] == [True, True, False, False]
    assert [column_id(value) for value in (view.x, view.x + 1)] == [(id_of(table), 'x'), None]
    assert str(aggregated(mean_pool(pixels(view.photo, size=2)))) == str(pixels(view.photo, size=2))
    assert owners_of(view.x + view.y) == {id_of(table), id_of(view)}
    assert tables_behind(view.y) == {id_of(view)}
