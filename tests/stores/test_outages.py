"""Postgres or the object store goes away in the middle of something: that is said, and once it is back, all goes on."""

from __future__ import annotations

from collections import Counter

import pytest
from machines import Process, Shop
from postgres_server import Postgres
from s3_server import S3, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def begun(shop: Shop, job: tuple, **more: object) -> Process:
    """A job that was started and is not waited for."""
    return shop.machine.begin(job[0], env=shop.noting, **job[1], **more)


def test_postgres_goes_away_in_the_middle_of_an_apply(shop: Shop, postgres: Postgres) -> None:
    shop.source.add(48, shop.draw)
    shop.do(shop.ingest(shop.upload()))
    shop.factor = 3
    before = len(shop.noted())
    applying = begun(shop, shop.apply, strict=True)
    wait_until(lambda: len(shop.noted()) > before + 24, 'the apply under way')  # of chunks of 16 rows
    postgres.stop('immediate')
    said = applying.end()
    postgres.start()
    assert said.error == 'StoreError'
    assert 'OperationalError' in said.message
    assert said.message.endswith('see that Postgres runs, then run the same again.'), said.message
    assert 'sqlalche.me' not in said.message
    shop.do(shop.apply)
    shop.as_from_scratch()
    made = Counter(call for call in shop.noted()[before:] if call[0] == 'times')
    assert set(made) == {('times', key, row[0], 3) for key, row in shop.source.rows.items()}
    assert sum(count > 1 for count in made.values()) <= 16  # one chunk was lost


def test_postgres_goes_away_in_the_middle_of_an_ingest(shop: Shop, postgres: Postgres) -> None:
    shop.source.add(48, shop.draw)
    url = shop.upload()
    ingesting = begun(shop, shop.ingest(url))
    wait_until(lambda: len(shop.noted()) > 60, 'the ingest under way')
    postgres.stop('immediate')
    said = ingesting.end()
    late = shop.machine.do(shop.ingest(url)[0], **shop.ingest(url)[1])
    postgres.start()
    assert said.error == 'StoreError'
    assert 'see that Postgres runs' in said.message or 'check Postgres, then run the same again' in said.message
    assert late.error == 'StoreError'
    assert 'Connection refused' in late.message
    shop.do(shop.ingest(url))
    shop.do(shop.apply)  # rows whose record was lost
    shop.as_from_scratch()
    made = Counter(call for call in shop.noted() if call[0] == 'times')
    assert sum(count > 1 for count in made.values()) <= 8


def test_the_store_goes_away_in_the_middle_of_an_ingest(shop: Shop, s3: S3) -> None:
    shop.source.add(150, shop.draw)
    url = shop.upload()
    asked = len(s3.requests())
    ingesting = begun(shop, shop.ingest(url))
    wait_until(lambda: len(s3.since(asked, 'GET', '/source/k')) > 70, 'the ingest under way')
    s3.kill()
    said = ingesting.end()
    s3.open()
    assert said.error == 'SourceError'  # and no row is put into quarantine for it
    assert 'its store does not answer (EndpointConnectionError' in said.message
    assert 'When it is back, run the same again' in said.message
    assert 'quarantined' not in said.message
    shop.do(shop.ingest(url))
    shop.do(shop.apply)
    shop.as_from_scratch()
    asked_for = Counter(path for _, path, status, _ in s3.since(asked, 'GET', '/source/k') if status == 200)
    assert sum(count > 1 for count in asked_for.values()) <= 16  # those under way


def test_the_store_goes_away_in_the_middle_of_a_snapshot(shop: Shop, s3: S3) -> None:
    shop.source.add(32, shop.draw)
    shop.do(shop.ingest(shop.upload()))
    first = shop.do(shop.snapshot)
    shop.source.add(16, shop.draw)
    shop.do(shop.ingest(shop.upload()))
    asked = len(s3.requests())
    snapshotting = begun(shop, shop.snapshot)
    wait_until(lambda: s3.since(asked, 'PUT', '/shards/shards/'), 'the snapshot under way')
    s3.kill()
    said = snapshotting.end()
    s3.open()
    assert said.error == 'ShardError'
    assert shop.root in said.message
    assert 'check name, rights, network' in said.message
    assert shop.do(('stores_catalog:listing', {'root': shop.root}))['current'] == first['snapshot']
    done = shop.do(shop.snapshot)
    assert (done['inserted'], done['rows']) == (16, 48)
    scratch = shop.do(('logged:snapshotting', {**shop.snapshot[1], 'root': f's3://{shop.bucket}/scratch'}))
    assert shop.read(done['snapshot']) == shop.read(scratch['snapshot'], f's3://{shop.bucket}/scratch')
