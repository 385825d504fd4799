"""The public names: all there, typed, documented, and the extras that features name exist."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
import tomllib
from pathlib import Path

import pytest

import mmpipe
from mmpipe.errors import MissingExtraError, require

ROOT = Path(mmpipe.__file__).parent.parent
EXTRAS = {
    'vision', 'jpeg', 'text', 'metrics', 'plots', 'lora', 'track', 'tune', 'federated', 'ray', 'deepspeed', 's3',
    'demo', 'test', 'dev',
}  # fmt: skip


@pytest.mark.parametrize('name', [name for name in mmpipe.__all__ if name != '__version__'])
def test_every_public_name_is_there_and_documented(name: str) -> None:
    assert inspect.getdoc(getattr(mmpipe, name))


def test_no_function_shares_its_name_with_a_module_that_would_take_its_place() -> None:
    modules = {path.stem for path in Path(mmpipe.__file__).parent.iterdir() if path.suffix == '.py' or path.is_dir()}
    assert {name for name in mmpipe.__all__ if name in modules} == {
        'sources',
        'functions',
        'decode',
        'runs',
        'federated',
    }


def test_type_checkers_see_the_names_that_are_imported_lazily() -> None:
    tree = ast.parse(Path(mmpipe.__file__).read_text(encoding='utf-8'))
    block = next(node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == 'TYPE_CHECKING')
    seen = {alias.asname for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen | {'__version__'} == set(mmpipe.__all__)


def test_the_package_is_marked_as_typed() -> None:
    assert (Path(mmpipe.__file__).parent / 'py.typed').is_file()


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match='no attribute'):
        mmpipe.nothing  # noqa: B018


def test_pipelines_has_no_init_so_that_an_installed_one_never_shadows_the_users() -> None:
    assert not list((ROOT / 'pipelines').rglob('__init__.py'))


def test_the_extras_are_declared_and_every_one_that_code_names_exists() -> None:
    declared = set(tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']['optional-dependencies'])
    assert declared == EXTRAS
    source = '\n'.join(path.read_text(encoding='utf-8') for path in (ROOT / 'mmpipe').rglob('*.py'))
    named = set(re.findall(r"require\(\s*'(\w+)'", source)) | set(re.findall(r'mmpipe\[(\w+)\]', source))
    assert named
    assert named <= declared


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name, *rest: None if name == 'timm' else find(name, *rest))
    with pytest.raises(MissingExtraError, match=re.escape("pip install 'mmpipe[vision]'")):
        require('vision', 'timm', why='embed_image')
    with pytest.raises(MissingExtraError, match=re.escape("pip install 'mmpipe[vision]'")):
        mmpipe.encoders.timm('resnet18')
