"""Tables in a Postgres outside, media and shards on S3: what is done once costs nothing the second time."""

from __future__ import annotations

from collections import Counter

import pytest
from machines import Shop

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_from_files_on_s3_to_shards_on_s3_and_a_second_time_for_nothing(shop: Shop) -> None:
    shop.source.add(40, shop.draw)
    url = shop.upload()
    assert '40 new' in shop.do(shop.ingest(url))
    assert not shop.do(shop.apply)
    shop.as_from_scratch()
    first = shop.do(shop.snapshot)
    assert (first['inserted'], first['rows']) == (40, 40)
    assert not (shop.machine.home / 'pixeltable' / 'pgdata').exists()  # no server of Pixeltable's own was started
    assert len(shop.s3.since(0, 'GET', '/source/k')) == 40  # each photo was downloaded once
    assert max(Counter(shop.noted()).values()) == 1

    calls, asked = len(shop.noted()), len(shop.s3.requests())
    assert '0 new' in shop.do(shop.ingest(url))
    assert not shop.do(shop.apply)
    second = shop.do(shop.snapshot)
    assert second['snapshot'] == first['snapshot']
    assert (second['written'], second['bytes_written']) == (0, 0)
    assert len(shop.noted()) == calls
    puts = [put for put in shop.s3.since(asked, 'PUT') if put[2] == 200]
    assert puts == []  # the writer's proof is refused, which is what it asks for
    assert shop.s3.since(asked, 'GET', '/source/k') == shop.s3.since(asked, 'GET', '/shards/shards/') == []

    # And a change costs the change: 3 photos in, 3 functions over each, a shard that holds them.
    shop.source.add(3, shop.draw)
    shop.upload()
    asked = len(shop.s3.requests())
    assert '3 new' in shop.do(shop.ingest(url))
    third = shop.do(shop.snapshot)
    assert (third['inserted'], third['updated'], third['rows']) == (3, 0, 43)
    assert len(shop.s3.since(asked, 'GET', '/source/k')) == 3
    new = Counter(call[0] for call in shop.noted()[calls:])
    assert (new['times'], new['shade']) == (3, 3)
    written = sum(put[3] for put in shop.s3.since(asked, 'PUT', '/shards/shards/'))
    assert written == third['bytes_written']
    shop.as_from_scratch()
    scratch = shop.do(('logged:snapshotting', {**shop.snapshot[1], 'root': f's3://{shop.bucket}/scratch'}))
    assert shop.read() == shop.read(scratch['snapshot'], f's3://{shop.bucket}/scratch')
