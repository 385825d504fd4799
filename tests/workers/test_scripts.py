"""Worker processes of whole programs: which part of a script runs again, and what is left when it is killed."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import pytest
from processes import alive, gone, mappings

SUPPORT = str(Path(__file__).parents[1] / 'support')
CODE = """
    import os, sys
    sys.path.insert(0, {support!r})
    with open({log!r}, 'a') as log:
        print(__name__, file=log)
    import numpy as np
    import worker_tasks
    from mmpipe.workers import ProcessReader

    def mine(request, allocate):
        return {{**worker_tasks.square(request, allocate), 'heavy': 'wave' in sys.modules}}

    def work():
        global reader
        reader = ProcessReader({task}, processes=2)
        print(*reader.pids, flush=True)
        for i in range(4):
            reader.submit({request})
        print(*(reader.next()['x'][0, 0] for i in range(4)))

    import wave  # stands for torch
    {start}
"""


def script(folder, *, task, guarded, request="{'positions': [i]}"):
    """A script that writes down each time that it is run."""
    log, path = folder / 'log', folder / 'script.py'
    start = "if __name__ == '__main__':\n        work()" if guarded else 'work()'
    path.write_text(
        textwrap.dedent(CODE.format(support=SUPPORT, log=str(log), task=task, request=request, start=start))
    )
    return path, lambda: log.read_text().split()


def run(path):
    return subprocess.run([sys.executable, path], capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize('guarded', [True, False])
def test_a_script_runs_once_when_its_functions_are_in_a_module(tmp_path, guarded):
    path, runs = script(tmp_path, task='worker_tasks.square', guarded=guarded)
    done = run(path)
    assert done.stderr == ''
    assert done.stdout.split()[2:] == ['0', '1', '4', '9']
    assert runs() == ['__main__']


def test_a_script_with_a_guard_can_have_the_functions_itself(tmp_path):
    path, runs = script(tmp_path, task='mine', guarded=True)
    done = run(path)
    assert done.stderr == ''
    assert done.stdout.split()[2:] == ['0', '1', '4', '9']
    assert sorted(runs()) == ['__main__', '__mp_main__', '__mp_main__']


def test_a_script_without_a_guard_is_told_of_it_and_starts_no_more_processes(tmp_path):
    path, runs = script(tmp_path, task='mine', guarded=False)
    done = run(path)
    assert done.returncode == 1
    assert "put what it does under `if __name__ == '__main__':`" in done.stderr
    assert 'mmpipe.errors.ConfigError: ' in done.stderr
    assert sorted(runs()) in (['__main__', '__mp_main__'], ['__main__', '__mp_main__', '__mp_main__'])


def test_a_function_of_a_prompt_is_refused_with_a_way_out():
    code = 'def f(request, allocate): return 1\nfrom mmpipe.workers import ProcessReader\n'
    code += 'reader = ProcessReader(f, processes=1)\nreader.submit({})\nreader.next()\n'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert 'put functions of a notebook or prompt into a .py file' in done.stderr


@pytest.mark.parametrize(('task', 'sleep'), [('slow', 0), ('slow', 600), ('endless', 600)])
def test_workers_and_their_memory_are_gone_when_their_parent_is_killed(tmp_path, task, sleep):
    request = f"{{'positions': [i], 'sleep': {sleep}}}"
    path, _ = script(tmp_path, task=f'worker_tasks.{task}', guarded=True, request=request)
    path.write_text(path.read_text() + '    import time; time.sleep(600)\n')
    folder = tempfile.mkdtemp(prefix='mm')  # short, since a socket is made in it
    environment = {**os.environ, 'TMPDIR': folder}
    parent = subprocess.Popen([sys.executable, path], stdout=subprocess.PIPE, text=True, env=environment)
    try:
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        if sleep:
            while not all('memfd:mmpipe' in mappings(pid) for pid in pids):
                time.sleep(0.01)
            time.sleep(0.2)  # now they are in it
        else:
            assert parent.stdout.readline() == '0 1 4 9\n'
        assert all(alive(pid) for pid in pids)
        server = _parent(pids[0])
        assert all('/dev/shm' not in mappings(pid) for pid in [*pids, server, parent.pid])
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()
    assert gone([*pids, server])
    left = [file for file in Path(folder).rglob('*') if not file.is_dir()]
    assert [file for file in left if not file.is_socket()] == []  # multiprocessing's own, of its fork server


def _parent(pid):
    return int(Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[1])


def test_workers_start_where_the_path_of_temporary_files_is_too_long_for_a_socket(tmp_path):
    folder = tmp_path / ('x' * 120)
    folder.mkdir()
    path, _ = script(tmp_path, task='worker_tasks.slow', guarded=True, request="{'positions': [i], 'sleep': 0}")
    environment = {**os.environ, 'TMPDIR': str(folder)}
    done = subprocess.run([sys.executable, path], capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1] == '0 1 4 9'
