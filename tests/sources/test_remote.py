"""Object stores and URLs as sources: only what is new is downloaded, and nothing leads out of the root."""

from __future__ import annotations

import uuid
from dataclasses import replace

import fsspec
import media
import pixeltable as pxt
import pytest
from web_server import PUBLIC, Names, serving

import mmpipe as mm
from mmpipe.errors import SourceError
from mmpipe.home import media_dir
from mmpipe.sources import Bad
from mmpipe.sources.remote import Store


@pytest.fixture
def bucket():
    """A prefix of fsspec's memory store, and how to write there."""
    name = f'bucket-{uuid.uuid4().hex}'
    system = fsspec.filesystem('memory')
    system.mkdir(f'/{name}')

    def put(path, data):
        system.pipe(f'/{name}/{path}', data if isinstance(data, bytes) else data.encode())

    put.url, put.delete = f'memory://{name}', lambda path: system.rm(f'/{name}/{path}')
    yield put
    system.rm(f'/{name}', recursive=True)


def read(source, **media_columns):
    return list(source.records(key=['key'], media=media_columns or {'photo': 'image'}))


def test_an_object_that_cannot_be_had_is_one_bad_row_and_a_store_that_is_gone_ends_it(bucket, monkeypatch):
    """A file system that fails, as fsspec tells it; tests/stores lets a real server go away."""
    for name in 'abc':
        bucket(f'{name}.jpg', name)
    source = mm.sources.files(f'{bucket.url}/*.jpg')
    system = source.store._system(bucket.url)
    real_open, real_ls = system.open, system.ls

    def fail(path, *args, **kwargs):
        if path.endswith('b.jpg'):
            raise ConnectionError('reset by peer')
        return real_open(path, *args, **kwargs)

    monkeypatch.setattr(system, 'open', fail)
    found = read(source)
    assert [isinstance(each, Bad) for each in found] == [False, True, False]
    assert 'cannot be downloaded (ConnectionError: reset by peer)' in found[1].reason

    def gone(path, *args, **kwargs):
        if kwargs.get('refresh'):
            raise ConnectionError('refused')
        return real_ls(path, *args, **kwargs)

    monkeypatch.setattr(system, 'ls', gone)
    with pytest.raises(
        SourceError, match=r"b.jpg' .*its store does not answer \(ConnectionError: refused\).*same again"
    ) as said:
        read(source)
    assert type(said.value) is SourceError  # a BadInputError would become a row
    monkeypatch.undo()
    assert [text(record) for record in read(source)] == ['a', 'b', 'c']


def text(record, column='photo'):
    return record.media[column].read_text()


def test_objects_become_rows_with_local_files_named_by_their_content(bucket):
    bucket('photos/cats/tom.JPG', 'tom')
    bucket('photos/rex.jpg', 'rex')
    bucket('photos/notes.txt', 'notes')
    source = mm.sources.files(f'{bucket.url}/photos/**/*.jpg', values=lambda path: {'kind': path.parent.name})
    (record,) = read(source)
    assert (record.values, text(record)) == ({'key': 'rex.jpg', 'kind': ''}, 'rex')
    assert record.media['photo'].is_relative_to(media_dir().resolve())
    assert record.media['photo'].stem not in ('', 'rex')
    both = read(mm.sources.files(f'{bucket.url}/photos', column='photo'))
    assert [(record.values['key'], text(record)) for record in both] == [
        ('cats/tom.JPG', 'tom'), ('notes.txt', 'notes'), ('rex.jpg', 'rex'),
    ]  # fmt: skip
    assert both[0].media['photo'].suffix == '.jpg'
    assert source.name == f'{bucket.url}/photos/**/*.jpg'


def test_only_new_and_changed_objects_are_downloaded(bucket):
    for name in 'abc':
        bucket(f'{name}.jpg', name)
    source = mm.sources.files(f'{bucket.url}/*.jpg')
    first = read(source)
    assert source.store.downloaded == 3
    assert read(source) == first
    assert source.store.downloaded == 3
    bucket('b.jpg', 'B')
    bucket('c.jpg', 'c')  # written again: the listing says changed, the content is the same file
    again = read(source)
    assert source.store.downloaded == 5
    assert [text(record) for record in again] == ['a', 'B', 'c']
    assert again[2].media == first[2].media
    first[0].media['photo'].unlink()
    assert [text(record) for record in read(source)] == ['a', 'B', 'c']
    assert source.store.downloaded == 6


def test_a_manifest_in_a_store_names_objects_beside_it_and_none_outside(bucket):
    bucket('shop/a.jpg', 'a')
    bucket('shop/x/b.jpg', 'b')
    bucket('secret.jpg', 'secret')
    bucket('shop-2/c.jpg', 'c')
    names = ['a.jpg', 'x/b.jpg', f'{bucket.url}/shop/x/../a.jpg', '', '../secret.jpg', 'x/../../secret.jpg',
             f'{bucket.url}/secret.jpg', f'{bucket.url}/shop-2/c.jpg', '/etc/passwd', 'file:///etc/passwd',
             'none.jpg', 'https://example.org/a.jpg']  # fmt: skip
    bucket('shop/items.csv', 'key,photo\n' + ''.join(f'k{i},{name}\n' for i, name in enumerate(names)))
    found = read(mm.sources.rows(f'{bucket.url}/shop/items.csv'))
    assert [text(record) for record in found[:3]] == ['a', 'b', 'a']
    assert found[3].media == {'photo': None}
    for bad in found[4:10]:
        assert isinstance(bad, Bad)
        assert bad.reason.startswith(f"lies outside '{bucket.url}/shop'")
    assert [bad.key for bad in found[4:]] == [f'k{i}' for i in range(4, 12)]
    assert found[4].place == f'{bucket.url}/shop/items.csv line 6'
    assert found[10].reason.startswith('does not exist')
    assert isinstance(found[11], Bad)


def test_a_local_manifest_may_name_objects_below_a_root(bucket, tmp_path):
    bucket('a.jpg', 'a')
    path = tmp_path / 'items.jsonl'
    path.write_text('{"key": "a", "photo": "a.jpg"}\n{"key": "b", "photo": "../b.jpg"}\n')
    one, two = read(mm.sources.rows(path, root=bucket.url))
    assert (text(one), isinstance(two, Bad)) == ('a', True)


def test_metadata_of_objects(bucket):
    bucket('p/a.jpg', 'a')
    bucket('p/b.jpg', 'b')
    bucket('p/meta.csv', 'file,price,speech\na.jpg,3,b.jpg\nnone.jpg,4,\n')
    source = mm.sources.files(f'{bucket.url}/p', column='photo', metadata=f'{bucket.url}/p/meta.csv')
    one, two, bad = read(source, photo='image', speech='audio')
    assert (one.values, text(one), text(one, 'speech')) == ({'key': 'a.jpg', 'price': '3'}, 'a', 'b')
    assert (two.values, text(two)) == ({'key': 'b.jpg'}, 'b')
    assert isinstance(bad, Bad)


@pytest.mark.parametrize(('url', 'said'), [
    ('https://example.org/items.csv', 'is a URL: download it and give the path, or give allow_urls=True'),
    ('ftp://host/items.csv', 'is of a kind that is not read'),
    ('reference://items.csv', 'is of a kind that is not read'),
    ('s3://bucket/a.zip::memory://items.csv', 'is of a kind that is not read'),
    ('memory://bucket/items.txt', 'a manifest ends'),
])  # fmt: skip
def test_urls_of_other_kinds_are_refused(url, said):
    with pytest.raises(SourceError, match=said):
        mm.sources.rows(url)


def test_a_store_that_cannot_be_listed_stops_the_source(bucket):
    bucket('none/x', 'x')
    with pytest.raises(SourceError, match=r'there is no|cannot be read|does not exist'):
        read(mm.sources.rows(f'{bucket.url}/items.csv'))
    with pytest.raises(SourceError, match=f"there is nothing at '{bucket.url}/photos'"):
        read(mm.sources.files(f'{bucket.url}/photos'))
    with pytest.raises(SourceError, match='name a bucket or folder before the pattern'):
        read(mm.sources.files('memory://*.jpg'))


def test_urls_of_a_manifest_are_downloaded_when_allowed_and_private_ones_never(tmp_path):
    path = tmp_path / 'items.csv'
    with serving({'/a.jpg': (200, {'ETag': '"1"'}, b'picture'), '/s': (200, {}, b'secret')}) as (port, requests):
        path.write_text(f'key,photo\na,http://public.test/a.jpg\nb,http://127.0.0.1:{port}/s\nc,c.jpg\n')
        (tmp_path / 'c.jpg').write_text('here')
        refused = read(mm.sources.rows(path))
        assert [isinstance(record, Bad) for record in refused] == [True, True, False]
        source = mm.sources.rows(path, allow_urls=True)
        source = replace(source, store=Store(allow_urls=True, network=Names(port, public_test=[[PUBLIC]])))
        one, two, three = read(source)
        assert (text(one), two.key, text(three)) == ('picture', 'b', 'here')
        assert 'which is not public, and is never asked' in two.reason
        assert (read(source)[0], source.store.downloaded) == (one, 1)
        assert [path for _, path in requests] == ['/a.jpg', '/a.jpg']  # the second time only asked whether it is new


def test_a_manifest_on_the_web_names_files_beside_it():
    manifest = b'key,photo\na,x/a.jpg\nb,../../b.jpg\nc,http://other.test/c.jpg\nd,none.jpg\n'
    pages = {'/shop/items.csv?v=/1': (200, {}, manifest), '/shop/x/a.jpg': (200, {}, b'a'), '/c.jpg': (200, {}, b'c')}
    with serving(pages) as (port, requests):
        source = mm.sources.rows('http://public.test/shop/items.csv?v=/1', allow_urls=True)
        names = Names(port, public_test=[[PUBLIC]], other_test=[[PUBLIC]])
        one, two, three, four = read(replace(source, store=Store(allow_urls=True, network=names)))
        assert (text(one), text(three)) == ('a', 'c')
        assert two.reason.startswith("lies outside 'http://public.test/shop'")
        assert 'HTTP 404' in four.reason
        assert sorted(requests)[0] == ('other.test', '/c.jpg')


def test_an_ingest_of_a_store_writes_only_what_changed_and_knows_what_is_gone(bucket, pixeltable_home, tmp_path):
    Tables = pxt.model_base()

    class Items(Tables, name='items'):
        key = pxt.Column(type=pxt.String, primary_key=True)
        photo: pxt.Image | None
        origin: pxt.Json | None

    def picture(seed):
        media.photo(tmp_path / 'picture.jpg', seed=seed)
        return (tmp_path / 'picture.jpg').read_bytes()

    pxt.drop_dir('t_remote', force=True, if_not_exists='ignore')
    try:
        mm.apply(mm.plan(Tables, 't_remote'))
        for seed, name in enumerate('abc'):
            bucket(f'{name}.jpg', picture(seed))
        bucket('broken.jpg', 'no picture')
        source = mm.sources.files(f'{bucket.url}/*.jpg', column='photo')
        report = mm.ingest(Items, source)
        assert (report.inserted, report.quarantined) == (3, 1)
        assert mm.ingest(Items, source).written == 0
        assert source.store.downloaded == 4
        bucket('a.jpg', picture(7))
        bucket.delete('c.jpg')
        report = mm.ingest(Items, source, prune=True)
        assert (report.replaced, report.unchanged, report.removed) == (1, 1, 1)
        bucket.delete('a.jpg')
        assert mm.ingest(Items, source).gone_keys == ('a.jpg',)  # rows that were replaced are known as well
        table = Items.table
        rows = table.select(table.key, file=table.photo.localpath).collect()
        assert {row['key']: media_dir().resolve().as_posix() in row['file'] for row in rows} == {
            'a.jpg': True,
            'b.jpg': True,
        }
        frozen = mm.snapshot(Items, root=tmp_path / 'shards', fields={'photo': mm.field.file(Items.photo)}).snapshot
        assert dict(zip(frozen.rows().keys, frozen.rows().read('photo')[0], strict=True))['a.jpg'] == picture(7)
    finally:
        pxt.drop_dir('t_remote', force=True)


@pytest.mark.slow
def test_the_s3_api(monkeypatch):
    pytest.importorskip('s3fs')
    server = pytest.importorskip('moto.server').ThreadedMotoServer(ip_address='127.0.0.1', port=0)
    for name in ('AWS_ACCESS_KEY_ID', 'AWS_SECRET_ACCESS_KEY'):
        monkeypatch.setenv(name, 'test')
    server.start()
    try:
        host, port = server.get_host_and_port()
        options = {'endpoint_url': f'http://{host}:{port}'}
        system = fsspec.filesystem('s3', **options)
        system.mkdir('shop')
        for name in ('photos/a.jpg', 'photos/b.jpg', 'photos/x/c [1].jpg'):
            system.pipe(f'shop/{name}', name.encode())
        system.pipe(
            'shop/items.csv', b'key,photo\na,photos/a.jpg\nc,photos/x/c [1].jpg\nd,../d.jpg\ne,photos/none.jpg\n'
        )
        source = mm.sources.files('s3://shop/photos', storage_options=options)
        assert [text(record) for record in read(source)] == ['photos/a.jpg', 'photos/b.jpg', 'photos/x/c [1].jpg']
        read(source)
        assert source.store.downloaded == 3
        other = fsspec.filesystem('s3', skip_instance_cache=True, **options)
        other.pipe('shop/photos/b.jpg', b'new content')
        other.rm('shop/photos/a.jpg')
        assert [text(record) for record in read(source)] == ['new content', 'photos/x/c [1].jpg']
        assert source.store.downloaded == 4
        one, two, three, four = read(mm.sources.rows('s3://shop/items.csv', storage_options=options))
        assert [isinstance(each, Bad) for each in (one, two, three, four)] == [True, False, True, True]
        assert text(two) == 'photos/x/c [1].jpg'
        with pytest.raises(SourceError, match="'s3://nowhere' cannot be listed"):
            read(mm.sources.files('s3://nowhere', storage_options=options))
    finally:
        server.stop()
