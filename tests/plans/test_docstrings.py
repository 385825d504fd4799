"""The examples of the public functions that need a database: a plain doctest run skips them, so they run here."""
# ruff: noqa: F821  (Pixeltable puts column names in scope)

from __future__ import annotations

import doctest

import media
import pixeltable as pxt
from schemas import write_csv

import mmpipe as mm
from mmpipe.functions import pixels


def test_the_examples_run_in_the_order_of_a_pipeline(pixeltable_home, tmp_path, monkeypatch):
    Tables = pxt.model_base()

    class Products(Tables, name='products'):
        key = pxt.Column(type=pxt.String, primary_key=True)
        photo: pxt.Image | None
        price: pxt.Float | None
        origin: pxt.Json | None
        square = pixels(photo, size=8)

    monkeypatch.chdir(tmp_path)
    media.photo(tmp_path / 'mug.jpg')
    rows = [{'key': 'mug', 'photo': 'mug.jpg', 'price': 4.5}, {'key': 'jar', 'photo': None, 'price': None}]
    write_csv(tmp_path / 'products.csv', [*rows, {'key': 'pot', 'photo': 'pot.jpg', 'price': 1}])
    pxt.drop_dir('shop', force=True, if_not_exists='ignore')
    try:
        for function in (mm.plan, mm.apply, mm.ingest, mm.quarantined, mm.retry, mm.status):
            text = function.__doc__.replace('  # doctest: +SKIP', '')
            namespace = {'mm': mm, 'Tables': Tables, 'Products': Products}
            example = doctest.DocTestParser().get_doctest(text, namespace, function.__name__, None, 0)
            assert example.examples
            runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
            runner.run(example)
            assert not runner.failures, function.__name__
    finally:
        pxt.drop_dir('shop', force=True)
