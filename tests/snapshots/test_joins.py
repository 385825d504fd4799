"""Snapshots of joined tables: a change on either side finds its rows by keys, and content is as from scratch."""

from __future__ import annotations

import itertools
import os
import tempfile

import media
import pixeltable as pxt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pixeltable.functions import count
from pixeltable.functions import sum as total
from schemas import media_table, write_csv

import mmpipe as mm
from mmpipe.errors import SchemaError, SnapshotError, SourceChangedError, StaleColumnError

HOWS = ('inner', 'left')


class Shop:
    """Items of brands of countries, with reviews: the tables, and beside them what they hold."""

    def __init__(self, directory: str) -> None:
        text = {'type': pxt.String | None}
        keyed = {'type': pxt.String, 'primary_key': True}
        self.tables = {
            'items': pxt.create_table(f'{directory}/items', {'sku': keyed, 'brand': text, 'x': pxt.Int}),
            'brands': pxt.create_table(f'{directory}/brands', {'name': keyed, 'country': text, 'rank': pxt.Int}),
            'countries': pxt.create_table(f'{directory}/countries', {'code': keyed, 'rank': pxt.Int}),
            'reviews': pxt.create_table(f'{directory}/reviews', {'id': keyed, 'sku': text, 'stars': pxt.Int}),
        }
        self.keys = {'items': 'sku', 'brands': 'name', 'countries': 'code', 'reviews': 'id'}
        self.clear()

    def clear(self) -> None:
        self.rows: dict[str, dict[str, dict]] = {name: {} for name in self.tables}
        for table in self.tables.values():
            table.delete()

    def put(self, name: str, row: dict) -> None:
        table, key = self.tables[name], self.keys[name]
        if row[key] in self.rows[name]:
            values = {column: value for column, value in row.items() if column != key}
            table.update(values, where=getattr(table, key) == row[key])
        else:
            table.insert([row])
        self.rows[name][row[key]] = row

    def delete(self, name: str, key: str) -> None:
        table = self.tables[name]
        table.delete(where=getattr(table, self.keys[name]) == key)
        self.rows[name].pop(key, None)

    def query(self, hows: tuple[str, str, str]):
        items, brands, countries, reviews = self.tables.values()
        query = items.join(brands, on=items.brand == brands.name, how=hows[0])
        query = query.join(reviews, on=items.sku == reviews.sku, how=hows[1])
        query = query.join(countries, on=brands.country == countries.code, how=hows[2])
        return query.where(items.x > 0)

    def fields(self) -> dict:
        items, brands, countries, reviews = self.tables.values()
        return {
            'x': items.x, 'rank': brands.rank, 'both': items.x + brands.rank, 'abroad': countries.rank,
            'stars': mm.field.pooled(total(reviews.stars)), 'reviews': mm.field.pooled(count(reviews.stars)),
        }  # fmt: skip

    def wanted(self, hows: tuple[str, str, str]) -> dict[str, dict]:
        """What the snapshot should hold, from the rows alone."""
        found = {}
        for sku, item in self.rows['items'].items():
            brand = self.rows['brands'].get(item['brand'])
            country = self.rows['countries'].get(brand['country']) if brand else None
            stars = [row['stars'] for row in self.rows['reviews'].values() if row['sku'] == sku]
            if item['x'] <= 0 or any(
                how == 'inner' and not there for how, there in zip(hows, (brand, stars, country), strict=True)
            ):
                continue
            found[sku] = {
                'x': item['x'], 'rank': brand and brand['rank'], 'both': brand and item['x'] + brand['rank'],
                'abroad': country and country['rank'], 'stars': sum(stars) if stars else None,
                'reviews': len(stars) if stars else None,
            }  # fmt: skip
        return found


def held(snapshot) -> dict[str, dict]:
    rows = snapshot.rows()
    columns = {name: rows.read(name) for name in snapshot.fields}
    return {
        key: {name: int(values[i]) if valid[i] else None for name, (values, valid) in columns.items()}
        for i, key in enumerate(rows.keys)
    }


@pytest.fixture(scope='module')
def shop(pixeltable_home):
    pxt.drop_dir('t_joins', force=True, if_not_exists='ignore')
    pxt.create_dir('t_joins')
    yield Shop('t_joins')
    pxt.drop_dir('t_joins', force=True)


small = st.integers(0, 3)
steps = st.one_of(
    st.builds(lambda i, b, x: ('put', 'items', {'sku': f'i{i}', 'brand': b, 'x': x}), st.integers(0, 5),
              st.sampled_from(['b0', 'b1', 'b2', None]), st.integers(-1, 3)),
    st.builds(lambda i, c, r: ('put', 'brands', {'name': f'b{i}', 'country': c, 'rank': r}), st.integers(0, 2),
              st.sampled_from(['c0', 'c1', None]), small),
    st.builds(lambda i, r: ('put', 'countries', {'code': f'c{i}', 'rank': r}), st.integers(0, 1), small),
    st.builds(lambda i, k, r: ('put', 'reviews', {'id': f'r{i}', 'sku': k, 'stars': r}), st.integers(0, 4),
              st.sampled_from(['i0', 'i1', 'i2', None]), small),
    st.tuples(st.just('delete'), st.sampled_from(['items', 'brands', 'countries', 'reviews']), small),
    st.just(('snapshot',)),
)  # fmt: skip


def run(shop: Shop, hows: tuple[str, str, str], history: list[tuple]) -> None:
    shop.clear()
    for i in range(3):
        shop.put('items', {'sku': f'i{i}', 'brand': f'b{i}', 'x': 1})
        shop.put('brands', {'name': f'b{i}', 'country': 'c0', 'rank': i})
        shop.put('reviews', {'id': f'r{i}', 'sku': f'i{i}', 'stars': i})
    shop.put('countries', {'code': 'c0', 'rank': 7})
    with tempfile.TemporaryDirectory() as root:
        before = None
        for step in [('snapshot',), *history, ('snapshot',)]:
            if step[0] == 'put':
                shop.put(step[1], step[2])
            elif step[0] == 'delete':
                shop.delete(step[1], f'{step[1][0]}{step[2]}')
            elif shop.wanted(hows):
                report = mm.snapshot(shop.query(hows), root=root, fields=shop.fields())
                wanted = shop.wanted(hows)
                assert held(report.snapshot) == wanted
                assert bool(report.whole) == (before is None)
                if before is not None:
                    changed = {key for key in wanted.keys() & before.keys() if wanted[key] != before[key]}
                    assert report.updated == len(changed)
                    assert report.inserted == len(wanted.keys() - before.keys())
                    assert report.dropped == len(before.keys() - wanted.keys())
                before = wanted


shared = {'deadline': None, 'suppress_health_check': [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]}


@settings(max_examples=3, **shared)
@given(st.tuples(*[st.sampled_from(HOWS)] * 3), st.lists(steps, min_size=3, max_size=8))
def test_a_random_history_of_joined_tables_ends_as_from_scratch(shop, hows, history):
    run(shop, hows, history)


@pytest.mark.hardening
@pytest.mark.timeout(3600)
@pytest.mark.parametrize('hows', list(itertools.product(HOWS, HOWS, HOWS)))
@settings(max_examples=20, **shared)
@given(st.lists(steps, min_size=3, max_size=15))
def test_many_do(shop, hows, history):
    run(shop, hows, history)


def filled(shop):
    shop.clear()
    shop.put('items', {'sku': 'i0', 'brand': 'b0', 'x': 1})
    shop.put('items', {'sku': 'i1', 'brand': 'b1', 'x': 2})
    shop.put('brands', {'name': 'b0', 'country': 'c0', 'rank': 3})
    shop.put('reviews', {'id': 'r0', 'sku': 'i0', 'stars': 5})
    return shop.tables.values()


def test_a_join_that_keys_cannot_follow_is_refused_with_the_reason(shop, directory, tmp_path):
    items, brands, _countries, reviews = filled(shop)
    same = items.brand == brands.name
    view = pxt.create_view(f'{directory}/some', items.where(items.x > 0))
    fields = {'x': items.x}
    refused = {
        r"'t_joins/brands' is joined by how='full_outer'.*inner and left": items.join(
            brands, on=same, how='full_outer'
        ),
        r"'t_joins/brands' is joined by how='cross'": items.join(brands, how='cross'),
        r'joined on x < rank: changes of its rows': items.join(brands, on=items.x < brands.rank),
        r'joined on \(brand == name\) \| ': items.join(brands, on=same | (items.brand == brands.country)),
        r'cross join of': items.join(view, on=items.sku == view.sku),
        r"the filter reads 't_joins/brands', and a left join": items.join(brands, on=same, how='left').where(
            brands.rank > 1
        ),
        r"the filter reads 't_joins/reviews', and several": items.join(reviews, on=items.sku == reviews.sku).where(
            reviews.stars > 1
        ),
        r'full=True to compare every row': items.where(items.x > 0).limit(1),
        r'this query has group_by': items.group_by(items.brand),
    }
    for reason, query in refused.items():
        with pytest.raises(SchemaError, match=reason):
            mm.snapshot(query, root=tmp_path, fields=fields)
    with pytest.raises(SnapshotError, match=r"reads 't_joins/reviews', of which several.*pooled\(mean\(stars\)\)"):
        mm.snapshot(items.join(reviews, on=items.sku == reviews.sku), root=tmp_path, fields={'s': reviews.stars})
    with pytest.raises(SnapshotError, match=r"not a column of 't_joins/items'.*\.join\(\.\.\.\)"):
        mm.snapshot(items, root=tmp_path, fields={'rank': brands.rank})
    assert not list(tmp_path.iterdir())


def test_rows_that_depend_on_each_other_are_taken_whole(shop, tmp_path):
    items, brands, *_ = filled(shop)
    query = items.join(brands, on=items.brand == brands.name, how='left').order_by(items.x, asc=False).limit(1)
    fields = {'x': items.x, 'rank': brands.rank}
    first = mm.snapshot(query, root=tmp_path, fields=fields, full=True)
    assert held(first.snapshot) == {'i1': {'x': 2, 'rank': None}}
    shop.put('items', {'sku': 'i0', 'brand': 'b0', 'x': 9})
    second = mm.snapshot(query, root=tmp_path, fields=fields, full=True)
    assert held(second.snapshot) == {'i0': {'x': 9, 'rank': 3}}
    assert (second.inserted, second.dropped, second.whole) == (1, 1, 'full=True')
    assert mm.snapshot(query, root=tmp_path, fields=fields, full=True).written == 0


def test_a_change_of_one_partner_looks_at_its_rows_alone(shop, tmp_path):
    items, brands, *_ = filled(shop)
    for i in range(2, 40):
        shop.put('items', {'sku': f'i{i}', 'brand': 'b1', 'x': 1})
    shop.put('brands', {'name': 'b1', 'country': None, 'rank': 4})
    query, fields = items.join(brands, on=items.brand == brands.name), {'x': items.x, 'rank': brands.rank}
    mm.snapshot(query, root=tmp_path, fields=fields)
    shop.put('brands', {'name': 'b0', 'country': 'c9', 'rank': 3})  # no field reads the country
    report = mm.snapshot(query, root=tmp_path, fields=fields)
    assert (report.compared, report.written, report.bytes_written) == (1, 0, 0)
    shop.put('brands', {'name': 'b0', 'country': 'c9', 'rank': 5})
    report = mm.snapshot(query, root=tmp_path, fields=fields)
    assert (report.compared, report.updated, dict(report.cells)) == (0, 1, {'rank': 1})


def test_stale_columns_and_changed_files_of_a_joined_table_are_refused(directory, tmp_path, monkeypatch):
    goods = media_table(directory).Items.table
    table = pxt.create_table(f'{directory}/sold', {'id': {'type': pxt.String, 'primary_key': True}, 'key': pxt.String})
    table.insert([{'id': f's{i}', 'key': 'a'} for i in range(2)])
    photo = media.photo(tmp_path / 'a.png')
    mm.ingest(goods, mm.sources.rows(write_csv(tmp_path / 'a.csv', [{'key': 'a', 'photo': photo.name}])))
    one, many = table.join(goods, on=table.key == goods.key), goods.join(table, on=goods.key == table.key)
    report = mm.snapshot(one, root=tmp_path / 'one', fields={'photo': goods.square, 'id': table.id})
    assert report.inserted == 2
    counted = mm.snapshot(many, root=tmp_path / 'many', fields={'n': mm.field.pooled(count(table.id))})
    assert held(counted.snapshot) == {'a': {'n': 2}}
    os.utime(photo, (1, 1))
    photo.write_bytes(photo.read_bytes() + b'\0')
    for query, root, fields in (
        (one, 'two', {'photo': goods.square}),
        (table.join(goods, on=table.key == goods.key, how='left'), 'three', {'photo': goods.square}),
    ):
        with pytest.raises(SourceChangedError, match=r"row 's0', column photo: '.*a.png' has other content"):
            mm.snapshot(query, root=tmp_path / root, fields=fields)
    monkeypatch.setattr('mmpipe.ledger.book.Book.states', stale_square)
    with pytest.raises(StaleColumnError, match=r"'.*items.square' holds 1 rows"):
        mm.snapshot(one, root=tmp_path / 'one', fields={'photo': goods.square, 'id': table.id})


def stale_square(book):
    from mmpipe.ledger import ColumnState

    yield from (
        ColumnState(table=path, column=name, stale=1, why='x') for path, name in book.prints if name == 'square'
    )
