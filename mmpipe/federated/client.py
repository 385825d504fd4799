"""The client: a Flower ClientApp that trains with `Trainer.fit` from a snapshot root of its own."""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from mmpipe.data.loader import DataLoader
from mmpipe.errors import ConfigError
from mmpipe.federated.engine import check_flower
from mmpipe.federated.exchange import (
    ARRAYS,
    BUFFERS,
    CONFIG,
    METRICS,
    check_declared,
    from_arrays,
    refusal,
    shared_names,
    to_arrays,
    to_metrics,
)
from mmpipe.federated.proximal import Proximal
from mmpipe.models.encoders import weights_follow
from mmpipe.models.rebuild import run_weights
from mmpipe.models.weights_file import put_weights
from mmpipe.runs import Run, open_run, update_run
from mmpipe.shards import Snapshot, open_snapshot
from mmpipe.train.build import built
from mmpipe.train.evaluate import evaluate
from mmpipe.train.trainer import Trainer

if TYPE_CHECKING:
    from flwr.app import Context, Message
    from flwr.clientapp import ClientApp

_log = logging.getLogger(__name__)
Batches = Callable[[Snapshot, str], DataLoader]
"""batches(snapshot, split): the loader of a split, as in a pipeline's training.py."""

STATE = 'mmpipe.buffers'  # in the client's context, which never leaves it
SETTABLE = {'lr': float, 'epochs': int, 'max_steps': int}
"""What the server may set for a round, by entries of its training config."""
WEIGHTS = ('equal', 'rows')


@dataclass(frozen=True, kw_only=True)
class Client:
    """What a client does, whoever asks; see `client_app`."""

    factory: Callable[..., nn.Module]
    batches: Batches
    trainer: Trainer
    args: Mapping[str, Any] | None
    root: str | os.PathLike[str] | None
    train_split: str
    val_split: str
    metrics: tuple[str, ...]
    weight: str
    buffers: str
    name: str
    keep_runs: int

    def train(self, message: Message, context: Context) -> Message:
        """Train a round from the weights of the message."""
        from flwr.app import Message, RecordDict

        config = dict(message.content.config_records.get(CONFIG, {}))
        turn = int(config.get('server-round', 1))  # type: ignore[arg-type]
        # Every round another order, other crops and other dropout; the same again for the same round.
        loader = self._loader(context, self.train_split)
        loader = loader.fresh(seed=_mixed(loader.batches.seed, turn))
        with weights_follow():  # for names, shapes and dtypes; `fit` makes the one that is trained
            model = self._model(loader)
        names = shared_names(model, self.buffers)
        weights = self._start(model, message, context, names)
        run = self._trainer(config, turn).fit(
            self.factory, loader, args=self.args, weights=weights, name=self.name, allow_unseen=True
        )
        run = update_run(run, federated={'round': turn, 'run': context.run_id})
        trained = run_weights(run)
        self._keep(model, trained, context)
        _drop_old(run, self.keep_runs)
        weight = 1.0 if self.weight == 'equal' else float(len(loader.rows))
        content = RecordDict({ARRAYS: to_arrays(trained, names), METRICS: to_metrics({}, (), weight=weight)})
        return Message(content, reply_to=message)

    def evaluate(self, message: Message, context: Context) -> Message:
        """Measure the weights of the message on the client's own validation rows."""
        from flwr.app import Message, RecordDict

        loader = self._loader(context, self.val_split)
        model = self._model(loader)
        names = shared_names(model, self.buffers)
        put_weights(model, {**model.state_dict(), **self._start(model, message, context, names)}, source='the server')
        if hasattr(model, 'fit_buffers'):  # those of a client that has not trained yet
            model.fit_buffers(self._loader(context, self.train_split).seen)  # type: ignore[operator]
        found = evaluate(
            model, loader, precision=self.trainer.precision if self.trainer.precision != 'fp16' else 'fp32'
        )
        weight = 1.0 if self.weight == 'equal' else float(len(loader.rows))
        return Message(RecordDict({METRICS: to_metrics(found, self.metrics, weight=weight)}), reply_to=message)

    def _loader(self, context: Context, split: str) -> DataLoader:
        root = self.root if self.root is not None else context.node_config.get('root')
        if root is None:
            raise ConfigError(
                'This client has no snapshots: start its SuperNode with --node-config \'root="shards/shop"\', or pass '
                'root= to mm.federated.client_app.'
            )
        loader = self.batches(open_snapshot(str(root)), split)
        if not isinstance(loader, DataLoader):
            raise ConfigError(f'batches(snapshot, {split!r}) gave a {type(loader).__name__}: return an mm.DataLoader.')
        return loader

    def _model(self, loader: DataLoader) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            return built(self.factory, self.args, device=loader.device)

    def _start(
        self, model: nn.Module, message: Message, context: Context, names: Sequence[str]
    ) -> dict[str, torch.Tensor]:
        """Parameters from the server; buffers from the last round here, or from the server where they are shared."""
        came = from_arrays(message.content.array_records[ARRAYS], model, names)
        config: Any = message.content.config_records.get(CONFIG, {})
        parameters = {name for name, _ in model.named_parameters()}
        weights: dict[str, torch.Tensor] = {name: each for name, each in came.items() if name in parameters}
        own = model.state_dict()
        for name, array in context.state.array_records.get(STATE, {}).items():
            weights[name] = torch.from_numpy(array.numpy().copy()).to(own[name].dtype)
        # Before the first round nobody has fitted anything; each client then does, and the server has their mean.
        if self.buffers == 'shared' and (int(config.get('server-round', 1)) > 1 or config.get('buffers-fitted')):
            weights |= {name: each for name, each in came.items() if name not in parameters}
            fitted = [name for name in own if name.rpartition('.')[2] == 'fitted']
            weights |= {name: torch.ones_like(own[name]) for name in fitted}
        return weights

    def _keep(self, model: nn.Module, trained: Mapping[str, torch.Tensor], context: Context) -> None:
        """What was fitted or counted here stays here until the next round."""
        from flwr.app import Array, ArrayRecord

        parameters = {name for name, _ in model.named_parameters()}
        kept = {name: Array(each.float().numpy()) for name, each in trained.items() if name not in parameters}
        context.state[STATE] = ArrayRecord(kept)

    def _trainer(self, config: Mapping[str, Any], turn: int) -> Trainer:
        changes: dict[str, Any] = {name: kind(config[name]) for name, kind in SETTABLE.items() if name in config}
        if mu := float(config.get('proximal-mu', 0.0)):  # FedProx sends it
            changes['balancing'] = Proximal(self.trainer.balancing, mu=mu)
        return dataclasses.replace(self.trainer, seed=_mixed(self.trainer.seed, turn), **changes)


def client_app(
    factory: Callable[..., nn.Module],
    batches: Batches,
    *,
    trainer: Trainer,
    args: Mapping[str, Any] | None = None,
    root: str | os.PathLike[str] | None = None,
    splits: tuple[str, str] = ('train', 'val'),
    metrics: Sequence[str] = (),
    weight: str = 'equal',
    buffers: str = 'local',
    mods: Sequence[Any] = (),
    name: str = 'client',
    keep_runs: int = 2,
) -> ClientApp:
    """Flower's ClientApp around `Trainer.fit`.

    A round is a run of its own, under `<name>` of the trainer's folder of runs, on the client. Only parameters, the
    weight and the declared metrics go into messages.

    Args:
        factory: makes the model, as for `Trainer.fit`.
        batches: `batches(snapshot, split)` gives the loader of a split of the client's own snapshot.
        trainer: how to train in a round. Its seed and the loader's change with the round. FedProx's `proximal-mu` is
            heeded, and so are `lr`, `epochs` and `max_steps` in the server's training config.
        args: keyword arguments of the factory; JSON.
        root: of the client's snapshots, folder or URL; `root` of the SuperNode's `--node-config` when None. The newest
            snapshot is read in every round.
        splits: what is trained on and what is measured on.
        metrics: 'task.metric' of the measured rows: all that a client tells of them.
        weight: 'equal', so that a client does not tell how many rows it has; or 'rows', which declares that it does.
        buffers: 'local': statistics of BatchNorm and of standardisation stay with the client, each round goes on from
            the last one's (Li et al. 2021, FedBN); or 'shared', which declares that they are sent and averaged, too.
        mods: Flower's, such as `mmpipe.federated.local_dp`'s; of training alone.
        name: of the runs.
        keep_runs: so many of the newest runs of each client (of each root) keep their checkpoints.

    Returns:
        Flower's own, to put into an app's `pyproject.toml`, or into `mm.federated.simulate`.

    Raises:
        ConfigError: an argument that cannot work.
        MissingExtraError: Flower is not installed.

    >>> from mmpipe.train.example import example_model
    >>> def batches(snapshot, split):
    ...     return DataLoader(snapshot.split(split), batch_size=2, device='cpu')
    >>> type(client_app(example_model, batches, trainer=Trainer())).__name__
    'ClientApp'
    """
    check_flower('mm.federated.client_app')
    from flwr.clientapp import ClientApp

    if isinstance(factory, nn.Module) or not callable(factory):
        raise ConfigError(
            'mm.federated.client_app needs a function that makes the model: each round begins with a new one.'
        )
    for what, value, known in (('weight', weight, WEIGHTS), ('buffers', buffers, BUFFERS)):
        if value not in known:
            raise ConfigError(f'client_app({what}={value!r}): one of {", ".join(map(repr, known))} is meant.')
    if keep_runs < 1:
        raise ConfigError(f'client_app(keep_runs={keep_runs}): a whole number from 1 on is meant.')
    client = Client(
        factory=factory,
        batches=batches,
        trainer=trainer,
        args=args,
        root=root,
        train_split=splits[0],
        val_split=splits[1],
        metrics=check_declared(metrics),
        weight=weight,
        buffers=buffers,
        name=name,
        keep_runs=keep_runs,
    )
    app = ClientApp()
    app.train(mods=list(mods))(_discreet(client.train))
    app.evaluate()(_discreet(client.evaluate))
    return app


def _discreet(answer: Callable[[Message, Context], Message]) -> Callable[[Message, Context], Message]:
    """Flower would send the text of an exception to the server."""

    def answered(message: Message, context: Context) -> Message:
        try:
            return answer(message, context)
        except Exception as error:  # noqa: BLE001  whatever it is, its text stays here
            _log.exception('this client cannot %s', message.metadata.message_type)
            return refusal(error, message)

    return answered


def _mixed(seed: int, turn: int) -> int:
    return zlib.crc32(f'{seed}/{turn}'.encode())


def _drop_old(run: Run, keep: int) -> None:
    """Weights of this client's rounds before the last ones; their records and metrics stay.

    Clients of one machine may share a folder of runs; what they train on tells them apart.
    """
    numbers = sorted(int(each.name) for each in run.path.parent.iterdir() if each.name.isdecimal())
    folders = (run.path.parent / f'{number:04d}' for number in numbers)
    held = [open_run(each) for each in folders if (each / 'checkpoints').is_dir()]
    own = [each for each in held if each.record.get('snapshot', {}).get('root') == run.snapshot['root']]
    for each in own[:-keep]:
        if each.status != 'running':
            shutil.rmtree(each.path / 'checkpoints', ignore_errors=True)
