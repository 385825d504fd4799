"""The trainer: frozen configuration, and one method that makes a run.

fit ── prepare   build the model, check tasks and labels, fit buffers         (this file)
    ── loop      steps, losses, checkpoints, metrics                          (loop.py)
    ── run       factory, snapshot, rows, metrics: how to get the model back  (mmpipe.runs)
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mmpipe.data.device import device_name
from mmpipe.data.loader import DataLoader
from mmpipe.data.ranks import is_first, world
from mmpipe.durable import write_bytes
from mmpipe.errors import ConfigError
from mmpipe.models.multitask import check_freeze
from mmpipe.models.transfer import TransferFactory
from mmpipe.models.weights_file import put_weights
from mmpipe.runs import Run, create_run, describe_factory, open_run
from mmpipe.runs.circumstances import code_folder, git_state, machine
from mmpipe.runs.lock import training
from mmpipe.runs.served import stored_fields
from mmpipe.shards import Rows
from mmpipe.shards.root import place_of
from mmpipe.train.balancing import Balancing, check_balancing, name_of
from mmpipe.train.build import built
from mmpipe.train.callbacks import Callback
from mmpipe.train.checks import check_fields, check_loaders, check_parallel, check_spread
from mmpipe.train.classes import check_classes, known_classes
from mmpipe.train.compiling import compile_parts
from mmpipe.train.distributed import from_rank_0
from mmpipe.train.evaluate import tasks_of
from mmpipe.train.from_record import how_to_go_on
from mmpipe.train.loop import Loop
from mmpipe.train.optimizer import OptimizerFactory, SchedulerFactory, name_of_factory
from mmpipe.train.parallel import WHOLE, Parallel, laid_out
from mmpipe.train.parent import carry_weights, lineage_of, parent_of
from mmpipe.train.precision import check_precision
from mmpipe.train.random_numbers import borrowed_generators, seed_generators
from mmpipe.train.recompute import forget_blocks
from mmpipe.train.resume import check_resumed, unfinished_run
from mmpipe.train.tasks import Task

OUTSIDE = ('progress', 'runs', 'device', 'callbacks', 'parallel')
"""Settings about this process, not about what is trained."""
COUNTS = (
    'epochs', 'max_steps', 'accumulate', 'checkpoint_every', 'keep_checkpoints', 'keep_every', 'evaluate_every',
    'log_every',
)  # fmt: skip
SCHEDULES = ('constant', 'cosine')
Progress = Callable[[str, int, int, str], None]
"""progress(stage, done, total, unit), as in progress('train', 640, 4000, 'rows')."""


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """How to train; checked when it is made.

    Args:
        epochs: passes over the training rows.
        max_steps: stop after so many optimizer steps, if that is earlier.
        lr: peak learning rate of AdamW.
        weight_decay: of matrices; vectors and embeddings are not decayed.
        optimizer: makes another one of parameter groups, such as `functools.partial(torch.optim.SGD, lr=0.1)`; its own
            learning rate then counts. Its state must be tensors per parameter.
        scheduler: makes a `torch.optim.lr_scheduler` of the optimizer, which is stepped after each optimizer step,
            instead of `schedule` and `warmup`.
        layer_decay: factor of the learning rate from one layer of an encoder to the one before it, in (0, 1]; see
            `mmpipe.train.optimizer.parameter_groups`.
        unfreeze: {epoch: how many of the last layers of each encoder train from then on, or None for all}, as ULMFiT
            does (Howard, Ruder 2018, section 3.3); before the first of them, as the model was made.
        ema: decay of a running average of the weights, in (0, 1), such as 0.999: what is evaluated, and what
            `mm.load_model` gives.
        schedule: 'constant', or 'cosine' down to 0.
        warmup: optimizer steps of linear growth of the learning rate.
        clip: largest norm of the gradient; None for no clipping.
        precision: 'fp32'; 'bf16' for autocast (weights stay float32); 'fp16' for autocast with a loss scale.
        accumulate: batches per optimizer step: the effective batch is this many times the loader's.
        balancing: how the losses of several tasks become one: 'fixed' by the weights of the tasks, 'uncertainty', or a
            `mmpipe.train.Balancing`.
        channels_last: lay images and weights of convolutions out with their channels last.
        recompute: activation checkpointing: True for every block that repeats, 'matmuls' to keep products of matrices,
            convolutions and attention, or names of modules; see `mmpipe.train.recompute`.
        compile: compile encoders, fusion and heads with `torch.compile`: True, or its mode.
        parallel: how the processes of `torchrun` share a training; see `mmpipe.train.Parallel`.
        skip_nonfinite: so many steps whose loss is not finite change nothing and are recorded with their rows; after
            more the training goes back to its last checkpoint and leaves them out; after as many again it stops.
        callbacks: told of what happens, in order; see `mmpipe.train.Callback`.
        seed: of the initial weights, dropout and other draws; the order is the loader's seed.
        device: where to train; must be the loaders'. The training loader's when 'auto'.
        runs: folder of the runs; the project's `.mmpipe/runs` when None.
        checkpoint_every: optimizer steps between checkpoints; None for none by steps.
        checkpoint_seconds: seconds between checkpoints; 'auto' for 5, or 20 times what the last one took where that is
            more; None for none by time. The last step has one in any case, and so has the step of a Ctrl-C.
        keep_checkpoints: so many of the newest checkpoints stay.
        keep_best: 'task.metric' of the validation rows: the best checkpoint by it stays, too, and there is one after
            each evaluation. Losses, `mae` and `rmse` are better where they are lower; any other with a `-` before it.
        keep_every: checkpoints of steps that this divides stay, too.
        sharded_checkpoints: each process writes the parts of the checkpoint that it holds, while training goes on;
            'auto' where parts of the model are spread. They load over any number of processes. The last checkpoint, and
            one after an evaluation that the best is kept of, has the whole weights besides.
        evaluate_every: epochs between evaluations; the last epoch has one in any case.
        log_every: optimizer steps between lines of losses in metrics.jsonl; reading them waits for the device.
        progress: called after each step with ('train', rows done, rows in all, 'rows').

    Raises:
        ConfigError: a value that cannot work.

    >>> Trainer(epochs=3).precision
    'fp32'
    >>> Trainer(lr=-1)
    Traceback (most recent call last):
    ...
    mmpipe.errors.ConfigError: Trainer(lr=-1): a positive number is meant.
    """

    epochs: int = 1
    max_steps: int | None = None
    lr: float = 1e-3
    weight_decay: float = 0.01
    optimizer: OptimizerFactory | None = None
    scheduler: SchedulerFactory | None = None
    layer_decay: float | None = None
    unfreeze: Mapping[int, int | None] | None = None
    ema: float | None = None
    schedule: str = 'constant'
    warmup: int = 0
    clip: float | None = None
    precision: str = 'fp32'
    accumulate: int = 1
    balancing: str | Balancing = 'fixed'
    channels_last: bool = False
    recompute: bool | str | Sequence[str] = False
    compile: bool | str = False
    parallel: Parallel = WHOLE
    skip_nonfinite: int = 3
    callbacks: Sequence[Callback] = ()
    seed: int = 0
    device: str = 'auto'
    runs: str | os.PathLike[str] | None = None
    checkpoint_every: int | None = None
    checkpoint_seconds: float | str | None = 'auto'
    keep_checkpoints: int = 1
    keep_best: str | None = None
    keep_every: int | None = None
    sharded_checkpoints: bool | str = 'auto'
    evaluate_every: int = 1
    log_every: int = 10
    progress: Progress | None = None

    def __post_init__(self) -> None:
        for name in ('lr', 'clip', 'checkpoint_seconds'):
            value = getattr(self, name)
            if (name, value) == ('checkpoint_seconds', 'auto'):
                continue
            if value is not None and (not isinstance(value, int | float) or not value > 0):
                raise ConfigError(f'Trainer({name}={value!r}): a positive number is meant.')
        for name in COUNTS:
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ConfigError(f'Trainer({name}={value!r}): a whole number from 1 on is meant.')
        for name in ('weight_decay', 'warmup', 'skip_nonfinite'):
            if getattr(self, name) < 0:
                raise ConfigError(f'Trainer({name}={getattr(self, name)}): not below 0.')
        if self.sharded_checkpoints not in (True, False, 'auto'):
            raise ConfigError(f"Trainer(sharded_checkpoints={self.sharded_checkpoints!r}): True, False or 'auto'.")
        check_precision(self.precision)
        check_balancing(self.balancing)
        check_parallel(self)
        if self.schedule not in SCHEDULES:
            raise ConfigError(
                f'Trainer(schedule={self.schedule!r}): one of {", ".join(map(repr, SCHEDULES))} is meant.'
            )
        for name, most in (('layer_decay', 1.0), ('ema', math.nextafter(1.0, 0.0))):
            value = getattr(self, name)
            if value is not None and not 0 < value <= most:
                raise ConfigError(f'Trainer({name}={value}): above 0, and {"below" if most < 1 else "at most"} 1.')
        if self.scheduler is not None and (self.schedule != 'constant' or self.warmup):
            raise ConfigError('Trainer(scheduler=...) sets the learning rate alone: leave out schedule and warmup.')
        for epoch, layers in (self.unfreeze or {}).items():
            if not isinstance(epoch, int) or epoch < 0:
                raise ConfigError(f'Trainer(unfreeze={{{epoch!r}: ...}}): an epoch is a whole number from 0 on.')
            check_freeze(layers)
        object.__setattr__(self, '_made_at', _caller())
        wrong = [each for each in self.callbacks if not isinstance(each, Callback)]
        if wrong:
            raise ConfigError(f'Trainer(callbacks=[{wrong[0]!r}]): derive it from mmpipe.train.Callback.')

    def fit(
        self,
        factory: Callable[..., nn.Module] | nn.Module,
        train: DataLoader,
        val: DataLoader | None = None,
        *,
        args: Mapping[str, Any] | None = None,
        tasks: list[Task] | None = None,
        resume: str | os.PathLike[str] | Run | None = None,
        continue_from: str | os.PathLike[str] | Run | None = None,
        weights: Mapping[str, torch.Tensor] | None = None,
        name: str | None = None,
        allow_unseen: bool = False,
    ) -> Run:
        """Train a model and record how.

        Args:
            factory: makes the model; at the top level of a module or script, the run can be rebuilt. It is called under
                `torch.device` of the loaders, so that its parameters are created there; it may ignore that. An
                `nn.Module` itself trains too, in place, and its run says that it cannot be rebuilt.
            train: batches to train on. It is read from epoch 0 and not moved.
            val: batches to evaluate on.
            args: keyword arguments of the factory; JSON.
            tasks: for a model that has none of its own.
            resume: a run that was killed or stopped, or 'auto' for the newest one of this name, these settings and this
                parent that ended before its time (a new one if there is none). Settings and rows must be as
                they were, and the rows of a step; then every weight comes out as if nothing had happened, bit for bit
                on as many ranks and to rounding on others. A larger `epochs` trains
                a finished run on.
            continue_from: a run whose weights and fitted buffers to start from, on whatever rows `train` has now; a
                task it did not have gets a new head, and classes that were appended to a task since get new rows in
                theirs. The optimizer starts fresh: its moments are averages over
                the old rows, they would tie the new run to more of the old one than its weights, and its
                parameters need not be the same. `warmup` softens the start.
            weights: values to start from that are at hand, such as those of a federation: by names of the model's
                `state_dict`, some of them or all. The rest is as the factory made it.
            name: of the run; the last part of the snapshot's root when None.
            allow_unseen: train although a class has validation rows and no training row; its rows count as wrong.

        Returns:
            The run, finished.

        Raises:
            ConfigError: arguments that exclude each other, or loaders that do not fit.
            DataError, LabelError: fields or labels that do not fit their encoders and tasks, or a class that only
                validation rows have (unless `allow_unseen`); before any training.
            TrainError: nothing to train, or a loss that is no longer finite.
            RunError: nothing to resume or continue from, or another process trains the run.
            KeyboardInterrupt: Ctrl-C; the first after the running step, with a checkpoint, the second at once.

        Warns:
            InputWarning: images are normalised otherwise than the weights of their encoder want.
            UnseenClassWarning: a class that only validation rows have, where that is allowed; or one of several labels.

        >>> import tempfile
        >>> import mmpipe as mm
        >>> from mmpipe.data.collate import example_rows
        >>> loader = mm.DataLoader(example_rows(), batch_size=2, device='cpu')
        >>> model = mm.MultitaskModel(
        ...     encoders={'price': mm.encoders.vector(1, 4)}, tasks=[mm.classification('kind', ['cat', 'dog'])]
        ... )
        >>> run = Trainer(runs=tempfile.mkdtemp()).fit(model, loader, name='shop')
        >>> run.id, run.status
        ('shop/0001', 'finished')
        """
        if resume not in (None, 'auto') and continue_from is not None:
            raise ConfigError(
                'resume=<run> goes on with that run, continue_from= starts a new one: pass one of them (or '
                "resume='auto' with continue_from=, in a script that may be started again)."
            )
        check_loaders(train, val, device=self.device)
        if isinstance(factory, Run):
            raise ConfigError(
                f'fit needs what makes a model, not {factory!r}: pass a factory with continue_from=run to train on, '
                f'or mm.transfer(run, tasks=[...]) for new tasks.'
            )
        with laid_out(self.parallel, train.device) as mesh:
            record, reason = describe_factory(factory, args)
            name = name or Path(place_of(train.rows.snapshot.root)).name
            parent = parent_of(factory, continue_from)
            with borrowed_generators(train.device):
                seed_generators(train.device, self.seed)
                model = built(factory, args, device=train.device)
                wanted = tasks_of(model, tasks)
                if mesh is not None:
                    check_spread(self, model, wanted, train)
                fields = check_fields(model, wanted, train, val)
                if val is not None and resume in (None, 'auto'):  # else they were compared when it began
                    known = known_classes(None if isinstance(factory, TransferFactory) else parent)
                    check_classes(wanted, train.rows, val.rows, known=known, allow=allow_unseen)
                description = self._description(record, wanted, train)
                run = self._run_to_resume(resume, name, description, parent)
                model.to(train.device)
                lineage = run.parent if run is not None else lineage_of(parent, record, train.rows, wanted)
                if run is None or run.newest_checkpoint() is None:
                    if lineage is not None and lineage['kind'] == 'continue':
                        carry_weights(model, open_run(lineage['path']), lineage['new_tasks'])
                    if weights is not None:
                        put_weights(model, {**model.state_dict(), **weights}, source='weights=')
                    if hasattr(model, 'fit_buffers'):
                        model.fit_buffers(train.seen)  # type: ignore[operator]
                if self.channels_last:
                    model.to(memory_format=torch.channels_last)
                if self.recompute:
                    forget_blocks(model, self.recompute)
                if self.compile:
                    compile_parts(model, mode=None if self.compile is True else str(self.compile))
                if run is None:
                    inputs = getattr(model, 'inputs', None)
                    run = self._start(name, description, reason, train, val, lineage, inputs=inputs)
                with training(run) if is_first() else nullcontext():
                    _keep_rows(run, 'train', train.rows)
                    if val is not None:
                        _keep_rows(run, 'val', val.rows)
                    train = train.fresh(fields=fields)
                    val = val.fresh(fields=fields) if val is not None else None
                    return Loop(self, run, model, wanted, train, val, mesh).train()

    def settings(self) -> dict[str, Any]:
        """The configuration as JSON, without what is about this machine or process.

        >>> Trainer(epochs=3).settings()['epochs']
        3
        """
        settings = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        settings = {key: value for key, value in settings.items() if key not in OUTSIDE}
        return {
            **settings,
            'balancing': name_of(self.balancing),
            'optimizer': name_of_factory(self.optimizer),
            'scheduler': name_of_factory(self.scheduler),
            'unfreeze': None
            if self.unfreeze is None
            else {str(key): self.unfreeze[key] for key in sorted(self.unfreeze)},
        }

    def sources(self) -> dict[str, str]:
        """{setting: where its value comes from}: 'default', or file and line where this configuration was made.

        >>> Trainer(epochs=3).sources()['lr']
        'default'
        """
        given = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            same = value is field.default or (type(value) is type(field.default) and value == field.default)
            if field.name not in OUTSIDE:
                given[field.name] = 'default' if same else self._made_at  # type: ignore[attr-defined]
        return given

    def _run_to_resume(
        self,
        resume: str | os.PathLike[str] | Run | None,
        name: str,
        description: dict[str, Any],
        parent: Run | None,
    ) -> Run | None:
        if resume is None:
            return None
        if resume != 'auto':
            run = open_run(resume, runs=self.runs)
            check_resumed(run, description, parent=parent)
            return run
        # Rank 0 decides: the others could find that a process trains the run by then, which is rank 0.
        found = unfinished_run(name, description, parent=parent, runs=self.runs) if is_first() else None
        path = from_rank_0('' if found is None else str(found.path))
        return open_run(path) if path else None

    def _description(
        self, factory: dict[str, Any] | None, tasks: tuple[Task, ...], train: DataLoader
    ) -> dict[str, Any]:
        """The part of a run record that must be the same when the run is resumed."""
        snapshot = train.rows.snapshot
        return {
            'factory': factory,
            'tasks': [task.to_json() for task in tasks],
            'snapshot': _recorded(snapshot),
            'rows': {'train': len(train.rows), 'digest': train.digest},
            'loader': {
                'batch_size': train.batches.global_batch or None,
                'seed': train.batches.seed,
                'sampling': train.batches.sampling.identity(),
                'drop_last': train.batches.drop_last,
                # Batches that a sampling cuts to measure are cut for so many ranks.
                'world_size': None if train.batches.global_batch else world()[1],
            },
            'trainer': self.settings(),
        }

    def _start(
        self,
        name: str,
        description: dict[str, Any],
        reason: str | None,
        train: DataLoader,
        val: DataLoader | None,
        lineage: dict[str, Any] | None,
        *,
        inputs: list[str] | None,
    ) -> Run:
        if not is_first():
            return open_run(from_rank_0(''))
        going_on = how_to_go_on(self, {'train': train, 'val': val})
        cannot = {'rebuild': reason, 'resume': going_on.pop('reason')}
        run = create_run(
            name,
            {
                **description,
                **going_on,
                'fields': stored_fields(train.rows),
                'model_inputs': inputs,
                'sources': self.sources(),
                'git': git_state(code_folder(description['factory'])),
                'machine': machine(device_name(train.device)),
                'parallel': dataclasses.asdict(self.parallel),
                'val_rows': len(val.rows) if val is not None else 0,
                'val_split': _split_of(val.rows) if val is not None else None,
                'cannot': {what: why for what, why in cannot.items() if why is not None},
                'parent': lineage,
                'metrics': {},
            },
            runs=self.runs,
        )
        from_rank_0(str(run.path))
        return run


def _keep_rows(run: Run, what: str, rows: Rows) -> None:
    """Store which rows a run is trained or measured on; also of a run that was killed before it came to that."""
    file = run.path / f'{what}_rows.npy'
    if is_first() and not file.is_file():
        content = io.BytesIO()
        np.save(content, np.sort(rows.hashes), allow_pickle=False)
        write_bytes(file, content.getbuffer())


def _caller() -> str:
    """Who makes a configuration: 'file:line' of the first frame that is neither ours nor the standard library's."""
    frame: Any = sys._getframe(1)
    inside = (__file__, dataclasses.__file__, '<string>')
    while frame.f_back is not None and frame.f_code.co_filename in inside:
        frame = frame.f_back
    file = Path(frame.f_code.co_filename)
    with contextlib.suppress(ValueError):
        file = file.relative_to(Path.cwd())
    return f'{file}:{frame.f_lineno}'


def _split_of(rows: Rows) -> str:
    """The split that all of some rows are of, to tell what metrics are about; 'val' where it is not one."""
    found = set(rows.system('_split'))
    return (found.pop() if len(found) == 1 else None) or 'val'


def _recorded(snapshot: Any) -> dict[str, Any]:
    """How a run names what it was trained on; of a mixture, each snapshot too, so that none is collected."""
    parts = getattr(snapshot, 'parts', None)
    if parts is None:
        return {'id': snapshot.id, 'root': place_of(snapshot.root), 'versions': snapshot.versions}
    return {'id': snapshot.id, 'root': snapshot.root, 'parts': {name: _recorded(part) for name, part in parts.items()}}
