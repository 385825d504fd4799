"""The process of one loader: it prepares, checks and times what it is told to, a line of JSON each.

    python loaders_process.py ffcv FOLDER       {"do": "time", "batch": 64, "setting": {"workers": 2}, "least_s": 0.5}

It stays between rounds, with its loader open, so that a round is nothing but epochs. `Process` is its other end.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
TIMEOUT_S = 240
THREADS = ('OMP_NUM_THREADS', 'MKL_NUM_THREADS', 'OPENBLAS_NUM_THREADS')


class Failed(Exception):
    """A loader's process could not do what it was told to; the message says why."""


class Process:
    """The process of one loader, seen from outside.

    Args:
        python: of the environment in which the loaders are installed.
        name: of the loader.
        work: folder of all data.
    """

    def __init__(self, python: Path, name: str, work: Path) -> None:
        self.name = name
        self.log = work / 'logs' / f'{name}.txt'
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open('a') as log:
            self.process = subprocess.Popen(
                [str(python), str(HERE / 'loaders_process.py'), name, str(work)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, cwd=HERE,
                env=environment(work, name), start_new_session=True,
            )  # fmt: skip

    def ask(self, **command: Any) -> Any:
        """The answer to a command.

        Raises:
            Failed: the process said why it could not, ended, or took too long.
        """
        late = threading.Timer(TIMEOUT_S, self.stop)
        late.start()
        try:
            self.process.stdin.write(json.dumps(command) + '\n')
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ''
        finally:
            late.cancel()
        if not line:
            raise Failed(f'its process ended or took over {TIMEOUT_S} s; see {self.log}')
        found = json.loads(line)
        if 'error' in found:
            raise Failed(found['error'])
        return found['found']

    def stop(self, *, patience_s: float = 0) -> None:
        """End it, with all processes that it started; it has so long for ending by itself."""
        self.pause(False)
        with suppress(subprocess.TimeoutExpired, BrokenPipeError):
            self.process.stdin.close()
            self.process.wait(patience_s)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def pause(self, paused: bool) -> None:
        """Stop it and what it started, or let them go on: some loaders work on when nobody asks them to."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGSTOP if paused else signal.SIGCONT)

    def cpu_s(self) -> float:
        """Seconds of processor time that it and what it started have used."""
        total = 0
        for path in Path('/proc').glob('[0-9]*/stat'):
            try:
                fields = path.read_text().rpartition(')')[2].split()
            except OSError:
                continue  # it has just ended
            if int(fields[3]) == self.process.pid:  # its session
                total += sum(map(int, fields[11:15]))
        return total / os.sysconf('SC_CLK_TCK')


def busy_s() -> float:
    """Seconds of processor time that this machine has spent on anything, or was kept from."""
    fields = list(map(int, Path('/proc/stat').read_text().splitlines()[0].split()[1:9]))
    return (sum(fields) - fields[3] - fields[4]) / os.sysconf('SC_CLK_TCK')


def environment(work: Path, name: str) -> Mapping[str, str]:
    """One thread per call of OpenMP, no accelerator, nothing asked of the network, caches below the folder."""
    own = {
        **dict.fromkeys(THREADS, '1'),
        'CUDA_VISIBLE_DEVICES': '',
        'HF_HOME': str(work / 'cache'),
        'HF_HUB_OFFLINE': '1',
        'LITDATA_DISABLE_VERSION_CHECK': '1',
        'MMPIPE_HOME': str(work / name / 'home'),
        'PYTHONPATH': str(HERE.parent),
        'TOKENIZERS_PARALLELISM': 'false',
    }
    return {**{name: value for name, value in os.environ.items() if name != 'PIXELTABLE_HOME'}, **own}


class Loader:
    """What the process does.

    Args:
        name: of the loader, or of something else that is measured.
        work: folder of all data; the loader's own files lie in the one of its name.
    """

    def __init__(self, name: str, work: Path) -> None:
        import loaders_decoded
        import loaders_encoded
        import loaders_mmpipe

        self.peer = {**loaders_mmpipe.PEERS, **loaders_decoded.PEERS, **loaders_encoded.PEERS}.get(name)
        self.measure = loaders_mmpipe.MEASURES.get(name)
        self.work, self.own = work, work / name
        self.data = work / (self.peer.data if self.peer else 'decoded')
        self.opened: dict[str, Any] = {}
        self.epochs: dict[str, int] = {}

    def make(self, kind: str, sizes: Mapping[str, int]) -> Any:
        """The data of a kind."""
        import loaders_data

        return loaders_data.make(self.work, kind, loaders_data.Sizes(**sizes))

    def prepare(self, many: int) -> float:
        """Write the loader's own files where they are not there; the seconds that took."""
        done, started = self.own / 'prepared', time.perf_counter()
        self.own.mkdir(exist_ok=True)
        if done.exists():
            return 0.0
        if self.measure and self.measure.prepare:
            self.measure.prepare(self.data, self.own, many)
        if self.peer and self.peer.prepare:
            self.peer.prepare(self.data, self.own)
        done.touch()
        return time.perf_counter() - started

    def open(self, batch: int, setting: Mapping[str, Any]) -> tuple[str, Any, Any]:
        """(name, epochs, data) of a setting."""
        from loaders_data import Decoded, Photos

        name = json.dumps([batch, setting])
        data = Decoded(self.data) if self.peer.data == 'decoded' else Photos(self.data)
        if name not in self.opened:
            self.opened[name] = self.peer.open(self.data, self.own, batch, **setting)
        return name, self.opened[name], data

    def check(self, batch: int, setting: Mapping[str, Any]) -> dict[str, float] | None:
        """Two epochs, looked at wholly; what is worth knowing of crops."""
        from loaders_checks import check_decoded, check_photos

        name, epoch, data = self.open(batch, setting)
        self.epochs[name] = 2
        if self.peer.data != 'decoded':
            return check_photos(epoch, data)
        return check_decoded(epoch, data, shuffles=self.peer.shuffle != 'none')

    def warm(self) -> None:
        """Bring what the loader reads into the page cache, whatever others have read since its last turn."""
        places = [self.data, self.own, *([self.work / self.peer.reads] if self.peer and self.peer.reads else [])]
        for path in sorted({path for place in places for path in place.rglob('*')}):
            if path.is_file():
                with path.open('rb', buffering=0) as file:
                    while file.read(1 << 24):
                        pass

    def time(self, batch: int, setting: Mapping[str, Any], least_s: float) -> dict[str, float]:
        """Whole epochs for so long; their contents are looked at between them."""
        from loaders_checks import Seen

        name, epoch, data = self.open(batch, setting)
        rows, seconds, count = 0, 0.0, 0
        while seconds < least_s:
            seen, number = Seen(data), self.epochs.get(name, 0)
            self.epochs[name] = number + 1
            started = time.perf_counter()
            for found in epoch(number):
                seen.add(found)
            del found
            seconds += time.perf_counter() - started
            rows, count = rows + seen.check(), count + 1
        return {'rate': rows / seconds, 'epochs': count}

    def close(self, keep: list[list[Any]]) -> None:
        """Forget all settings but some, with their workers."""
        kept = {json.dumps(each) for each in keep}
        for name in [name for name in self.opened if name not in kept]:
            del self.opened[name]
        gc.collect()  # ends workers now, and not during a round

    def run(self, least_s: float) -> dict[str, tuple[float, str]]:
        """Something else that is measured."""
        return self.measure.run(self.data, self.own, least_s)

    def end(self) -> None:
        """What must not outlive the process."""
        if self.peer and self.peer.package == 'pixeltable':
            from mmpipe.store import stop_postgres

            stop_postgres()


def main() -> None:
    """Commands from stdin, answers to what stdout was; prints of loaders go with their errors."""
    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)
    loader = Loader(sys.argv[1], Path(sys.argv[2]))
    for line in sys.stdin:
        command = json.loads(line)
        try:
            answer = {'found': getattr(loader, command.pop('do'))(**command)}
        except (Exception, SystemExit) as error:  # noqa: BLE001  # whatever a loader raises is a reason to go on without it
            import traceback

            traceback.print_exc()
            answer = {'error': f'{type(error).__name__}: {error}'[:400]}
        answers.write(json.dumps(answer) + '\n')
        answers.flush()
    loader.end()


if __name__ == '__main__':
    main()
