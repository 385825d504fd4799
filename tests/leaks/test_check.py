"""What leaks between splits is found, on the bundled drawings and copies made of them."""

from __future__ import annotations

import io
import json

import numpy as np
import PIL.Image
import PIL.ImageEnhance
import pytest
from drawings import jpeg, square

import mmpipe as mm
from mmpipe.errors import ConfigError, DataError
from mmpipe.leaks.perceptual import grey_of_file, grey_of_tensor, hashes
from mmpipe.shards import Block, Field, write_snapshot

PHOTO = Field(name='photo', kind='tensor', dtype='uint8', shape=(3, 64, 64))
GROUP = Field(name='group', kind='string')


def cut(image, share):
    width, height = image.size
    return image.crop(
        (round(width * share), round(height * share), round(width * (1 - share)), round(height * (1 - share)))
    )


COPIES = {
    'made smaller': lambda image: image.resize([max(1, side * 6 // 10) for side in image.size]),
    'JPEG of quality 30': lambda image: PIL.Image.open(io.BytesIO(jpeg(image, 30))),
    'cut by 2 % a side': lambda image: cut(image, 0.02),
    'brighter by a fifth': lambda image: PIL.ImageEnhance.Brightness(image).enhance(1.2),
    'less contrast': lambda image: PIL.ImageEnhance.Contrast(image).enhance(0.7),
}


def snapshot_of(root, rows, *, fields=(PHOTO,), **options):
    """A snapshot of (key, split, {field: value}) rows."""
    keys, splits, values = zip(*rows, strict=True)
    columns = {field.name: [row.get(field.name) for row in values] for field in fields}
    return write_snapshot(root, list(fields), Block(keys=keys, columns=columns, splits=splits), **options)


def found(report, kind):
    return {leak.keys for leak in report.leaks if leak.kind == kind}


def test_precision_and_recall_on_copies_of_the_drawings(drawings, tmp_path, capsys):
    originals = [(key, 'train', {'photo': square(image), 'group': group}) for key, group, image in drawings]
    groups = {key: group for key, group, _ in drawings}
    kinds = list(COPIES)
    copies = [
        (f'{key}#{i % 5}', 'test', {'photo': square(COPIES[kinds[i % 5]](image)), 'group': group})
        for i, (key, group, image) in enumerate(drawings)
    ]
    snapshot = snapshot_of(tmp_path, originals + copies, fields=(PHOTO, GROUP))
    lines, scores = [], {}
    for near in (4, 8, 12):
        report = mm.check_leaks(snapshot, near=near)
        pairs = {(a, b) for leak in report.leaks if leak.kind != 'group'
                 for a, x in zip(leak.keys, leak.splits, strict=True) if x == 'train'
                 for b, y in zip(leak.keys, leak.splits, strict=True) if y == 'test'}  # fmt: skip
        right = {(a, b) for a, b in pairs if b.startswith(f'{a}#')}
        wrong = {(a, b) for a, b in pairs if groups[a] != groups[b.split('#')[0]]}
        by_kind = {k: sum(b.endswith(f'#{i}') for _, b in right) / sum(c[0].endswith(f'#{i}') for c in copies)
                   for i, k in enumerate(kinds)}  # fmt: skip
        scores[near] = (len(right) / len(copies), len(right) / (len(right) + len(wrong)))
        parts = ', '.join(f'{name} {share:.2f}' for name, share in by_kind.items())
        lines.append(f'near={near:2}: recall {scores[near][0]:.3f} ({parts}), precision {scores[near][1]:.3f}')
    with capsys.disabled():
        print('\n' + '\n'.join(lines))
    assert scores[8][0] > 0.94
    assert scores[8][1] > 0.97
    assert scores[4][0] < scores[8][0] <= scores[12][0]
    assert scores[4][1] == 1.0


def test_rows_of_one_group_in_several_splits_are_found_and_no_others(drawings, tmp_path):
    splits = ['train', 'val', 'train', 'test', 'train']
    rows = [(key, splits[i % 5], {'group': group, 'price': 1.0}) for i, (key, group, _) in enumerate(drawings)]
    wanted = {}
    for key, split, values in rows:
        wanted.setdefault(values['group'], []).append((key, split))
    wanted = {
        tuple(sorted(key for key, _ in members))
        for members in wanted.values()
        if len(dict.fromkeys(s for _, s in members)) > 1
    }
    price = Field(name='price', kind='scalar', dtype='float32')
    report = mm.check_leaks(snapshot_of(tmp_path, rows, fields=(GROUP, price)))
    assert found(report, 'group') == wanted
    assert len(wanted) == 21
    assert report.counts == {'group': 21, 'same': 0, 'near': 0}
    assert "group '" in str(report)
    assert '... and 18 more' in str(report)
    assert 'split by it: split_of(...) of the group' in str(report)
    assert json.loads(json.dumps(report.to_json()))['counts']['group'] == 21


def test_drawings_that_are_different_do_not_leak(drawings, tmp_path):
    alone = {group: (key, image) for key, group, image in drawings}
    rows = [(key, ['train', 'val'][i % 2], {'photo': square(image)}) for i, (key, image) in enumerate(alone.values())]
    report = mm.check_leaks(snapshot_of(tmp_path, rows), near=6)
    assert report.ok, str(report)
    assert 'nothing leaks' in str(report)


def test_files_are_compared_as_pictures_and_other_files_by_their_bytes(drawings, tmp_path):
    raw, sound = Field(name='raw', kind='binary'), Field(name='sound', kind='binary')
    (_, _, one), (_, _, two) = drawings[:2]
    rows = [
        ('a', 'train', {'raw': jpeg(one, 95), 'sound': b'tick tock'}),
        ('b', 'test', {'raw': jpeg(one.resize((90, 90 * one.height // one.width)), 60), 'sound': b'tick'}),
        ('c', 'test', {'raw': jpeg(two, 95), 'sound': b'tick tock'}),
        ('d', 'test', {'raw': b'no picture'}),
    ]
    report = mm.check_leaks(snapshot_of(tmp_path, rows, fields=(raw, sound)))
    assert found(report, 'near') == {('a', 'b')}
    assert [(leak.field, leak.keys, leak.splits) for leak in report.leaks if leak.kind == 'same'] == [
        ('sound', ('a', 'c'), ('train', 'test'))
    ]
    assert report.unread == {'raw': 1}


def test_equal_inputs_are_found_and_nulls_constants_labels_and_rows_without_a_split_are_not(tmp_path):
    fields = [
        Field(name='x', kind='tensor', dtype='float32', shape=(2,)), Field(name='text', kind='string'),
        Field(name='y', kind='label', vocabulary=('one',)), Field(name='n', kind='scalar', dtype='int64'),
    ]  # fmt: skip
    same, still = np.array([1, 2], np.float32), np.zeros(2, np.float32)
    rows = [
        ('a', 'train', {'x': same, 'text': 'a cat', 'y': 'one', 'n': 1}),
        ('b', 'val', {'x': same, 'text': '', 'y': 'one', 'n': 1}),
        ('c', 'train', {'x': still, 'text': '', 'y': 'one', 'n': 1}),
        ('d', 'val', {'x': still, 'text': 'a cat', 'y': 'one', 'n': 1}),
        ('e', 'val', {'y': 'one'}), ('f', 'train', {'y': 'one'}), ('g', '', {'x': same, 'text': 'a cat'}),
    ]  # fmt: skip
    snapshot = snapshot_of(tmp_path, rows, fields=fields)
    report = mm.check_leaks(snapshot)
    assert [(leak.kind, leak.field, leak.keys) for leak in report.leaks] == [
        ('same', 'x', ('a', 'b')), ('same', 'text', ('a', 'd')),
    ]  # fmt: skip
    assert report.rows == 6
    assert found(mm.check_leaks(snapshot, fields=['x']), 'same') == {('a', 'b')}
    assert mm.check_leaks(snapshot, fields=[]).ok
    for wrong in ('y', 'nothing'):
        with pytest.raises(DataError, match=wrong):
            mm.check_leaks(snapshot, fields=[wrong])
    with pytest.raises(DataError, match="no field 'series'"):
        mm.check_leaks(snapshot, group='series')


def test_component_rows_belong_to_their_base_row_where_a_table_says_so(tmp_path):
    number = Field(name='n', kind='scalar', dtype='int64')
    keys, splits = ['v/1/0', 'v/1/1', 'v/2/0'], ['train', 'val', 'val']
    block = Block(keys=keys, columns={'n': [1, 2, 3]}, splits=splits, rowids=['0/0', '0/1', '1/0'])
    report = mm.check_leaks(write_snapshot(tmp_path / 'table', [number], block, source={'table': 'shop/frames'}))
    assert [(leak.kind, leak.field, leak.value, leak.keys) for leak in report.leaks] == [
        ('group', '', 'v/1', ('v/1/0', 'v/1/1'))
    ]
    assert "base row 'v/1'" in str(report)
    assert mm.check_leaks(write_snapshot(tmp_path / 'names', [number], block)).ok


def test_flat_images_match_nothing_and_are_counted(tmp_path):
    rng = np.random.default_rng(0)

    def flat(level):
        return np.clip(rng.normal(level, 1, (3, 64, 64)), 0, 255).astype(np.uint8)

    rows = [(f'r{i}', ['train', 'val'][i % 2], {'photo': flat(20 * i)}) for i in range(12)]
    report = mm.check_leaks(snapshot_of(tmp_path, rows), near=12)
    assert report.ok
    assert report.flat == {'photo': 12}


def test_identical_pictures_are_one_leak_however_many_there_are(drawings, tmp_path):
    picture = square(drawings[0][2])
    brighter = np.minimum(picture.astype(int) + 1, 255).astype(np.uint8)
    rows = [(f'r{i:04}', ['train', 'val'][i % 2], {'photo': brighter if i == 1 else picture}) for i in range(600)]
    report = mm.check_leaks(snapshot_of(tmp_path, rows))
    assert report.counts['same'] == 1
    assert len(next(leak for leak in report.leaks if leak.kind == 'same').keys) == 599
    assert report.counts['near'] == 1
    assert '596 more' in str(report)


def test_a_hash_does_not_depend_on_the_form_in_which_the_pixels_come(drawings):
    image = drawings[3][2].resize((128, 96))
    array = np.asarray(image)[None]
    bits = [
        hashes(grey_of_tensor(array))[0], hashes(grey_of_tensor(np.moveaxis(array, -1, 1)))[0],
        hashes(grey_of_file(jpeg(image, 95))[None])[0],
    ]  # fmt: skip
    assert bits[0] == bits[1]
    assert int(np.bitwise_count(bits[0] ^ bits[2])[0]) <= 4


def test_nothing_is_compared_without_two_splits_and_near_has_a_range(tmp_path):
    snapshot = snapshot_of(tmp_path, [('a', 'train', {}), ('b', 'train', {})])
    assert 'there are not two splits' in str(mm.check_leaks(snapshot))
    with pytest.raises(ConfigError, match='near=16'):
        mm.check_leaks(snapshot, near=16)
