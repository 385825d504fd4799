"""What README.md says is true: its story runs as it stands there, and its tree names every file."""

from __future__ import annotations

import csv
import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmpipe.cli import PENDING, app

ROOT = Path(__file__).parents[1]
README = (ROOT / 'README.md').read_text(encoding='utf-8')
DATA = ROOT / 'examples' / 'data'


@pytest.fixture
def shop(tmp_path: Path, pixeltable_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The story's files, and 24 products that it could be about."""
    import pixeltable as pxt

    for text in re.findall(r'```python\n(# pipelines/shop/.*?)```', README, re.DOTALL):
        file = tmp_path / re.split(r'[ :\n]', text.removeprefix('# '), maxsplit=1)[0]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    (tmp_path / 'pyproject.toml').touch()
    (tmp_path / 'data').mkdir()
    with (DATA / 'items.csv').open(encoding='utf-8') as file:
        items = [row for row in csv.DictReader(file) if row['photo'] and row['category']]
    with (tmp_path / 'data' / 'products.csv').open('w', encoding='utf-8', newline='') as file:
        writer = csv.DictWriter(file, ['sku', 'photo', 'pitch', 'clip', 'price', 'category'])
        writer.writeheader()
        for row in items[:24]:
            for name in filter(None, (row['photo'], row['speech'], row['clip'])):
                (tmp_path / 'data' / name).parent.mkdir(exist_ok=True)
                shutil.copy(DATA / name, tmp_path / 'data' / name)
            price = len(row['key'])
            values = [row['key'], row['photo'], row['speech'], row['clip'], price, row['category']]
            writer.writerow(dict(zip(writer.fieldnames, values, strict=True)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'path', list(sys.path))
    yield tmp_path
    pxt.drop_dir('shop', if_not_exists='ignore', force=True)
    for name in [name for name in sys.modules if name.startswith('pipelines.shop')]:
        del sys.modules[name]


def command(line: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict]:
    status = app([*line.split()[1:], '--json'], standalone_mode=False)
    return status or 0, json.loads(capsys.readouterr().out)


def test_the_story_runs_as_it_stands_in_the_readme(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [line.partition('#')[0].strip() for line in README.splitlines() if re.match(r'mmpipe \w+ shop', line)]
    lines = [line.replace('--seconds 5', '--seconds 0.2') for line in lines]
    said = {line.split()[1]: command(line, capsys) for line in lines}
    assert list(said) == ['plan', 'apply', 'ingest', 'snapshot', 'train', 'doctor', 'status']
    assert {name: status for name, (status, _) in said.items() if status} == {'plan': PENDING}
    assert [table['inserted'] for table in said['ingest'][1]['tables']] == [24]
    assert said['ingest'][1]['computed']['products.photo_vector'] == 24
    assert said['snapshot'][1]['rows'] == said['snapshot'][1]['inserted'] == 24
    assert set(said['train'][1]['metrics']) == {'category', 'price'}
    assert said['doctor'][1]['bottleneck']
    assert [run['id'] for run in said['status'][1]['runs']] == ['shop/0001']
    # And once more: nothing is left to do but to train on.
    again = {line.split()[1]: command(line, capsys)[1] for line in lines[:4]}
    assert again['plan']['changes'] == again['apply']['changes'] == []
    assert [table['unchanged'] for table in again['ingest']['tables']] == [24]
    assert set(again['ingest']['computed'].values()) == {0}
    assert again['snapshot']['written'] == 0
    assert command('mmpipe train shop --continue', capsys)[1]['parent']['run'] == 'shop/0001'


def test_the_tree_names_every_file_with_a_phrase() -> None:
    tree = re.search(r'## Files\n\n```\n(.*?)\n```', README, re.DOTALL)
    assert tree is not None
    named, folders = set(), ['']
    for line in tree[1].splitlines():
        found = re.fullmatch(r'( *)(\S+?)(?: {2,}| )(.*)', line) or re.fullmatch(r'( *)(\S+)()', line)
        assert found is not None, line
        depth, name = len(found[1]) // 2, found[2]
        assert found[3] or name == 'mmpipe/', line
        folders = [*folders[: depth + 1], folders[depth] + name]
        if not name.endswith('/'):
            named.add(folders[depth] + name)
    code = {path for pattern in ('mmpipe/**/*.py', 'pipelines/*/*.py', 'examples/*.py', 'benchmarks/*.py')
            for path in ROOT.glob(pattern) if path.name != '__init__.py'}  # fmt: skip
    pages = ('design', 'loading', 'training', 'scale', 'tuning', 'federated', 'ray', 'stores')
    others = {*(f'docs/{page}.md' for page in pages), '.ci/run'}
    assert named == {path.relative_to(ROOT).as_posix() for path in code} | others
