"""Several processes that write to one catalog and one root at once leave what one after the other would have left."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from calls import noted
from machines import Machine, Process, Said, Shop
from postgres_server import Postgres
from s3_server import S3, wait_until
from stores_catalog import TOGETHER

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def new_rows(said: Said) -> int:
    """How many rows an ingest brought in."""
    assert not said.error, f'{said.error}: {said.message}'
    return int(said.value.split(': ')[1].split(' new')[0])


def test_three_ingest_overlapping_files_at_once_and_one_of_them_is_killed(shop: Shop) -> None:
    shop.source.add(72, shop.draw)
    keys = list(shop.source.rows)
    # Each row is in two manifests, and the third holds them in the other order.
    parts = [keys[:48], keys[24:], [*keys[:24], *keys[48:]]]
    urls = [shop.upload(f'part{number}.csv', part) for number, part in enumerate(parts)]
    shop.upload()
    files = [shop.folder / f'calls-{number}.jsonl' for number in range(3)]
    ingests = shop.machine.together(*map(shop.ingest, urls), env=[shop.noting_in(file) for file in files])
    wait_until(lambda: any(len(noted(file)) > 60 for file in files), 'an ingest under way')
    one = max(range(3), key=lambda number: len(noted(files[number])))  # the others wait for it
    ingests[one].kill()
    done = sum(new_rows(each.end()) for number, each in enumerate(ingests) if number != one)
    assert 0 < done < 72  # some were in before the kill
    shop.do(shop.ingest(urls[one]))
    # One that had no part in it finds nothing left to do.
    url = f's3://{shop.bucket}/source/things.csv'
    assert '0 new, 0 with changed files, 0 with changed values, 72 unchanged' in shop.do(shop.ingest(url))
    shop.do(shop.apply)  # rows of the killed one that were not recorded
    shop.as_from_scratch()
    calls = [call for file in [*files, shop.calls] for call in noted(file) if call[0] != 'recorded']
    twice = {call[1] for call, count in Counter(calls).items() if count > 1}
    assert len(twice) <= 8  # a kill costs the rows of one chunk


def test_two_snapshots_of_one_root_at_once_are_both_whole(shop: Shop) -> None:
    shop.source.add(48, shop.draw)
    shop.do(shop.ingest(shop.upload()))
    # Two first snapshots: the same rows, so that they are one snapshot, written by one of them.
    ends = [each.end() for each in shop.machine.together(shop.snapshot, shop.snapshot, env=[shop.noting] * 2)]
    assert [said.error for said in ends] == ['', '']
    assert len({said.value['snapshot'] for said in ends}) == 1
    assert sorted(bool(said.value['written']) for said in ends) == [False, True]
    # Two with other fields each: the second is written on top of the first, by a lock in the database.
    shop.source.add(8, shop.draw)
    shop.do(shop.ingest(shop.upload()))
    jobs = [('stores_catalog:freezing', {**shop.snapshot[1], 'without': name}) for name in ('kind', 'grey')]
    both_are_whole(shop, shop.machine.together(*jobs, env=[shop.noting] * 2))


def test_two_catalogs_that_share_no_lock_commit_to_one_root_one_after_the_other(
    shop: Shop, postgres: Postgres, s3: S3, tmp_path: Path
) -> None:
    """Such as two machines with a database each: what keeps them apart is the store, which takes a pointer once."""
    shop.source.add(24, shop.draw)
    url = shop.upload()
    others = Machine(tmp_path / 'other', s3=s3, database=postgres.new_database())
    assert not others.do('logged:making', directory='shop').error
    for machine in (shop.machine, others):
        assert new_rows(machine.do(shop.ingest(url)[0], **shop.ingest(url)[1])) == 24
    go = tmp_path / 'go'
    jobs = [machine.begin(shop.snapshot[0], env={TOGETHER: str(go)}, **shop.snapshot[1])
            for machine in (shop.machine, others)]  # fmt: skip
    wait_until(lambda: len(list(tmp_path.glob('go.*'))) == 2, 'two processes that are ready')
    go.touch()
    both_are_whole(shop, jobs)


def both_are_whole(shop: Shop, jobs: list[Process]) -> None:
    """Both come through, neither overwrites the other's move of the pointer, and nothing is left that nobody needs."""
    ends = [each.end() for each in jobs]
    assert [said.error for said in ends] == ['', ''], ends
    made = [said.value['snapshot'] for said in ends]
    found = shop.do(('stores_catalog:listing', {'root': shop.root}))
    assert set(made) <= set(found['snapshots'])
    moves = [
        shop.system.cat_file(path).decode().split()[0]
        for path in sorted(shop.system.ls(f'{shop.bucket}/shards/latest'))[1:]
    ]
    assert found['current'] == moves[-1]
    assert set(made) <= set(moves)
    for identity in made:
        assert set(shop.read(identity)) == set(shop.source.rows)
