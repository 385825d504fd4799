"""A model in stages over processes: layers of its largest encoder in rows, and micro-batches that pass through them.

    stage 0     first layers of the encoder  ──activations──►  stage 1 ... ──►  last layers, the other encoders,
                                             ◄──gradients───                    fusion, heads, losses

Schedules and transport are those of `torch.distributed.pipelining`. The micro-batches are those of an accumulated step,
so what is computed is what one process computes with the same `accumulate`. All stages load the same rows, and each
knows from its own batch how many rows of an activation count: the rest of the first axis is padding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import distributed, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe

from mmpipe.data.ranks import data_group, world
from mmpipe.errors import ConfigError, DataError, TrainError
from mmpipe.models.cut import Piece, can_be_cut, pieces_of
from mmpipe.models.multitask import MultitaskModel, settled_norms, slot
from mmpipe.models.spread import Held
from mmpipe.train.distributed import DTYPES, MAX_DIMENSIONS, same_on_all, sum_gradients
from mmpipe.train.precision import autocast
from mmpipe.train.strategy import Batch, Outputs, OverRanks, Pass

SCHEDULES_KEPT = 8
Edge = tuple[tuple[int, ...], torch.dtype]
"""What one row of an activation between two stages is: shape and dtype."""


class Pipelined(OverRanks):
    """See `mmpipe.train.strategy.Strategy`.

    Args:
        mesh: of `mmpipe.train.parallel.DIMENSIONS`.
        device: of the training.
        precision: of the training.
    """

    def __init__(self, mesh: Any, *, device: torch.device, precision: str = 'fp32') -> None:
        self.group, self.device, self.precision = mesh['pp'].get_group(), device, precision
        self.stage, self.stages = mesh['pp'].get_local_rank(), mesh['pp'].size()
        self.is_first, self.is_last = self.stage == 0, self.stage == self.stages - 1
        self._edges: dict[tuple[Any, ...], list[Edge]] = {}
        self._schedules: dict[tuple[Any, ...], Any] = {}
        self._own: set[nn.Parameter] = set()
        # Of the step that is going on: micro-batches, the next of them, what to do with outputs, and what that gave.
        self._micro: list[Batch] = []
        self._at = 0
        self._one: Pass | None = None
        self._taken: list[torch.Tensor] = []

    def prepare(self, model: nn.Module) -> None:
        """See `Strategy.prepare`: weights of other stages are let go of.

        Raises:
            ConfigError: as `places_of`.
            TrainError: no weight was let go of.
        """
        same_on_all(model, parameters=True)
        places = places_of(model, self.stages)
        self.model, self.field, pieces = cut_of(model, self.stages)
        self.encoder = self.model.encoders[slot(self.field)]
        self.call = pieces[self.stage].call
        self.model.every_encoder = True  # else no gradient would come back where no row has the field
        names = [name for name, place in places.items() if place == self.stage]
        _let_go(self.model, [name for name, place in places.items() if place != self.stage])
        if self.is_last:
            self.encoder.forward = self._received  # called inside of the model
        model.held = Held(frozenset(names), self.group, world()[0])  # type: ignore[assignment]
        self._own = {parameter for parameter in model.parameters() if not parameter.is_meta}
        if len(self._own) == sum(1 for _ in model.parameters()):
            raise TrainError(f'Every weight is still here, though pp={self.stages} was asked for.')

    def callable(self, model: nn.Module) -> nn.Module:
        """See `Strategy.callable`."""
        return model

    @property
    def draws(self) -> int:
        """See `Strategy.draws`: stages draw other numbers than each other."""
        rank, ranks = world()
        return rank + self.stage * ranks

    def passes(self, micro: list[dict[str, Any]], one: Pass, *, even: bool) -> torch.Tensor | None:
        """See `Strategy.passes`: one forward, one backward (Narayanan et al. 2019, "PipeDream", section 3.2)."""
        batches = [one.laid(batch) for batch in micro if len(batch['_key'])]
        micro.clear()
        if not batches or not one.learns:
            return None
        schedule = self._schedule(batches)
        self._micro, self._at, self._one, self._taken = batches, 0, one, []
        numbers = torch.arange(len(batches), device=self.device)
        try:
            if self.is_last:
                schedule.step(target=numbers)
            else:
                schedule.step(*([numbers] if self.is_first else []))
        finally:
            self._micro, self._one = [], None
        return torch.stack(self._taken).sum(0) if self._taken else None

    def called(self, model: nn.Module) -> Any:
        """See `Strategy.called`."""
        return self._outputs

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """See `Strategy.total`; stages that see no losses bring zeros."""
        distributed.all_reduce(values)
        return values

    def reduce(self, parameters: Sequence[nn.Parameter], *, even: bool) -> None:
        """See `Strategy.reduce`."""
        beside = [parameter for parameter in parameters if parameter not in self._own]  # such as a balancing
        sum_gradients(beside, group=self.group)
        sum_gradients(parameters)

    def clip(self, parameters: Sequence[nn.Parameter], norm: float) -> torch.Tensor:
        """See `Strategy.clip`."""
        counted = [p.grad for p in parameters if p.grad is not None and (p in self._own or self.is_last)]
        squared = nn.utils.get_total_norm(counted).square() if counted else torch.zeros((), device=self.device)
        distributed.all_reduce(squared, group=self.group)
        total = squared.sqrt()
        nn.utils.clip_grads_with_norm_(parameters, norm, total)
        return total

    def settle(self, model: nn.Module) -> None:
        """See `Strategy.settle`: each stage with the same stage of other copies."""
        if world()[1] > 1:
            for buffer in model.buffers():
                distributed.broadcast(buffer, group_src=0, group=data_group())

    def _outputs(self, batch: Batch) -> Outputs:
        """All outputs, on all stages."""
        arguments, _ = self.model.arguments(self.field, batch)
        edges, rows = self._edges_of(batch), len(arguments[0])
        given = None
        if not self.is_first:
            shape, dtype = edges[self.stage - 1]
            given = torch.empty((rows, *shape), dtype=dtype, device=self.device)
            distributed.recv(given, group_src=self.stage - 1, group=self.group)
        count = len(batch['_key'])
        if self.is_last:
            self._activation = given
            found = {name: value.float().contiguous() for name, value in self.model(batch).items()}
        else:
            passed = self._through(arguments, given)
            distributed.send(passed.contiguous(), group_dst=self.stage + 1, group=self.group)
            found = {task.name: torch.empty(count, *task.output_shape, device=self.device) for task in self.model.tasks}
        for task in self.model.tasks:
            distributed.broadcast(found[task.name], group_src=self.stages - 1, group=self.group)
        return found

    def _through(self, arguments: Sequence[torch.Tensor], given: torch.Tensor | None) -> torch.Tensor:
        """The layers of this stage."""
        first = arguments[0] if given is None else given
        with autocast(self.precision, self.device), settled_norms(self.encoder, len(first)):
            return self.call(first, *arguments[1:])

    def _received(self, *arguments: torch.Tensor) -> torch.Tensor:
        """In place of the encoder on the last stage: its last layers, on what came from those before."""
        assert self._activation is not None
        return self.call(self._activation[: len(arguments[0])], *arguments[1:])

    def _step(self, given: torch.Tensor) -> torch.Tensor:
        """What the schedule calls with each micro-batch in turn."""
        batch = self._micro[self._at]
        self._at += 1
        if self.is_last:
            assert self._one is not None
            self._activation = given
            with autocast(self.precision, self.device):
                output = self.model(batch)
            total, taken = self._one.loss(output, batch)
            self._activation = None
            self._taken.append(taken)
            return total.reshape(1)
        arguments, _ = self.model.arguments(self.field, batch)
        rows = len(arguments[0])
        passed = self._through(arguments, None if self.is_first else given[:rows])
        missing = max(len(batch['_key']) for batch in self._micro) - rows
        return torch.cat([passed, passed.new_zeros(missing, *passed.shape[1:])]) if missing else passed

    def _schedule(self, batches: Sequence[Batch]) -> Any:
        """For so many micro-batches of such a size; kept, as a step is like the one before it."""
        rows, shapes = max(len(batch['_key']) for batch in batches), {_shape_of(b, self.field) for b in batches}
        if len(shapes) > 1:
            raise DataError(
                f'Field {self.field!r} has rows of several shapes in one step ({", ".join(map(str, shapes))}), and '
                f'Parallel(pp={self.stages}) passes arrays of one shape: crop or pad them to one.'
            )
        key = (len(batches), rows, *shapes)
        if key not in self._schedules:
            edges = [
                torch.empty((rows, *shape), dtype=dtype, device='meta').requires_grad_()
                for shape, dtype in self._edges_of(batches[0])
            ]
            number, loss = torch.empty(1, dtype=torch.int64, device='meta'), torch.empty(1, device='meta')
            stage = PipelineStage(
                _Called(self._step),
                self.stage,
                self.stages,
                self.device,
                input_args=(number if self.is_first else edges[self.stage - 1],),
                output_args=(loss.requires_grad_() if self.is_last else edges[self.stage],),
                group=self.group,
            )
            # The last step of an epoch may have fewer micro-batches than there are stages; 1F1B does not take those.
            kind: Any = Schedule1F1B if len(batches) >= self.stages else ScheduleGPipe
            if len(self._schedules) == SCHEDULES_KEPT:
                self._schedules.pop(next(iter(self._schedules)))
            self._schedules[key] = kind(stage, len(batches), loss_fn=_sum, scale_grads=False)
        return self._schedules[key]

    def _edges_of(self, batch: Batch) -> list[Edge]:
        """Of each activation between stages: stages run one row in turn, once for each shape of a field."""
        key = (_shape_of(batch, self.field), batch[self.field].dtype)
        if key not in self._edges:
            arguments, _ = self.model.arguments(self.field, batch)
            found: list[Edge] = []
            training = self.model.training
            self.model.eval()
            with torch.no_grad():
                for stage in range(self.stages - 1):
                    told = torch.zeros(2 + MAX_DIMENSIONS, dtype=torch.int64, device=self.device)
                    if stage == self.stage:
                        given = None
                        if stage:
                            shape, dtype = found[-1]
                            given = torch.zeros((1, *shape), dtype=dtype, device=self.device)
                        passed = self._through([argument[:1] for argument in arguments], given)
                        mine = [DTYPES.index(passed.dtype), passed.ndim - 1, *passed.shape[1:]]
                        told[: len(mine)] = torch.tensor(mine, device=self.device)
                    distributed.broadcast(told, group_src=stage, group=self.group)
                    code, dimensions, *sizes = told.tolist()
                    found.append((tuple(sizes[:dimensions]), DTYPES[code]))
            self.model.train(training)
            self._edges[key] = found
        return self._edges[key]


class _Called(nn.Module):
    """A function as the module that a stage wants; it holds no weights, the model has them."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        return self.function(given)


def _sum(output: torch.Tensor, number: torch.Tensor) -> torch.Tensor:
    return output.sum()


def _shape_of(batch: Batch, field: str) -> tuple[int, ...]:
    return tuple(batch[field].shape[1:])


def cut_of(model: nn.Module, stages: int) -> tuple[MultitaskModel, str, list[Piece]]:
    """How a model is cut: the encoder with most weights of those that can be.

    Args:
        model: an `mm.MultitaskModel`.
        stages: how many.

    Returns:
        The model, the field of that encoder, and its pieces.

    Raises:
        ConfigError: another kind of model, no encoder that can be cut, or too few layers.

    >>> cut_of(nn.Linear(1, 1), 2)
    Traceback (most recent call last):
    ...
    mmpipe.errors.ConfigError: Parallel(pp=2) cuts an encoder of an mm.MultitaskModel, and this model is a Linear.
    """
    if not isinstance(model, MultitaskModel):
        raise ConfigError(
            f'Parallel(pp={stages}) cuts an encoder of an mm.MultitaskModel, and this model is a '
            f'{type(model).__name__}.'
        )
    encoders: Mapping[str, Any] = {field: model.encoders[slot(field)] for field in model.inputs}
    sizes = {
        field: sum(parameter.numel() for parameter in encoder.parameters())
        for field, encoder in encoders.items()
        if can_be_cut(encoder) and field not in model.cached
    }
    if not sizes:
        raise ConfigError(
            f'Parallel(pp={stages}): none of the encoders ({", ".join(sorted(encoders))}) can be cut. Give one a '
            f'method pipeline_plan(stages) (see mmpipe.models.cut), or use an nn.Sequential or a vision transformer '
            f'of mm.encoders.timm.'
        )
    field = max(sizes, key=lambda name: sizes[name])
    return model, field, pieces_of(encoders[field], stages)


def places_of(model: nn.Module, stages: int) -> dict[str, int]:
    """{parameter or buffer: its stage}; what is outside of the encoder that is cut is on the last one.

    Args:
        model: an `mm.MultitaskModel`.
        stages: how many.

    Raises:
        ConfigError: as `cut_of`; a stage would have nothing to train, or two of them share a weight.

    >>> from mmpipe.train import regression
    >>> encoder = nn.Sequential(nn.Linear(1, 4), nn.Linear(4, 4))
    >>> encoder.out_features = 4
    >>> places_of(MultitaskModel(encoders={'price': encoder}, tasks=[regression('price')]), 2)['encoders.price.1.bias']
    1
    """
    model, field, pieces = cut_of(model, stages)
    places = _places(model, model.encoders[slot(field)], pieces)
    trained = {places[name] for name, parameter in model.named_parameters() if parameter.requires_grad}
    idle = sorted(set(range(stages)) - trained)
    if idle:
        raise ConfigError(
            f'Stage {idle[0]} of {stages} would have nothing to train: all of its layers are frozen. Pass a smaller '
            f'Parallel(pp=...), or train more layers.'
        )
    return places


def _places(model: MultitaskModel, encoder: nn.Module, pieces: Sequence[Piece]) -> dict[str, int]:
    inside = {id(tensor) for tensor in [*encoder.parameters(), *encoder.buffers()]}
    stage_of: dict[int, int] = {}
    for stage, piece in enumerate(pieces):
        for tensor in [t for module in piece.uses for t in [*module.parameters(), *module.buffers()]]:
            if stage_of.setdefault(id(tensor), stage) != stage:
                raise ConfigError(
                    f'Layers of {type(encoder).__name__} on stages {stage_of[id(tensor)]} and {stage} share a weight, '
                    f'and each stage trains its own: untie it, or leave out Parallel(pp=...).'
                )
    # By `remove_duplicate=False` a weight that two modules share has both of its names.
    tensors = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    return {
        name: stage_of.get(id(tensor), 0) if id(tensor) in inside else len(pieces) - 1
        for name, tensor in tensors.items()
    }


def _let_go(model: nn.Module, names: Sequence[str]) -> None:
    """Leave shapes in the place of parameters, so that names stay; buffers are small, and fitted ones are asked for."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name in names:
        if name in parameters:
            path, _, last = name.rpartition('.')
            shape = torch.empty_like(parameters[name], device='meta')
            model.get_submodule(path).register_parameter(last, nn.Parameter(shape, requires_grad=False))
