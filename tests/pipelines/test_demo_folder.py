"""A folder of loose media as rows of the demo."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmpipe.sources import Bad
from mmpipe.sources.readers import KEY_LENGTH
from pipelines.demo.folder import MediaFolder

MEDIA = {'photo': 'image', 'speech': 'audio', 'clip': 'video', 'document': 'document'}


def read(root, **options):
    found = list(MediaFolder(root=root, **options).records(key=['key'], media=MEDIA))
    bad = [each for each in found if isinstance(each, Bad)]
    return [each for each in found if not isinstance(each, Bad)], bad


def touch(*paths: Path):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / 'one' / 'pets'
    touch(root / 'mammal/cat.png', root / 'mammal/cat.WAV', root / 'boat.pdf', root / 'notes.xyz')
    (root / 'mammal/cat.txt').write_text(' A cat\n', encoding='utf-8')
    return root


def test_files_of_one_stem_are_an_item_with_its_caption_and_the_category_of_its_folder(folder):
    (boat, cat), bad = read(folder, categories=('mammal', 'bug'))
    assert [(Path(row.path).name, row.reason.partition(':')[0]) for row in bad] == [
        ('notes.xyz', 'has no ending of a medium that the demo takes')
    ]
    assert cat.media == {
        'photo': folder / 'mammal/cat.png', 'speech': folder / 'mammal/cat.WAV', 'clip': None, 'document': None
    }  # fmt: skip
    assert (cat.values['caption'], cat.values['category']) == ('A cat', 'mammal')
    assert (boat.values['caption'], boat.values['category']) == (None, None)
    assert boat.media['document'] == folder / 'boat.pdf'
    assert MediaFolder(root=folder).total() == 3


def test_keys_name_the_folder_and_two_folders_of_one_name_do_not_clash(folder, tmp_path, monkeypatch):
    other = tmp_path / 'two' / 'pets'
    touch(other / 'mammal/cat.png')
    keys = [[record.values['key'] for record in read(root)[0]] for root in (folder, other)]
    assert [key.partition('-')[0] for key in keys[0] + keys[1]] == ['pets'] * 3
    assert [key.partition('/')[2] for key in keys[0] + keys[1]] == ['boat', 'mammal/cat', 'mammal/cat']
    assert set(keys[0]) & set(keys[1]) == set()
    monkeypatch.chdir(folder)
    assert [record.values['key'] for record in read(Path('.'))[0]] == keys[0]  # however it is written
    assert [record.values['key'] for record in read(folder / '..' / 'pets')[0]] == keys[0]


def test_long_paths_keep_keys_apart(folder):
    deep = folder / ('a' * 200)
    names = [f'{end}{"x" * 120}' for end in 'bc'] + [f'{"x" * 120}{end}' for end in 'bc']
    touch(*(deep / f'{name}.png' for name in names))
    keys = [record.values['key'] for record in read(deep.parent)[0]]
    assert len(set(keys)) == len(keys) == 6
    assert max(map(len, keys)) == KEY_LENGTH


def test_hidden_files_and_folders_are_left_out(folder):
    touch(folder / '.thumbs/cat.png', folder / 'mammal/.cat.png', folder / '.hidden.pdf')
    assert len(read(folder)[0]) == MediaFolder(root=folder).total() - 1 == 2
    hidden = folder.parent / '.pets'
    folder.rename(hidden)
    assert len(read(hidden)[0]) == 2  # the folder itself may be hidden


def test_a_second_file_for_a_column_and_a_caption_that_is_not_utf8_are_bad(folder):
    touch(folder / 'mammal/cat.jpg')
    (folder / 'mammal/cat.txt').write_bytes('Größe'.encode('latin-1'))
    records, bad = read(folder)
    assert {(row.column, row.reason) for row in bad if row.column} == {
        ('photo', 'stands for the same photo as cat.jpg: give it another name'),
        ('caption', 'is not UTF-8: save it as UTF-8'),
    }
    assert {row.key for row in bad if row.column} == {records[1].values['key']}
