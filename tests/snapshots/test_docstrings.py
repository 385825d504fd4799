"""The example of `mm.snapshot` needs a database: a plain doctest run skips it, so it runs here."""

from __future__ import annotations

import doctest

import pixeltable as pxt

import mmpipe as mm


def test_the_example_runs(directory, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    products = pxt.create_table(f'{directory}/products', {'kind': pxt.String, 'price': pxt.Float})
    products.insert([{'kind': kind, 'price': price} for kind, price in (('mug', 4.5), ('jar', 2.0), ('lid', 0.5))])
    text = mm.snapshot.__doc__.replace('  # doctest: +SKIP', '')
    example = doctest.DocTestParser().get_doctest(text, {'mm': mm, 'Products': products}, 'snapshot', None, 0)
    assert len(example.examples) == 4
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    runner.run(example)
    assert not runner.failures
