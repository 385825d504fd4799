"""The code in docs/ runs as it stands there, and the names it mentions are there."""

from __future__ import annotations

import re
from pathlib import Path

import mmpipe as mm
from mmpipe.shards import Block, Field, write_snapshot

ROOT = Path(__file__).parents[1]
LOADING = (ROOT / 'docs' / 'loading.md').read_text(encoding='utf-8')


def test_the_loader_of_the_page_loads(tmp_path: Path) -> None:
    photos = sorted((ROOT / 'examples' / 'data' / 'photos').glob('*.jpg'))[:6]
    fields = [Field(name='photo', kind='binary')]
    columns = {'photo': [file.read_bytes() for file in photos]}
    block = Block(keys=[file.stem for file in photos], columns=columns, splits=['train'] * len(photos))
    seen = []
    (code,) = re.findall(r'```python\n(.*?)```', LOADING, re.DOTALL)
    names = {'mm': mm, 'snapshot': write_snapshot(tmp_path, fields, block), 'seen': seen}
    exec(code.replace('...\n', 'seen.append((batch["photo"].shape, batch["_mask"]["photo"].all()))\n'), names)
    assert seen == [((6, 3, 224, 224), True)] * 10


def test_names_of_the_library_are_there() -> None:
    for name in set(re.findall(r'`mm\.([\w.]+)', LOADING)):
        thing = mm
        for part in name.rstrip('.').split('.'):
            thing = getattr(thing, part)
    for name in set(re.findall(r'^\| `(\w+)\(', LOADING, re.MULTILINE)):
        assert getattr(mm.sampling, name)
    for path in set(re.findall(r'`(mmpipe/[\w/.]+)`', LOADING)):
        assert (ROOT / path).exists()
