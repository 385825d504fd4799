"""The examples in docstrings of UDFs: Pixeltable's objects hide them from doctest's own search."""

from __future__ import annotations

import doctest
import importlib

import pytest

import mmpipe.functions
from mmpipe.functions import counting

DECLARED = [name for name in mmpipe.functions.__all__ if name not in ('cached', 'counted', 'counts', 'reset')]


@pytest.mark.parametrize('name', DECLARED)
def test_the_example_runs(name):
    function = getattr(mmpipe.functions, name)
    # An iterator keeps its docstring on the function it wraps.
    body = getattr(function, 'decorated_callable', function)
    path = getattr(function, 'self_path', None) or getattr(function, 'fqn', None)
    name_of_module = function.__module__ if path is None else path.rpartition('.')[0]  # a plain function that calls one
    module = importlib.import_module(name_of_module)
    example = doctest.DocTestParser().get_doctest(body.__doc__, dict(vars(module)), name, module.__file__, 0)
    assert example.examples, f'{name} has no example'
    runner = doctest.DocTestRunner()
    runner.run(example)
    assert not runner.failures
    counting.reset()
