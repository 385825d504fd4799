"""Two machines and one database: what they have to share beside it, and what is said where they do not."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from machines import Machine, Said, Shop
from postgres_server import Postgres
from s3_server import S3

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
LOOK = 'logged:looking'


def database_of(shop: Shop) -> str:
    """Connection string of its catalog."""
    return shop.machine.env['PIXELTABLE_DB_CONNECT_STR']


def test_a_second_machine_needs_the_folders_that_tables_refer_to(shop: Shop, s3: S3, tmp_path: Path) -> None:
    shop.source.add(16, shop.draw)
    url = shop.upload()
    shop.do(shop.ingest(url))
    home, other = shop.machine.home, tmp_path / 'other'
    second = Machine(other, s3=s3, database=database_of(shop))
    said = second.do(LOOK, directory='shop')
    assert said.error == 'ConfigError'
    assert f"hold files in '{home}/pixeltable/media'" in said.message
    assert f'set PIXELTABLE_HOME={home}/pixeltable' in said.message
    second.env['PIXELTABLE_HOME'] = str(home / 'pixeltable')
    said = second.do(LOOK, directory='shop')
    assert said.error == 'ConfigError'
    assert f'set MMPIPE_MEDIA={home}/media' in said.message
    # With both, it sees the rows, and an ingest there finds nothing to do and downloads nothing.
    second.env['MMPIPE_MEDIA'] = str(home / 'media')
    assert second.do(LOOK, directory='shop').value == {'rows': 16, 'pending': False, 'quarantined': 0}
    asked = len(s3.requests())
    assert second.do(shop.ingest(url)[0], **shop.ingest(url)[1]).value.startswith('shop/things: 0 new, 0 with changed')
    assert s3.since(asked, 'GET', '/source/k') == []
    frozen = second.do(shop.snapshot[0], **shop.snapshot[1])
    assert frozen.value['rows'] == 16
    assert not (other / 'media').exists()
    # The same path, and another disk behind it.
    shutil.move(home / 'media', tmp_path / 'away')
    said = second.do(LOOK, directory='shop')
    assert said.error == 'ConfigError'
    assert "the folder of that name here is another one ('.mmpipe-catalog' in it is missing" in said.message


def test_two_that_come_first_to_a_database_agree_on_its_folders(postgres: Postgres, tmp_path: Path) -> None:
    database = postgres.new_database()
    machines = [Machine(tmp_path / name, database=database) for name in ('one', 'two')]
    begun = [each.begin('logged:making', directory='shop') for each in machines]
    ends = [each.end() for each in begun]
    assert sorted(said.error for said in ends) == ['', 'ConfigError'], ends


def test_a_database_that_cannot_be_used_is_told_by_its_variable(postgres: Postgres, tmp_path: Path) -> None:
    def said(database: str) -> Said:
        return Machine(tmp_path / 'a home with spaces', database=database).do(LOOK, directory='shop')

    gone = said(postgres.url('nowhere').replace('mmpipe@', 'mmpipe:secret@'))
    assert gone.error == 'StoreError'
    assert 'the database that PIXELTABLE_DB_CONNECT_STR names cannot be used' in gone.message
    assert 'database "nowhere" does not exist' in gone.message
    assert 'secret' not in gone.message
    postgres.stop('fast')
    try:
        gone = said(postgres.url())
    finally:
        postgres.start()
    assert gone.error == 'StoreError'
    assert 'Connection refused' in gone.message
    assert 'Check that Postgres runs there' in gone.message
    assert said('mysql://someone:secret@host/shop').message.count('secret') == 0


def test_commands_leave_a_server_alone_that_is_not_theirs(shop: Shop) -> None:
    def command(*arguments: str) -> str:
        line = [sys.executable, '-c', 'from mmpipe.cli import main; main()', *arguments]
        done = subprocess.run(line, env=shop.machine.env, cwd=shop.machine.home, text=True, capture_output=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert 'PIXELTABLE_DB_CONNECT_STR names is not mmpipe' in command('stop')
    assert shop.machine.do(LOOK, directory='shop').value == {'rows': 0, 'pending': False, 'quarantined': 0}
