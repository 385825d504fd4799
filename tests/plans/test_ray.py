"""An apply on Ray is equal to one here, whatever is killed; and what Ray computed is not computed again."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pixeltable as pxt
import pytest
import ray_functions
import sqlalchemy.exc
from processes import alive, gone
from ray_functions import FOLDER, PAUSE, declare, noted, rows

import mmpipe as mm
from mmpipe.errors import ConfigError, MissingExtraError, PlanError
from mmpipe.functions import counts, reset
from mmpipe.store.calls import arguments_of, calls_in

ray = pytest.importorskip('ray', reason="Ray is not installed: pip install 'mmpipe[ray]'")
ONE = mm.RayEngine(actors=1, cpus=0.5)
TWO = mm.RayEngine(actors=2, cpus=0.5)
ALL = 40  # rows
SUPPORT = Path(ray_functions.__file__).parent


@pytest.fixture
def calls(monkeypatch, tmp_path) -> Path:
    """A folder for notes of calls, and a result cache."""
    folder = tmp_path / 'calls'
    folder.mkdir()
    monkeypatch.setenv(FOLDER, str(folder))
    monkeypatch.setenv('MMPIPE_RESULT_CACHE_GB', '0.2')
    monkeypatch.setenv('MMPIPE_HOME', str(tmp_path / 'home'))  # a cache of its own
    reset()
    return folder


def fill(directory: str, tmp_path: Path, count: int, **options) -> None:
    """The table with its rows and no computed column."""
    mm.apply(mm.plan(declare('none'), directory))
    pxt.get_table(f'{directory}/items').insert(rows(count, tmp_path, **options))


def values(directory: str) -> dict[str, list]:
    """All cells that are no media, and the errors of those that are computed."""
    found = {}
    for name in ('items', 'odd'):
        table = pxt.get_table(f'{directory}/{name}')
        about = table.get_metadata()['columns']
        selected = {f'c_{c}': getattr(table, c) for c in about if c not in ('photo', 'speech')}
        selected |= {
            f'e_{c}': getattr(table, c).errormsg for c in about if about[c]['is_computed'] and about[c]['is_stored']
        }
        found[name] = [
            {k: (v.dtype.str, v.tolist()) if isinstance(v, np.ndarray) else v for k, v in row.items()}
            for row in table.order_by(table.key).select(**selected).collect()
        ]
    return found


def computed_here(directory: str, tmp_path: Path, count: int, *names: str, **options) -> dict[str, list]:
    """What the local engine makes of the same rows, without a cache."""
    pxt.drop_dir(directory, force=True)
    pxt.create_dir(directory)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('MMPIPE_RESULT_CACHE_GB', '0')
        patch.setenv(PAUSE, '0')
        fill(directory, tmp_path, count, **options)
        mm.apply(mm.plan(declare(*names), directory))
    return values(directory)


def by_column(done) -> dict:
    return {column.column.rpartition('/')[2]: column for column in done.ray}


def test_cells_come_from_ray_and_are_those_that_are_computed_here(directory, tmp_path, calls):
    fill(directory, tmp_path, ALL)
    planned = mm.plan(declare(), directory)
    done = mm.apply(planned, engine=TWO)
    told = by_column(done)
    nulls = 4  # of x
    assert told['items.next'].why == 'since none of its functions is @cached'
    assert (told['items.weight'].cells, told['items.weight'].left) == (ALL - nulls - 1, 1)
    assert told['items.weight'].why == 'their function raised'
    assert told['items.look'].cells == 30
    assert told['items.mean'].left == 0
    # Cells of cached functions were read here; `square` once for its own column, once for that which reads it.
    assert counts() == {'pixels': 2 * 30, 'plain': ALL - nulls}
    loads = noted(calls, 'load')
    assert set(loads.values()) == {1}
    assert len(loads) <= TWO.actors
    assert os.getpid() not in loads
    assert not ray.is_initialized()
    assert any("row 'k00013': ValueError: 13 is unlucky" in text for text in done.failed)
    assert json.loads(json.dumps(done.to_json()))['ray'][0]['column'].startswith(directory)
    assert 'weight: 35 cells on Ray by' in str(done)
    on_ray = values(directory)
    assert not mm.plan(declare(), directory).pending
    assert computed_here(directory, tmp_path, ALL) == on_ray


@pytest.mark.slow
def test_what_ray_computed_costs_nothing_again(directory, tmp_path, calls, monkeypatch):
    fill(directory, tmp_path, ALL)
    mm.apply(mm.plan(declare('weight'), directory), engine=ONE)
    mm.apply(mm.plan(declare('weight', 'heavy'), directory), engine=ONE, limit=10)
    once = sum(noted(calls, 'weight').values())
    assert once == 36 + 1  # the one that raised is called here, too
    # Other code, and back: no call, and no Ray to make it.
    pxt.get_table(f'{directory}/items').drop_column('heavy')
    mm.apply(mm.plan(declare('none'), directory), allow_destructive=True)
    monkeypatch.setattr(ray, 'init', None)
    pxt.get_table(f'{directory}/items').where(pxt.get_table(f'{directory}/items').x == 13).update({'x': 15})
    reset()
    done = mm.apply(mm.plan(declare('weight'), directory), engine=ONE)
    assert by_column(done)['items.weight'].known == 36
    assert counts() == {}
    assert sum(noted(calls, 'weight').values()) == once


def kill_workers(calls: Path, times: int, found: list[int], stop: threading.Event) -> None:
    """SIGKILL processes that have computed a cell, each once."""
    seen: set[int] = set()
    while len(found) < times and not stop.is_set():
        time.sleep(0.05)
        there = [pid for pid in noted(calls, 'weight') if pid not in seen and pid != os.getpid() and alive(pid)]
        if there:
            pid = random.choice(there)
            seen.add(pid)
            os.kill(pid, signal.SIGKILL)
            found.append(pid)


@pytest.mark.slow
def test_a_killed_worker_costs_its_page_alone(directory, tmp_path, calls, monkeypatch):
    fill(directory, tmp_path, 300, media=False)
    monkeypatch.setenv(PAUSE, '0.02')
    killed: list[int] = []
    stop = threading.Event()
    killer = threading.Thread(target=kill_workers, args=(calls, 2, killed, stop))
    killer.start()
    done = mm.apply(mm.plan(declare('weight', 'heavy'), directory), engine=TWO)
    stop.set()
    killer.join()
    assert len(killed) == 2
    told = by_column(done)['items.weight']
    nulls = len(range(3, 300, 11))  # of x
    assert (told.cells, told.left) == (300 - nulls - 1, 1)
    assert sum(noted(calls, 'weight').values()) <= 300 + 2 * 64 + 8
    on_ray = values(directory)
    assert computed_here(directory, tmp_path, 300, 'weight', 'heavy', media=False) == on_ray


@pytest.mark.slow
def test_a_killed_driver_loses_what_is_in_flight(directory, tmp_path, calls, monkeypatch):
    fill(directory, tmp_path, 400, media=False)
    monkeypatch.setenv(PAUSE, '0.02')
    paths = os.pathsep.join([str(SUPPORT), *(path for path in sys.path if path)])
    job = f'from ray_functions import apply_in; apply_in({directory!r}, "weight")'
    child = subprocess.Popen([sys.executable, '-c', job], env={**os.environ, 'PYTHONPATH': paths})
    while sum(noted(calls, 'weight').values()) < 200:
        time.sleep(0.05)
        assert child.poll() is None
    child.kill()
    child.wait()
    assert gone(noted(calls, 'weight'))
    before = sum(noted(calls, 'weight').values())
    assert mm.plan(declare('weight'), directory).pending
    monkeypatch.setenv(PAUSE, '0')
    done = mm.apply(mm.plan(declare('weight'), directory), engine=TWO)
    told = by_column(done)['items.weight']
    assert told.known >= before - 2 * 2 * 64 - 64  # pages of two actors, and results on their way
    again = sum(noted(calls, 'weight').values()) - before
    assert again < 400 - 64
    on_ray = values(directory)
    assert computed_here(directory, tmp_path, 400, 'weight', media=False) == on_ray


@pytest.mark.slow
def test_other_code_on_a_worker_is_refused_by_both_names(directory, tmp_path, calls, monkeypatch):
    fill(directory, tmp_path, 5, media=False)
    monkeypatch.setattr(ray_functions, 'UNLUCKY', 12)  # here, and not in a process that imports the module
    monkeypatch.setattr(ray_functions.weight.py_fn.cell_keys, '_prints', {})  # taken once per process
    with pytest.raises(PlanError) as raised:
        mm.apply(mm.plan(declare('weight'), directory), engine=ONE)
    text = str(raised.value)
    assert f"{directory}/items.weight: a Ray worker on '{os.uname().nodename}' has another ray_functions.weight" in text
    assert text.count('ray_functions.py') == 1
    assert len(set(re.findall(r'[0-9a-f]{12}', text))) == 2
    assert mm.plan(declare('weight'), directory).pending


@pytest.mark.slow
def test_a_function_that_fails_everywhere_is_not_sent_to_the_end(directory, tmp_path, calls):
    fill(directory, tmp_path, 600, media=False, unlucky=True)
    with pytest.raises(mm.MmpipeError, match='since their function raised'):
        mm.apply(mm.plan(declare('weight'), directory), engine=ONE)
    assert sum(noted(calls, 'weight').values()) < 600


@pytest.mark.slow
def test_a_cell_that_kills_every_worker_is_left_and_told(directory, tmp_path, calls, monkeypatch):
    fill(directory, tmp_path, 10, media=False)
    monkeypatch.setenv(ray_functions.DEADLY, str(os.getpid()))
    done = mm.apply(mm.plan(declare('weight'), directory), engine=ONE)
    told = by_column(done)['items.weight']
    assert told.cells == 0
    assert told.why == '3 workers died while they computed them'
    assert computed_here(directory, tmp_path, 10, 'weight', media=False) == values(directory)


@pytest.mark.slow
def test_a_ray_that_is_there_is_taken_and_stays(directory, tmp_path, calls):
    fill(directory, tmp_path, 10, media=False)
    ray.init(address='local', num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level='ERROR')
    try:
        mm.apply(mm.plan(declare('weight'), directory), engine='ray')
        assert ray.is_initialized()
        with pytest.raises(PlanError, match=r'an actor of 5 CPU and 0 GPU has no room .* which has 1 CPU and 0 GPU'):
            mm.apply(mm.plan(declare('weight', 'heavy'), directory), engine=mm.RayEngine(cpus=5))
    finally:
        ray.shutdown()


@pytest.mark.slow
def test_embeddings_of_images_agree(directory, tmp_path, calls):
    def tables():
        Tables = pxt.model_base()

        class Items(Tables, name='items'):
            key = pxt.Column(type=pxt.String, primary_key=True)
            x: pxt.Int | None
            text: pxt.String | None
            photo: pxt.Image | None
            speech: pxt.Audio | None
            origin: pxt.Json | None
            vector = mm.functions.embed_image(photo, size=64)  # noqa: F821

        class Odd(Tables, name='odd', base=Items.where(Items.x > 3)):
            pass

        return Tables

    fill(directory, tmp_path, 20)
    done = mm.apply(mm.plan(tables(), directory), engine=ONE)
    assert by_column(done)['items.vector'].left == 0
    assert counts() == {}
    table = pxt.get_table(f'{directory}/items')
    for row in table.where(table.photo != None).select(table.photo, table.vector).collect():  # noqa: E711
        here = asyncio.run(mm.functions.embed_image.py_fn.cell_keys.function(row['photo'], size=64))
        np.testing.assert_allclose(row['vector'], here, rtol=1e-4, atol=1e-5)


def test_what_cannot_work_is_said_before_anything_is_changed(directory, calls, monkeypatch):
    planned = mm.plan(declare('weight'), directory)
    for engine in ('spark', 3):
        with pytest.raises(ConfigError, match=r"there is 'local' and 'ray'"):
            mm.apply(planned, engine=engine)
    for options in ({'actors': 0}, {'cpus': -1}, {'cpus': 0}):
        with pytest.raises(ConfigError):
            mm.RayEngine(**options)
    monkeypatch.setenv('MMPIPE_RESULT_CACHE_GB', '0')
    with pytest.raises(ConfigError, match='the result cache, and it has no size: set MMPIPE_RESULT_CACHE_GB'):
        mm.apply(planned, engine='ray')
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)  # an environment without Ray
    with pytest.raises(MissingExtraError, match=r"engine='ray' needs ray, .* pip install 'mmpipe\[ray\]'"):
        mm.apply(planned, engine='ray')
    assert pxt.list_tables(directory) == []


def test_arguments_of_stale_columns_are_computed_instead_of_read(directory, calls):
    mm.apply(mm.plan(declare('weight', 'heavy'), directory))
    table = pxt.get_table(f'{directory}/items')
    (read,) = calls_in(table, 'heavy', [])
    (made,) = calls_in(table, 'heavy', [(f'{directory}/items', 'weight')])
    assert (read.nested, made.nested) == (False, True)
    assert (str(read.expressions['weight']), str(made.expressions['weight'])) == ('weight', 'weight(x)')
    assert made.constants == {'by': 1}
    assert made.path == 'ray_functions.heavier'


def test_a_lost_database_is_not_taken_for_rows_that_raise(directory, monkeypatch):
    mm.apply(mm.plan(declare('weight', 'heavy'), directory))
    table = pxt.get_table(f'{directory}/items')
    (call,) = calls_in(table, 'heavy', [])
    asked = []

    def gone(*arguments):  # stands in for a Postgres that went away; tests/stores stops a real one
        asked.append(arguments)
        raise sqlalchemy.exc.OperationalError('select', {}, OSError('the server closed the connection'))

    monkeypatch.setattr('mmpipe.store.calls.select_rows', gone)
    with pytest.raises(sqlalchemy.exc.OperationalError):
        list(arguments_of(table, call, [(number,) for number in range(100)]))
    assert len(asked) == 1


def test_a_worker_opens_no_database(tmp_path):
    code = """
        import pixeltable
        from mmpipe.plans.ray_worker import _imported
        keys = _imported('ray_functions.weight', 'home', [])
        print(len(keys.print({}, [])))
        try:
            pixeltable.list_tables()
        except RuntimeError as error:
            print(error)
    """
    environment = {name: value for name, value in os.environ.items() if name != 'PIXELTABLE_HOME'}
    environment |= {
        'MMPIPE_HOME': str(tmp_path),
        'PYTHONPATH': os.pathsep.join([str(SUPPORT), *filter(None, sys.path)]),
    }
    done = subprocess.run(
        [sys.executable, '-c', textwrap.dedent(code)], env=environment, capture_output=True, text=True, check=True
    )
    length, said = done.stdout.splitlines()
    assert length == '32'
    assert "Pixeltable's database is not for Ray workers" in said
    assert not list(tmp_path.glob('pixeltable/*'))
