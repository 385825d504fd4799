"""Processes that train need the URL of the shards and nothing else, and each sees the snapshot that it opened."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from machines import SUPPORT, Machine, Process, Shop
from postgres_server import Postgres
from s3_server import S3, wait_until
from stores_catalog import TOGETHER

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
TRAINING = 'stores_training:training'


@pytest.fixture
def node(s3: S3, tmp_path: Path) -> Machine:
    """A machine that knows the object store, and has no database and no home."""
    node = Machine(tmp_path / 'node', s3=s3)
    for name in ('MMPIPE_HOME', 'PIXELTABLE_VERBOSITY'):
        del node.env[name]
    node.env['HOME'] = '/nowhere'
    return node


def test_a_node_trains_from_the_url_alone_while_no_postgres_runs(shop: Shop, node: Machine, postgres: Postgres) -> None:
    shop.source.add(64, shop.draw)
    shop.do(shop.ingest(shop.upload()))
    frozen = shop.do(shop.snapshot)
    postgres.stop('fast')
    try:
        assert not {name for name in node.env if name.startswith(('PIXELTABLE', 'MMPIPE', 'PG'))}
        said = node.do(TRAINING, root=shop.root, runs=str(node.home / 'runs'))
        assert not said.error, said.message
        found = said.value
        assert (found['status'], found['run'], found['imported']) == ('finished', 'shop/0001', [])
        assert (found['snapshot']['id'], found['snapshot']['root']) == (frozen['snapshot'], shop.root)
        assert set(found['keys']) == set(shop.source.rows)
        assert {path.name for path in node.home.iterdir()} == {'.mmpipe', 'runs'}
        assert {path.name for path in (node.home / '.mmpipe').iterdir()} == {'cache'}
        # A run is a folder of the node's: a URL is refused, before anything is read or made.
        refused = node.do(TRAINING, root=shop.root, runs=f's3://{shop.bucket}/runs')
        assert refused.error == 'ConfigError'
        assert 'a run is a folder' in refused.message
        assert not (node.home / 's3:').exists()
    finally:
        postgres.start()


def test_trainings_at_once_each_see_the_snapshot_they_opened_while_an_ingest_goes_on(shop: Shop, node: Machine) -> None:
    shop.source.add(48, shop.draw)
    shop.do(shop.ingest(shop.upload()))
    first = shop.do(shop.snapshot)
    keys = set(shop.source.rows)
    shop.source.add(40, shop.draw)
    url = shop.upload()

    go = node.home / 'go'
    arguments = {'root': shop.root, 'runs': str(node.home / 'runs'), 'pause': 0.1, 'epochs': 4}
    trainings = [node.begin(TRAINING, env={TOGETHER: str(go)}, **arguments, name=name) for name in ('one', 'two')]
    ranks = ['-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2', str(SUPPORT / 'stores_catalog.py')]
    line = [*ranks, TRAINING, json.dumps({**arguments, 'name': 'ranks'})]
    trainings.append(Process(line, {**node.env, TOGETHER: str(go)}, node.home))
    wait_until(lambda: len(list(node.home.glob('go.*'))) == 4, 'four processes that have opened the snapshot')
    ingesting = shop.machine.begin(shop.ingest(url)[0], env=shop.noting, **shop.ingest(url)[1])
    go.touch()
    assert not ingesting.end().error
    second = shop.do(shop.snapshot)
    assert second['snapshot'] != first['snapshot']
    for training in trainings:
        said = training.end()
        assert not said.error, said.message
        assert said.value['status'] == 'finished'
        assert said.value['snapshot']['id'] == first['snapshot']
        assert set(said.value['keys']) == keys
    later = node.do(TRAINING, **{**arguments, 'pause': 0.0}, name='later')
    assert later.value['snapshot']['id'] == second['snapshot']
    assert set(later.value['keys']) == set(shop.source.rows)


def test_the_store_goes_away_in_the_middle_of_a_training(shop: Shop, node: Machine, s3: S3) -> None:
    shop.source.add(64, shop.draw)
    shop.do(shop.ingest(shop.upload()))
    shop.do(shop.snapshot)
    arguments = {'root': shop.root, 'runs': str(node.home / 'runs'), 'epochs': 6}
    # Between the opening and the first step: what is needed is not here.
    go = node.home / 'go'
    training = node.begin(TRAINING, env={TOGETHER: str(go)}, **arguments)
    wait_until(lambda: len(list(node.home.glob('go.*'))) == 1, 'the opened snapshot')
    s3.kill()
    go.touch()
    said = training.end()
    assert said.error == 'ShardError'
    assert 'start again' in said.message, said.message
    s3.open()
    # And once every shard has been here: it needs no store any more.
    training = node.begin(TRAINING, **arguments, pause=0.2)
    metrics = node.home / 'runs' / 'shop'
    wait_until(lambda: any(file.stat().st_size for file in metrics.glob('*/metrics.jsonl')), 'the first step')
    s3.kill()
    try:
        said = training.end()
    finally:
        s3.open()
    assert not said.error, said.message
    assert said.value['status'] == 'finished'
