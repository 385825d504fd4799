"""Start a process that has imported nothing of the user's, in a few milliseconds where a fork server is to be had."""

from __future__ import annotations

import multiprocessing
import multiprocessing.forkserver
import multiprocessing.spawn
import sys
import threading
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from typing import Any

PRELOADED = 'mmpipe.workers.preload'

_hiding = threading.Lock()


def start(target: Callable[..., None], *args: Any, name: str) -> BaseProcess:
    """Start `target(*args)` in a daemonic process: forked from a clean server, else a new interpreter.

    Unlike any other start of a process, this one does not run the user's script again; see `how_to_run_the_script`.

    Args:
        target: a function of a module.
        args: what can be pickled, and connections.
        name: of the process.
    """
    if 'forkserver' in multiprocessing.get_all_start_methods():
        context: Any = multiprocessing.get_context('forkserver')
        wished = getattr(multiprocessing.forkserver._forkserver, '_preload_modules', None) or ()
        context.set_forkserver_preload([*(name for name in wished if name != PRELOADED), PRELOADED])
        try:
            return _started(context, target, args, name)
        except OSError as error:  # its socket lies in the folder of temporary files, whose path may be too long for one
            if 'too long' not in str(error):
                raise
    return _started(multiprocessing.get_context('spawn'), target, args, name)


def _started(context: Any, target: Callable[..., None], args: tuple[Any, ...], name: str) -> BaseProcess:
    process = context.Process(target=target, args=args, name=name, daemon=True)
    with _hiding, _script_hidden():
        process.start()
    return process


def how_to_run_the_script() -> dict[str, Any]:
    """What `multiprocessing.spawn.prepare` takes to run this process's script as a module; {} where there is none."""
    data = multiprocessing.spawn.get_preparation_data('')
    return {key: value for key, value in data.items() if key.startswith('init_main')}


@contextmanager
def _script_hidden() -> Iterator[None]:
    """Let `multiprocessing` find no file behind `__main__`, and everybody else what they look for in it."""
    script = sys.modules['__main__']
    stand_in = types.ModuleType('__main__')
    vars(stand_in).update(vars(script), __spec__=None, __file__=None)
    sys.modules['__main__'] = stand_in
    try:
        yield
    finally:
        sys.modules['__main__'] = script
