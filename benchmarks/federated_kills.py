"""A federation of real processes whose clients are killed at random, and what comes of each round.

A SuperLink and three SuperNodes speak over TLS on loopback. In each round but the first and the last one a client is
killed by SIGKILL at a random moment, half of the times while it trains: its SuperNode with all that it runs, which is
then started again, or the process that trains alone. What is written down on the server is compared with what is
computed from it here:

- the mean of the replies that arrived, by their weights, is what the round came to, and what the next one began with;
- each reply is, to the last bit, what a run of that round on a client's disk holds;
- no round went without any answer or took longer than a minute, the federation finished, and the weights of its run are
  those of its last round.

    python benchmarks/federated_kills.py COUNT SEED FOLDER [TIMEOUT]

prints a JSON object.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
SUPPORT = HERE.parent / 'tests' / 'support'
sys.path[:0] = [str(HERE), str(SUPPORT)]

from federation import client, server, write_clients  # noqa: E402
from flower_processes import Deployment, deployment, kill_group  # noqa: E402

import mmpipe as mm  # noqa: E402
from mmpipe.models.rebuild import run_weights  # noqa: E402
from mmpipe.runs import list_runs, open_run  # noqa: E402

mm.federated  # noqa: B018  before Flower, so that its telemetry is off
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord  # noqa: E402
from flwr.serverapp import Grid  # noqa: E402
from flwr.serverapp.strategy import FedAvg  # noqa: E402

CLIENTS = 3
TIMEOUT_S = 25.0
"""How long a round waits for answers. Three clients that nobody kills answer within half of it on two idle cores."""
AWAY_S = 65.0
"""A SuperNode whose training is killed waits for it; Flower gives it up after 60 s without a word."""
PATIENCE_S = 60.0
MOMENTS_S = 9.0
"""Half of the kills come within so many seconds after a round began, mostly while clients start."""
EPOCHS, TRAINS_S = 150, 1.5
"""The others come within so many seconds after the client began to train, which takes about as long."""
APP = 'flwr-clientapp'
Arrays = dict[str, np.ndarray]


def client_app(folder: str) -> Any:
    """What SuperNodes run; every round keeps its weights, to be compared."""
    trainer = mm.Trainer(runs=Path(folder) / 'runs', lr=0.02, epochs=EPOCHS)
    return client(Path(folder) / 'runs', trainer=trainer, keep_runs=10_000)


def server_app(folder: str, rounds: int, timeout: float) -> Any:
    """What the SuperLink runs."""
    # One client is enough to go on; there is no evaluation, which kills would be waited for once more in.
    strategy = WrittenDown(Path(folder) / 'rounds', min_train_nodes=1, min_available_nodes=1, fraction_evaluate=0.0)
    return server(Path(folder) / 'runs', strategy, rounds=rounds, timeout=timeout)


class WrittenDown(FedAvg):
    """FedAvg that writes down what each round begins with, what arrives, and what comes of it.

    Args:
        folder: of `<round>-<what>.npz`.
        **options: of FedAvg.
    """

    def __init__(self, folder: Path, **options: Any) -> None:
        super().__init__(**options)
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        while server_round == 1 and len(list(grid.get_node_ids())) < CLIENTS:
            time.sleep(0.2)
        messages = super().configure_train(server_round, arrays, config, grid)
        write(self.folder / f'{server_round}-begin.npz', numbers(arrays))
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        replies = list(replies)
        found = super().aggregate_train(server_round, replies)
        arrived = [reply.content for reply in replies if reply.has_content()]
        for number, content in enumerate(arrived):
            weight = {'num-examples': np.float64(content['metrics']['num-examples'])}  # type: ignore[index,arg-type]
            write(self.folder / f'{server_round}-reply-{number}.npz', {**numbers(content['arrays']), **weight})  # type: ignore[arg-type]
        write(self.folder / f'{server_round}-end.npz', {} if found[0] is None else numbers(found[0]))
        return found


def numbers(arrays: ArrayRecord) -> Arrays:
    """As NumPy has them."""
    return {name: array.numpy() for name, array in arrays.items()}


def write(path: Path, arrays: Arrays) -> None:
    """At once: whoever sees the file finds it whole."""
    unready = path.with_suffix('.tmp')
    with unready.open('wb') as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    unready.replace(path)


def read(path: Path) -> Arrays:
    """What `write` wrote."""
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def killed_clients(folder: Path, count: int, seed: int, *, timeout: float = TIMEOUT_S) -> dict[str, Any]:
    """Run a federation in which `count` clients are killed, one a round.

    Args:
        folder: empty.
        count: of kills.
        seed: of moments and victims.
        timeout: seconds that a round waits for answers; more on a machine that has other things to do.

    Returns:
        Kills, of which kind they were, and how many of their rounds were right; whether the federation finished as its
        last round; runs of clients that ended with a kill; replies per round, and the longest seconds of a round.
    """
    draw = random.Random(seed)
    rounds = count + 2
    roots = write_clients(folder / 'shops', CLIENTS)
    code = f'import sys\nsys.path.insert(0, {str(HERE)!r})\nfrom federated_kills import client_app, server_app\n\n'
    code += f'client = client_app({str(folder)!r})\nserver = server_app({str(folder)!r}, {rounds}, {timeout})\n'
    kinds = []
    away = [0.0] * CLIENTS  # until when
    with deployment(folder / 'flower', code) as flower:
        nodes = [flower.node(number, root) for number, root in enumerate(roots)]
        run = flower.submit()
        until((folder / 'rounds' / '1-begin.npz').is_file, flower)
        for turn in range(2, rounds):
            until((folder / 'rounds' / f'{turn}-begin.npz').is_file, flower)
            here = [number for number in range(CLIENTS) if away[number] < time.monotonic()]
            # Somebody must be left to answer.
            victim = draw.choice([each for each in range(CLIENTS) if here != [each]])
            alone, busy, moment = draw.random() < 0.5, draw.random() < 0.5, draw.uniform(0, 1)
            if busy and victim in here:
                until_trains(folder, roots[victim], seconds=0.8 * timeout)
                time.sleep(moment * TRAINS_S)
            else:
                time.sleep(moment * MOMENTS_S)
            apps = processes_of(nodes[victim].pid, APP) if alone else []
            if apps:
                os.kill(apps[0], signal.SIGKILL)
                away[victim] = time.monotonic() + AWAY_S
            else:
                kill_group(nodes[victim])
                nodes[victim] = flower.node(victim, roots[victim])
                away[victim] = 0.0
            kinds.append('training' if apps else 'node')
        for what in ('begin', 'end'):
            until((folder / 'rounds' / f'{rounds}-{what}.npz').is_file, flower)
        record = folder / 'runs' / 'federated' / '0001'
        until(lambda: open_run(record).status != 'running', flower)
        status = flower.wait(run, seconds=PATIENCE_S)
    return outcome(folder, rounds, kinds, completed=status == 'finished:completed')


def outcome(folder: Path, rounds: int, kinds: list[str], *, completed: bool) -> dict[str, Any]:
    """What became of a federation, from what was written down; see `killed_clients`."""
    right = [is_right(folder, turn) for turn in range(1, rounds + 1)]
    found = open_run(folder / 'runs' / 'federated' / '0001')
    last = begun(folder, rounds + 1)
    weights = {name: np.atleast_1d(tensor.numpy()) for name, tensor in run_weights(found).items()}
    return {
        'kills': len(kinds),
        'kinds': {kind: kinds.count(kind) for kind in sorted(set(kinds))},
        'right': sum(right[1:-1]),
        'others_right': right[0] and right[-1],
        'finished': completed
        and found.status == 'finished'
        and all(np.array_equal(weights[name], last[name]) for name in last),
        'killed_while_training': sum(
            open_run(each).status == 'killed' for each in list_runs('client', runs=folder / 'runs')
        ),
        'replies': [len(replies(folder, turn)) for turn in range(1, rounds + 1)],
        'longest_round_s': max(seconds(folder, turn) for turn in range(1, rounds + 1)),
    }


def is_right(folder: Path, turn: int) -> bool:
    """Whether answers came in a minute, each is what a client trained, and the round came to their mean."""
    arrived, start, after = replies(folder, turn), begun(folder, turn), begun(folder, turn + 1)
    if not arrived:
        return False
    total = sum(float(reply['num-examples']) for reply in arrived)
    expected = {
        name: sum(reply[name].astype(np.float64) * float(reply['num-examples']) for reply in arrived) / total
        for name in start
    }
    trained = [
        {name: np.atleast_1d(tensor.numpy()) for name, tensor in run_weights(run).items()}
        for run in map(open_run, list_runs('client', runs=folder / 'runs'))
        if run.record.get('federated', {}).get('round') == turn
    ]
    return (
        all(np.allclose(after[name], expected[name], rtol=1e-5, atol=1e-7) for name in start)
        and all(any(all(np.array_equal(reply[n], one[n]) for n in start) for one in trained) for reply in arrived)
        and seconds(folder, turn) <= PATIENCE_S
    )


def begun(folder: Path, turn: int) -> Arrays:
    """What a round began with; of the one after the last, what that came to."""
    file = folder / 'rounds' / f'{turn}-begin.npz'
    if file.is_file():
        return read(file)
    return read(folder / 'rounds' / f'{turn - 1}-end.npz') or begun(folder, turn - 1)


def replies(folder: Path, turn: int) -> list[Arrays]:
    """What arrived in a round."""
    return [read(file) for file in sorted((folder / 'rounds').glob(f'{turn}-reply-*.npz'))]


def seconds(folder: Path, turn: int) -> float:
    """How long a round took."""
    began, ended = (folder / 'rounds' / f'{turn}-{what}.npz' for what in ('begin', 'end'))
    return ended.stat().st_mtime - began.stat().st_mtime


def until_trains(folder: Path, root: str, *, seconds: float) -> None:
    """Wait until a client trains, or for so long if it does not come to that."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        newest = [open_run(each) for each in list_runs('client', runs=folder / 'runs')[-CLIENTS:]]
        if any(run.snapshot['root'] == root and run.status == 'running' for run in newest):
            return
        time.sleep(0.1)


def processes_of(group: int, command: str) -> list[int]:
    """Processes of a group by the name of their command."""
    found = []
    for entry in Path('/proc').iterdir():
        if entry.name.isdecimal():
            try:
                words = (entry / 'cmdline').read_bytes().split(b'\0')
                # A process that has ended has no command any more.
                if os.getpgid(int(entry.name)) == group and any(Path(os.fsdecode(w)).name == command for w in words):
                    found.append(int(entry.name))
            except (FileNotFoundError, ProcessLookupError):
                continue
    return found


def until(condition: Callable[[], bool], flower: Deployment) -> None:
    """Wait for something.

    Raises:
        TimeoutError: it did not come within a minute, and what the SuperLink said last.
    """
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f'nothing for {PATIENCE_S} s; the SuperLink said last:\n{flower.log("link")[-3000:]}')
        time.sleep(0.1)


def main(count: str, seed: str, folder: str, timeout: str = str(TIMEOUT_S)) -> None:
    """The command."""
    print(json.dumps(killed_clients(Path(folder), int(count), int(seed), timeout=float(timeout))))


if __name__ == '__main__':
    main(*sys.argv[1:])
