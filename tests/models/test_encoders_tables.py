"""Numbers and categories of a row together."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmpipe.errors import ConfigError
from mmpipe.models import encoders


def test_numbers_are_standardised_and_categories_are_not():
    encoder = encoders.tabular(2, [3], 8).eval()
    rows = np.array([[0.0, 100.0, 2], [2.0, 300.0, 0]], dtype=np.float32)
    encoder.fit_buffers([rows])
    assert encoder.standardize.mean.tolist() == [1, 200]
    a, b = encoder(torch.from_numpy(rows))
    torch.testing.assert_close(encoder(torch.from_numpy(rows[[0]]))[0], a)
    assert not torch.equal(a, b)


def test_a_category_that_is_none_of_them_has_a_vector_of_its_own():
    encoder = encoders.tabular(0, [3, 4], 8).eval()
    rows = torch.tensor([[0, 1], [3, 1], [-1, 1], [99, 1], [3, 4]])
    known, outside, below, above, second = encoder(rows)
    torch.testing.assert_close(outside, below)
    torch.testing.assert_close(outside, above)
    for other in (known, second):
        assert (outside - other).abs().max() > 1e-3


def test_whole_numbers_up_to_sixteen_million_survive_as_floats():
    encoder = encoders.tabular(1, [70_000], 4).eval()
    rows = torch.tensor([[0.5, 69_999.0], [0.5, 69_998.0]])
    one, other = encoder(rows)
    assert not torch.equal(one, other)


@pytest.mark.parametrize(
    'options', [{}, {'numbers': -1}, {'numbers': 1, 'categories': [0]}, {'numbers': 1, 'layers': 0}]
)
def test_tables_without_columns_and_sizes_below_one_are_refused(options):
    with pytest.raises(ConfigError, match=r'encoders\.tabular'):
        encoders.tabular(**options)
