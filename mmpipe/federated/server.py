"""The server: a Flower ServerApp around any strategy of Flower's, whose result is a run like any other."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from mmpipe.data.loader import DataLoader
from mmpipe.errors import ConfigError, TrainError
from mmpipe.federated.engine import check_flower
from mmpipe.federated.exchange import BUFFERS, from_arrays, shared_names, to_arrays
from mmpipe.models.rebuild import run_weights
from mmpipe.models.weights_file import put_weights
from mmpipe.runs import Run, create_run, describe_factory, open_run, update_run
from mmpipe.runs.lock import training
from mmpipe.runs.record import append_metrics, sync_metrics
from mmpipe.train.build import built
from mmpipe.train.checkpoint import save_checkpoint
from mmpipe.train.evaluate import evaluate, tasks_of
from mmpipe.train.random_numbers import seed_generators

if TYPE_CHECKING:
    from flwr.app import ArrayRecord, Context, MetricRecord
    from flwr.serverapp import Grid, ServerApp
    from flwr.serverapp.strategy import Result, Strategy

_log = logging.getLogger(__name__)
RUN = 'mmpipe.run'  # in the server's context: where the run is
FROM_FLOWER = 'num-server-rounds'  # in the app's run config, by custom of Flower's templates


@dataclass(frozen=True, kw_only=True)
class Server:
    """What a server does when its app is run; see `server_app`."""

    strategy: Strategy
    factory: Callable[..., nn.Module]
    args: Mapping[str, Any] | None
    rounds: int
    timeout: float
    seed: int
    initial: str | os.PathLike[str] | Run | None
    val: Callable[[], DataLoader] | None
    train_config: Mapping[str, Any]
    evaluate_config: Mapping[str, Any]
    buffers: str
    name: str
    runs: str | os.PathLike[str] | None
    on_result: Callable[[Result], None] | None

    def main(self, grid: Grid, context: Context) -> None:
        """Run the federation, and record it."""
        from flwr.app import ConfigRecord

        rounds = int(context.run_config.get(FROM_FLOWER, self.rounds))
        device = torch.device('cpu')
        with torch.random.fork_rng(devices=[]):
            seed_generators(device, self.seed)
            model = built(self.factory, self.args, device=device)
        if self.initial is not None:
            put_weights(model, run_weights(open_run(self.initial)), source=f'run {open_run(self.initial).id}')
        run = self._start(model, rounds)
        context.state[RUN] = ConfigRecord({'path': str(run.path)})
        names = shared_names(model, self.buffers)
        told = {'buffers-fitted': True} if self.initial is not None and self.buffers == 'shared' else {}
        try:
            with training(run):
                result = self.strategy.start(
                    grid=grid,
                    initial_arrays=to_arrays(model.state_dict(), names),
                    num_rounds=rounds,
                    timeout=self.timeout,
                    train_config=ConfigRecord({**self.train_config, **told}),
                    evaluate_config=ConfigRecord({**self.evaluate_config, **told}),
                    evaluate_fn=lambda turn, arrays: self._after(run, model, names, turn, arrays),
                )
                if not result.arrays:
                    raise TrainError(
                        f'Run {run.id}: in {rounds} rounds no training of clients could be put together, so the model '
                        f'is as it was. Look for failures in the logs of this server and of the clients.'
                    )
        except BaseException as error:
            update_run(run, status='failed', error=f'{type(error).__name__}: {error}')
            raise
        self._finish(run, result, rounds)

    def _start(self, model: nn.Module, rounds: int) -> Run:
        record, reason = describe_factory(self.factory, self.args)
        return create_run(
            self.name,
            {
                'factory': record,
                'tasks': [task.to_json() for task in tasks_of(model, None)],
                'snapshot': {'id': None, 'root': None, 'versions': {}},  # no row was ever here
                'rows': {'train': None},
                'federated': {'strategy': type(self.strategy).__name__, 'rounds': rounds, 'buffers': self.buffers},
                'model_inputs': getattr(model, 'inputs', None),
                'val_rows': 0,
                'cannot': {
                    **({} if reason is None else {'rebuild': reason}),
                    'resume': 'it is a federation: start one with initial= this run',
                },
                'parent': None,
                'metrics': {},
            },
            runs=self.runs,
        )

    def _after(
        self, run: Run, model: nn.Module, names: list[str], turn: int, arrays: ArrayRecord
    ) -> MetricRecord | None:
        """Keep the weights of a round, and measure them where the server has rows of its own."""
        from flwr.app import MetricRecord

        put_weights(model, {**model.state_dict(), **from_arrays(arrays, model, names)}, source=f'round {turn}')
        if turn:
            save_checkpoint(run, model, torch.optim.SGD(model.parameters(), lr=1.0), {'step': turn})
        if self.val is None:
            return None
        found = evaluate(model, self.val())
        flat = {f'{task}.{name}': value for task, those in found.items() for name, value in those.items()}
        return MetricRecord({name: value for name, value in flat.items() if isinstance(value, int | float)})

    def _finish(self, run: Run, result: Result, rounds: int) -> None:
        parts = {
            'train': result.train_metrics_clientapp,
            'evaluate': result.evaluate_metrics_clientapp,
            'server': result.evaluate_metrics_serverapp,
        }
        lines = []
        for turn in range(rounds + 1):
            found = {what: dict(by_round[turn]) for what, by_round in parts.items() if turn in by_round}
            lines += [{'step': turn, 'round': turn, **found}] if found else []
        append_metrics(run, lines)
        sync_metrics(run)
        spent = getattr(self.strategy, 'privacy_spent', lambda: None)()
        privacy = {} if spent is None else {'privacy': {'epsilon': spent.epsilon, 'delta': spent.delta}}
        last: Any = result.evaluate_metrics_clientapp.get(rounds) or result.evaluate_metrics_serverapp.get(rounds) or {}
        update_run(run, status='finished', step=rounds, metrics=_by_task(dict(last)), error=None, **privacy)
        if self.on_result is not None:
            self.on_result(result)


def server_app(
    strategy: Strategy,
    factory: Callable[..., nn.Module],
    *,
    args: Mapping[str, Any] | None = None,
    rounds: int = 3,
    timeout: float = 3600.0,
    seed: int = 0,
    initial: str | os.PathLike[str] | Run | None = None,
    val: Callable[[], DataLoader] | None = None,
    train_config: Mapping[str, Any] | None = None,
    evaluate_config: Mapping[str, Any] | None = None,
    buffers: str = 'local',
    name: str = 'federated',
    runs: str | os.PathLike[str] | None = None,
    on_result: Callable[[Result], None] | None = None,
) -> ServerApp:
    """Flower's ServerApp around a strategy.

    What comes of it is a run: after each round its weights are a checkpoint, so `mm.load_model(run)` works, also of a
    federation that was killed. Where buffers are local, its model has those that the factory makes.

    Args:
        strategy: any of `flwr.serverapp.strategy`, or your own.
        factory: makes the model, the same as the clients'.
        args: keyword arguments of the factory; JSON.
        rounds: how many; `num-server-rounds` of the app's run config where it is there.
        timeout: seconds that a round waits for the answers of clients; after them it goes on with those that came.
        seed: of the initial weights.
        initial: a run whose weights to begin with, such as one over public rows.
        val: makes a loader of rows of the server's own, to measure each round on.
        train_config: sent to clients with each training: `lr`, `epochs` and `max_steps` are heeded by
            `mm.federated.client_app`.
        evaluate_config: sent with each evaluation.
        buffers: 'local' or 'shared', the same as the clients'.
        name: of the run.
        runs: folder of the runs; the project's `.mmpipe/runs` when None.
        on_result: is given Flower's `Result` at the end.

    Returns:
        Flower's own, to put into an app's `pyproject.toml`, or into `mm.federated.simulate`.

    Raises:
        ConfigError: an argument that cannot work.
        MissingExtraError: Flower is not installed.

    >>> from flwr.serverapp.strategy import FedAvg
    >>> from mmpipe.train.example import example_model
    >>> type(server_app(FedAvg(), example_model, rounds=2)).__name__
    'ServerApp'
    """
    check_flower('mm.federated.server_app')
    from flwr.serverapp import ServerApp
    from flwr.serverapp.strategy import Strategy

    if not isinstance(strategy, Strategy):
        raise ConfigError(
            f'mm.federated.server_app takes a strategy of flwr.serverapp.strategy, not {strategy!r}; those of '
            f'flwr.server.strategy are of the older interface.'
        )
    if isinstance(factory, nn.Module) or not callable(factory):
        raise ConfigError('mm.federated.server_app needs the function that makes the model, the same as the clients.')
    if rounds < 1 or timeout <= 0:
        raise ConfigError(f'server_app(rounds={rounds}, timeout={timeout}): positive numbers are meant.')
    if buffers not in BUFFERS:
        raise ConfigError(f'server_app(buffers={buffers!r}): one of {", ".join(map(repr, BUFFERS))} is meant.')
    server = Server(
        strategy=strategy,
        factory=factory,
        args=args,
        rounds=rounds,
        timeout=timeout,
        seed=seed,
        initial=initial,
        val=val,
        train_config=dict(train_config or {}),
        evaluate_config=dict(evaluate_config or {}),
        buffers=buffers,
        name=name,
        runs=runs,
        on_result=on_result,
    )
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        server.main(grid, context)

    return app


def _by_task(flat: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """{'kind.accuracy': 0.5} as {'kind': {'accuracy': 0.5}}."""
    found: dict[str, dict[str, Any]] = {}
    for name, value in flat.items():
        task, dot, metric = name.rpartition('.')
        if dot:
            found.setdefault(task, {})[metric] = value
    return found
