"""Edits of a small project, each undone again: those that change values change the fingerprint, the others do not."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mmpipe.fingerprints import Fingerprint, fingerprint

FILES = {
    'edited/__init__.py': '',
    'edited/functions.py': '''
"""Functions of columns."""
import functools
import math
import re
from dataclasses import dataclass

import numpy as np

from edited import helpers
from edited.decorators import repeated, scaled
from edited.helpers import clean as tidy
from mmpipe.fingerprints import loads

LIMIT = 10
WORD = re.compile('[a-z]+')
SIZES = (1, 2, (3, 4))
STOPS = {'a', 'the'}
_cache = {}


@dataclass(frozen=True)
class Options:
    """How."""
    power: int = 2
    root: float = 0.5


OPTIONS = Options(power=3)


class Model:
    """What it computes with."""
    bias = 1

    def __init__(self, size):
        self.size = size

    def run(self, x):
        """Run it."""
        return x * self.size + self.bias + self.inner(x)

    def inner(self, x):
        return np.sqrt(x)


@functools.cache
def model(size):
    return Model(size)


@loads(lambda kind='small': [FOLDER / f'{kind}.bin'])
@scaled(factor=2)
def value(text, x: float = 1.5, *, kind='small', sizes=SIZES) -> float:
    """The value of a text."""
    # counted in words
    words = [word for word in WORD.findall(tidy(text)) if word not in STOPS]
    total = 0
    for position, word in enumerate(words[:LIMIT]):
        total += helpers.weight(word) * (position + 1)
    if text not in _cache:
        _cache[text] = total ** OPTIONS.power
    if x < 0:
        raise ValueError(f'{x} is below zero')
    def added(y):
        bonus = y + len(words)
        return bonus
    from edited.lazy import late
    return late(added(_cache[text])) + model(3).run(x) + math.pi + unrelated_lambda(x) + sizes[0] + repeated(x)


unrelated_lambda, other_lambda = lambda x: x + 1, lambda x: x + 3
from pathlib import Path
FOLDER = Path(__file__).parent


def unused():
    return 1
''',
    'edited/helpers.py': '''
"""Helpers."""
from .deep import far


def clean(text):
    return text.strip().lower()


def weight(word):
    return far.weight_of(word) + len(word)


def unused():
    return 2
''',
    'edited/deep/__init__.py': '',
    'edited/deep/far.py': """
SCALE = 0.25


def weight_of(word, base=7):
    return SCALE * base * len(word)


def unused():
    return 3
""",
    'edited/decorators.py': """
import functools


def scaled(factor):
    def decorate(function):
        @functools.wraps(function)
        def wrapper(*args, **kwargs):
            return factor * function(*args, **kwargs)
        return wrapper
    return decorate


def _maker(times):
    return lambda x: x * times


repeated = _maker(4)
""",
    'edited/lazy.py': """
def late(x):
    return x + OFFSET


OFFSET = 5
""",
}  # fmt: skip

F, H, D, W, L = (f'edited/{name}.py' for name in ('functions', 'helpers', 'deep/far', 'decorators', 'lazy'))
MATTERS = [
    (F, 'x < 0', 'x <= 0'),
    (F, 'position + 1', 'position + 2'),
    (F, 'LIMIT = 10', 'LIMIT = 11'),
    (F, "re.compile('[a-z]+')", "re.compile('[a-z]+', re.I)"),
    (F, "'[a-z]+'", "'[a-z]*'"),
    (F, '(1, 2, (3, 4))', '(1, 2, (3, 5))'),
    (F, "{'a', 'the'}", "{'a', 'the', 'an'}"),
    (F, 'Options(power=3)', 'Options(power=4)'),
    (F, 'root: float = 0.5', 'root: float = 0.6'),
    (F, 'bias = 1', 'bias = 2'),
    (F, 'x * self.size', 'x / self.size'),
    (F, 'np.sqrt(x)', 'np.cbrt(x)'),
    (F, 'self.size = size', 'self.size = size + 1'),
    (F, 'return Model(size)', 'return Model(size + 1)'),
    (F, 'x: float = 1.5', 'x: float = 2.5'),
    (F, "*, kind='small'", "*, kind='large'"),
    (F, 'lambda x: x + 1', 'lambda x: x + 2'),
    (F, 'y + len(words)', 'y - len(words)'),
    (F, 'math.pi', 'math.e'),
    (F, 'model(3)', 'model(4)'),
    (F, '@scaled(factor=2)', '@scaled(factor=3)'),
    (F, 'sizes[0]', 'sizes[1]'),
    (F, 'text not in _cache', 'text not in _cache or x'),
    (H, '.lower()', '.upper()'),
    (H, '+ len(word)', '- len(word)'),
    (D, 'SCALE = 0.25', 'SCALE = 0.5'),
    (D, 'base=7', 'base=8'),
    (D, 'base * len', 'base + len'),
    (W, 'factor * function', 'factor + function'),
    (W, '_maker(4)', '_maker(5)'),
    (W, 'x * times', 'x - times'),
    (L, 'x + OFFSET', 'x - OFFSET'),
    (L, 'OFFSET = 5', 'OFFSET = 6'),
    ('edited/small.bin', 'weights', 'other weights'),
]
MATTERS_NOT = [
    (F, '# counted in words', '# counted otherwise'),
    (F, '"""The value of a text."""', '"""Other words."""'),
    (F, '"""Run it."""\n', '\n'),
    (F, '"""How."""', '"""How else."""'),
    (F, 'total += ', 'total  +=  '),
    (F, '    if x < 0:\n', '\n\n    if (x < 0):\n'),
    (F, 'x: float', 'x: int'),
    (F, ') -> float', ') -> object'),
    (F, "f'{x} is below zero'", "f'{x} is negative'"),
    (F, 'bonus', 'extra'),
    (F, 'position', 'place'),
    (F, 'word', 'token'),
    (F, '_cache = {}', '_cache: dict = {}'),
    (F, 'return 1\n', 'return 100\n'),
    (H, 'return 2', 'return 200'),
    (H, '"""Helpers."""', ''),
    (D, 'return 3', 'return 300'),
    (W, 'def scaled', '\n\ndef scaled'),
    (L, 'def late', '# late\ndef late'),
    ('edited/large.bin', 'weights', 'other weights'),
]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Fingerprint]]:
    """Writes the project; gives a function that imports it anew and takes the fingerprint."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    for kind in ('small', 'large'):
        (tmp_path / 'edited' / f'{kind}.bin').write_text('weights')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, 'dont_write_bytecode', True)

    def forget() -> None:
        for name in [name for name in sys.modules if name.partition('.')[0] == 'edited']:
            del sys.modules[name]

    def taken() -> Fingerprint:
        forget()
        importlib.invalidate_caches()
        return fingerprint(importlib.import_module('edited.functions').value)

    yield taken
    forget()


def edited(project: Callable[[], Fingerprint], folder: Path, file: str, old: str, new: str) -> tuple[str, str]:
    before = project().digest
    text = (folder / file).read_text()
    assert old in text
    (folder / file).write_text(text.replace(old, new))
    after = project().digest
    (folder / file).write_text(text)
    assert project().digest == before  # undone, it is what it was
    return before, after


@pytest.mark.parametrize(('file', 'old', 'new'), MATTERS, ids=[f'{old} -> {new}' for _, old, new in MATTERS])
def test_an_edit_that_changes_values_is_noticed(project, tmp_path: Path, file: str, old: str, new: str) -> None:
    before, after = edited(project, tmp_path, file, old, new)
    assert before != after


@pytest.mark.parametrize(('file', 'old', 'new'), MATTERS_NOT, ids=[f'{old} -> {new}' for _, old, new in MATTERS_NOT])
def test_an_edit_that_changes_no_value_is_no_alarm(project, tmp_path: Path, file: str, old: str, new: str) -> None:
    before, after = edited(project, tmp_path, file, old, new)
    assert before == after


def test_constants_that_say_nothing_of_files_are_not_asked_about(project) -> None:
    plain = project()
    function = sys.modules['edited.functions'].value
    assert fingerprint(function, constants={'kind': 'small', 'sizes': 3}).digest == plain.digest
    assert 'file large.bin' in fingerprint(function, constants={'kind': 'large', 'sizes': 3}).parts


def test_what_changed_is_named(project, tmp_path: Path) -> None:
    before = project()
    (tmp_path / D).write_text((tmp_path / D).read_text().replace('SCALE = 0.25', 'SCALE = 0.5'))
    assert project().changes(before.parts) == ['constant edited.deep.far.SCALE changed']


def test_packages_are_recorded_and_count_when_asked(project) -> None:
    taken = project()
    assert set(taken.packages) == {'numpy'}
    function = sys.modules['edited.functions'].value
    assert fingerprint(function, count_packages=['numpy']).digest != taken.digest


def test_mutable_globals_are_excluded_by_rule_and_listed(project) -> None:
    before = project()
    sys.modules['edited.functions']._cache['x'] = 1
    after = fingerprint(sys.modules['edited.functions'].value)
    assert after.digest == before.digest
    assert {'edited.functions._cache', 'edited.functions.STOPS'} <= set(after.excluded)
    assert after.unresolved == ()
