"""The functions inside real tables: what is computed, counted, passed through as null, and stored."""

from __future__ import annotations

import numpy as np
import pixeltable as pxt
import pytest
from pixeltable.functions.video import frame_iterator

from mmpipe.errors import ConfigError, ModelError
from mmpipe.functions import (
    counts,
    document_chunks,
    embed_image,
    embed_text,
    hash_bucket,
    log1p,
    log_mel,
    mean_pool,
    parse_number,
    pixels,
    ratio,
    reset,
    split_of,
)

from . import media
from .shop import products


def row(folder, sku, seed=0):
    return {
        'sku': sku,
        'photo': str(media.photo(folder / f'{sku}.jpg', seed=seed)),
        'speech': str(media.sound(folder / f'{sku}.wav', seconds=0.25)),
        'video': str(media.clip(folder / f'{sku}.mp4', seed=seed)),  # 6 frames at 2 a second: 3 at 1 a second
        'document': str(media.pdf(folder / f'{sku}.pdf', ['First page', '', 'Third page'])),
        'title': f'Title {sku}',
        'price': f'{seed}.50',
    }


EMPTY = dict.fromkeys(('photo', 'speech', 'video', 'document', 'title', 'price'))


def test_each_cell_is_computed_once_nulls_pass_through_and_an_insert_computes_only_its_own_rows(directory, tmp_path):
    products(directory)
    items = pxt.get_table(f'{directory}/items')
    reset()
    items.insert([row(tmp_path, 'a', 1), row(tmp_path, 'b', 2), {'sku': 'c', **EMPTY}])
    first = {
        'split_of': 3,
        'pixels': 2,
        'embed_image': 2 + 2 * 3,  # photos, and frames in the view
        'waveform': 2,
        'log_mel': 2,
        'embed_text': 2 + 2 * 2,  # titles, and the pages that have text
        'document_text': 2,
        'document_chunks': 2 * 3,  # rows of the view, the empty page among them
        'parse_number': 2,
    }
    assert counts() == first

    items.insert([row(tmp_path, 'd', 3)])
    assert counts()['embed_image'] == first['embed_image'] + 4
    assert counts()['embed_text'] == first['embed_text'] + 3
    assert {k: counts()[k] - first[k] for k in first if not k.startswith('embed')} == {
        'split_of': 1, 'pixels': 1, 'waveform': 1, 'log_mel': 1, 'document_text': 1, 'document_chunks': 3,
        'parse_number': 1,
    }  # fmt: skip

    reset()
    stored = {r['sku']: r for r in items.collect()}
    assert counts() == {}  # reading computes nothing
    assert stored['a']['square'].shape == (3, 16, 16)
    assert stored['a']['square'].dtype == np.uint8
    assert stored['a']['embedding'].shape == (1280,)
    assert stored['a']['embedding'].dtype == np.float32
    assert stored['a']['samples'].shape == (4000,)
    assert stored['a']['mel'].shape == (64, 50)
    assert stored['a']['words'].shape == (256,)
    assert stored['a']['body'] == 'First page\n\nThird page'
    assert stored['b']['amount'] == 2.5
    computed = ('square', 'embedding', 'samples', 'mel', 'words', 'body', 'amount')
    assert [stored['c'][name] for name in computed] == [None] * 7
    assert stored['c']['split'] in ('train', 'val', 'test')

    pages = pxt.get_table(f'{directory}/pages')
    rows = pages.where(pages.sku == 'a').order_by(pages.pos).select(pages.text, pages.page, pages.vector).collect()
    assert [(r['text'], r['page']) for r in rows] == [('First page', 1), (None, 2), ('Third page', 3)]
    assert rows[1]['vector'] is None
    assert rows[0]['vector'].shape == (256,)


def test_column_types_carry_the_shapes_that_the_constants_imply(directory):
    table = pxt.create_table(f'{directory}/t', {'image': pxt.Image | None, 'sound': pxt.Audio, 'text': pxt.String})
    table.add_computed_column(a=pixels(table.image, size=24, fit='pad'))
    table.add_computed_column(b=embed_image(table.image, size=64))
    table.add_computed_column(c=log_mel(table.sound, seconds=1.0, n_mels=40))
    table.add_computed_column(d=embed_text(table.text))
    table.add_computed_column(e=pixels(table.image.rotate(90)))
    types = {name: str(column['type_']) for name, column in table.get_metadata()['columns'].items()}
    assert types['a'] == 'Array[(3, 24, 24), uint8] | None'  # nullable because the image is
    assert types['b'] == 'Array[(1280,), float32] | None'
    assert types['c'] == 'Array[(40, 100), float32]'
    assert types['d'] == 'Array[(256,), float32]'
    assert types['e'] == 'Array[(3, 128, 128), uint8] | None'


@pytest.mark.parametrize(
    ('call', 'error'),
    [
        (lambda t: pixels(t.image, size=0), ConfigError),
        (lambda t: pixels(t.image, fit='stretch'), ConfigError),
        (lambda t: embed_image(t.image, size=-1), ConfigError),
        (lambda t: log_mel(t.sound, seconds=0.0), ConfigError),
        (lambda t: log_mel(t.sound, n_mels=0), ConfigError),
        (lambda t: embed_text(t.text, model='gpt'), ModelError),
        (lambda t: split_of(t.text, val=0.6, test=0.5), ConfigError),
        (lambda t: hash_bucket(t.text, buckets=0), ConfigError),
        (lambda t: parse_number(t.text, decimal=';'), ConfigError),
        (lambda t: document_chunks(t.document, by='sentence'), ConfigError),
    ],
)
def test_constants_that_cannot_work_are_refused_when_the_column_is_declared(pixeltable_home, call, error):
    types = {'image': pxt.Image, 'sound': pxt.Audio, 'text': pxt.String, 'document': pxt.Document}
    table = pxt.create_table('constants', types, if_exists='ignore')
    with pytest.raises(error):
        call(table)


def test_tabular_functions_in_a_table(directory):
    table = pxt.create_table(f'{directory}/t', {'a': pxt.Float | None, 'b': pxt.Float, 'name': pxt.String})
    table.add_computed_column(r=ratio(table.a, table.b))
    table.add_computed_column(l=log1p(table.a))
    table.add_computed_column(h=hash_bucket(table.name, buckets=8))
    table.insert([{'a': a, 'b': b, 'name': 'x'} for a, b in ((1.0, 2.0), (None, 1.0), (3.0, 0.0))])
    rows = table.order_by(table.a, asc=True).select(table.r, table.l, table.h).collect()
    by_ratio = {row['r']: row for row in rows}
    assert set(by_ratio) == {0.5, None}
    assert sorted(row['l'] for row in rows if row['l'] is not None) == pytest.approx([np.log(2), np.log(4)])
    assert all(0 <= row['h'] < 8 for row in rows)


def test_a_clip_is_the_mean_of_its_frames_and_a_clip_without_frames_is_null(directory, tmp_path):
    clips = pxt.create_table(f'{directory}/clips', {'sku': pxt.String, 'video': pxt.Video})
    frames = pxt.create_view(f'{directory}/frames', clips, iterator=frame_iterator(clips.video, fps=1))
    frames.add_computed_column(vector=pixels(frames.frame, size=2))
    clips.insert([{'sku': s, 'video': str(media.clip(tmp_path / f'{s}.mp4', seed=i))} for i, s in enumerate('ab')])
    pooled = frames.group_by(frames.sku).select(frames.sku, v=mean_pool(frames.vector)).collect()
    for row in pooled:
        each = [r['vector'] for r in frames.where(frames.sku == row['sku']).select(frames.vector).collect()]
        assert len(each) == 3
        assert row['v'].dtype == np.float32
        np.testing.assert_allclose(row['v'], np.mean(each, axis=0), rtol=1e-6)

    table = pxt.create_table(f'{directory}/vectors', {'g': pxt.Int, 'v': pxt.Array[(2,), np.float32] | None})
    table.insert([
        {'g': 1, 'v': np.float32([1, 2])}, {'g': 1, 'v': None}, {'g': 1, 'v': np.float32([3, 6])}, {'g': 2, 'v': None},
    ])  # fmt: skip
    result = {r['g']: r['p'] for r in table.group_by(table.g).select(table.g, p=mean_pool(table.v)).collect()}
    assert result[1].tolist() == [2, 4]
    assert result[2] is None


def test_markdown_that_stops_pixeltables_own_splitter_gives_its_paragraphs(directory, tmp_path):
    files = {'a.md': '# *Title*\n\nOne.\n\nTwo.', 'b.txt': 'Eins\f\fDrei', 'c.html': '<h1>T</h1><p>Ä<br>B</p>'}
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding='utf-8')
    table = pxt.create_table(f'{directory}/t', {'name': pxt.String, 'document': pxt.Document | None})
    parts = pxt.create_view(f'{directory}/v', table, iterator=document_chunks(table.document, by='paragraph'))
    pages = pxt.create_view(f'{directory}/p', table, iterator=document_chunks(table.document))
    table.insert([{'name': name, 'document': str(tmp_path / name)} for name in files])
    table.insert([{'name': 'none', 'document': None}])
    found = parts.order_by(parts.name, parts.pos).select(parts.name, parts.text, parts.page).collect()
    assert [tuple(r.values()) for r in found] == [
        ('a.md', '# *Title*', 1), ('a.md', 'One.', 1), ('a.md', 'Two.', 1),
        ('b.txt', 'Eins', 1), ('b.txt', 'Drei', 3), ('c.html', 'T', 1), ('c.html', 'Ä\nB', 1),
    ]  # fmt: skip
    found = pages.where(pages.name == 'b.txt').order_by(pages.pos).select(pages.text, pages.page).collect()
    assert [tuple(r.values()) for r in found] == [('Eins', 1), (None, 2), ('Drei', 3)]
