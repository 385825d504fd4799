"""Rows dealt by Dirichlet shares: each once, the same again, and as uneven as alpha says."""

from __future__ import annotations

import numpy as np
import pytest
from shop_snapshot import FIELDS, write_shop

import mmpipe as mm
from mmpipe.errors import ConfigError
from mmpipe.federated import split_dirichlet, write_parts


@pytest.fixture(scope='module')
def shop(tmp_path_factory):
    return write_shop(tmp_path_factory.mktemp('dealt'), 600)


def keys(parts):
    return [sorted(part.keys.tolist()) for part in parts]


def skew(parts):
    """Mean share of a client's most frequent class."""
    shares = []
    for part in parts:
        words = [word for word in part.words('kind') if word is not None]
        if words:
            shares.append(max(words.count(word) for word in set(words)) / len(words))
    return float(np.mean(shares))


def test_every_row_is_with_one_client(shop):
    parts = split_dirichlet(shop.rows(), 'kind', clients=5, alpha=0.3)
    assert sorted(key for part in keys(parts) for key in part) == sorted(shop.rows().keys.tolist())


def test_the_same_seed_deals_the_same_rows_in_whatever_order_they_lie(shop):
    rows = shop.rows()
    turned = rows.take(np.random.default_rng(1).permutation(len(rows)))
    deal = {'label': 'kind', 'clients': 4, 'alpha': 0.5}
    first = keys(split_dirichlet(rows, **deal, seed=7))
    assert first == keys(split_dirichlet(turned, **deal, seed=7))
    assert first != keys(split_dirichlet(rows, **deal, seed=8))


def test_alpha_says_how_uneven(shop):
    uneven, even = (split_dirichlet(shop.rows(), 'kind', clients=4, alpha=alpha) for alpha in (0.05, 1e4))
    assert skew(uneven) > 0.7
    assert skew(even) < 0.45
    sizes = [len(part) for part in even]
    assert max(sizes) - min(sizes) <= 8  # a rounding per class and split


def test_a_client_has_as_much_of_a_class_in_each_split(shop):
    for part in split_dirichlet(shop.rows(), 'kind', clients=3, alpha=0.5):
        words, splits = np.array(part.words('kind'), dtype=object), part.system('_split')
        for word in ('cup', 'hat', 'map'):
            train, val = (int(((words == word) & (splits == split)).sum()) for split in ('train', 'val'))
            assert abs(train / 3 - val) <= 2 + 0.2 * val


def test_too_few_rows_for_all_are_refused(shop):
    with pytest.raises(ConfigError, match=r'never had each of 30 clients 20 rows'):
        split_dirichlet(shop.rows(), 'kind', clients=30, alpha=0.1, least=20)


def test_parts_are_written_as_snapshots_of_the_same_values(shop, tmp_path):
    parts = split_dirichlet(shop.rows(), 'kind', clients=3, alpha=0.5)
    for root, part in zip(write_parts(parts, tmp_path), parts, strict=True):
        again = mm.open_snapshot(root).rows()
        assert again.keys.tolist() == part.keys.tolist()
        assert again.system('_split').tolist() == part.system('_split').tolist()
        assert again.fields == part.fields
        for field in FIELDS:
            before, now = part.read(field.name), again.read(field.name)
            np.testing.assert_array_equal(now[1], before[1])
            for left, right in zip(now[0], before[0], strict=True):
                np.testing.assert_array_equal(left, right)
