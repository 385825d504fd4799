"""Naming a factory, and finding it again."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from mmpipe.errors import ConfigError, RunError
from mmpipe.runs import ChangedSourceWarning, describe_factory, find_factory, source_fingerprint

MODULE = """
WIDTH = 3

def helper(width):
    return width * WIDTH

def build(width=1):
    \"\"\"Doc.\"\"\"
    return helper(width)

class Box:
    def build():
        return 'box'

def unrelated():
    return 1
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / 'factories_here.py').write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    import importlib

    yield importlib.import_module('factories_here')
    sys.modules.pop('factories_here', None)


def test_a_factory_at_the_top_of_a_module_is_found_again_with_its_arguments(module):
    record, reason = describe_factory(module.build, {'width': 2})
    assert reason is None
    again = json.loads(json.dumps(record))
    assert find_factory(again)(**again['args']) == 6


def test_a_nested_name_is_found_again(module):
    record, _ = describe_factory(module.Box.build)
    assert find_factory(record)() == 'box'


def test_a_module_is_found_from_its_file_when_its_folder_is_not_on_the_path(module, monkeypatch):
    record, _ = describe_factory(module.build)
    del sys.modules['factories_here']
    monkeypatch.setattr(sys, 'path', [p for p in sys.path if p != record['file'].rsplit('/', 1)[0]])
    assert find_factory(record)() == 3
    assert record['file'].rsplit('/', 1)[0] not in sys.path


@pytest.mark.parametrize(
    ('old', 'new', 'same'),
    [
        ('Doc.', 'Another doc.', True),
        ('return helper(width)', 'return helper(  width )  # fast', True),
        ('return 1', 'return 2', True),
        ('width * WIDTH', 'width + WIDTH', False),
        ('WIDTH = 3', 'WIDTH = 4', False),
        ('width=1', 'width=2', False),
    ],
)
def test_the_fingerprint_follows_what_the_factory_uses_and_nothing_else(old, new, same):
    assert old in MODULE
    assert (source_fingerprint(MODULE, 'build') == source_fingerprint(MODULE.replace(old, new), 'build')) == same


def test_changed_source_is_a_warning_that_names_the_factory(module, tmp_path):
    record, _ = describe_factory(module.build)
    (tmp_path / 'factories_here.py').write_text(MODULE.replace('WIDTH = 3', 'WIDTH = 5'))
    with pytest.warns(ChangedSourceWarning, match="'build'.*shop/0001"):
        find_factory(record, run='shop/0001')


def test_what_no_other_process_could_find_is_told_with_the_reason(module):
    def inner():
        return 1

    for factory, why in ((lambda: 1, 'lambda'), (inner, 'inner'), (object(), 'a built object')):
        record, reason = describe_factory(factory)
        assert record is None
        assert why in reason


def test_a_factory_or_file_that_is_gone_is_an_error_with_the_next_move(module, tmp_path, monkeypatch):
    record, _ = describe_factory(module.build)
    with pytest.raises(RunError, match='no longer has that name'):
        find_factory({**record, 'qualname': 'bild'})
    del sys.modules['factories_here']
    monkeypatch.setattr(sys, 'path', [p for p in sys.path if p != str(tmp_path)])
    (tmp_path / 'factories_here.py').unlink()
    with pytest.raises(RunError, match='put the file back'):
        find_factory(record)


@pytest.mark.parametrize('args', [{'a': {1, 2}}, {'a': (1, 2)}, {'a': float('nan')}, {'a': {1: 2}}])
def test_arguments_that_json_would_change_are_refused(module, args):
    with pytest.raises(ConfigError, match='survive JSON'):
        describe_factory(module.build, args)


def test_a_missing_package_inside_the_module_is_not_taken_for_a_missing_module(module, tmp_path):
    record, _ = describe_factory(module.build)
    del sys.modules['factories_here']
    (tmp_path / 'factories_here.py').write_text('import no_such_package_at_all\n' + MODULE)
    with pytest.raises(ModuleNotFoundError, match='no_such_package_at_all'):
        find_factory(record)


def test_a_factory_in_a_script_is_found_in_another_process(tmp_path):
    script = tmp_path / 'script.py'
    script.write_text(
        'import json, sys\nfrom mmpipe.runs import describe_factory\nfrom neighbour import VALUE\n'
        'def build(width):\n    return width + VALUE\n'
        "if __name__ == '__main__':\n    print(json.dumps(describe_factory(build, {'width': 1})[0]))\n"
    )
    (tmp_path / 'neighbour.py').write_text('VALUE = 41\n')
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    record = json.loads(done.stdout)
    assert record['module'] == '__main__'
    assert find_factory(record)(**record['args']) == 42
    assert str(tmp_path) not in sys.path
