"""Several modalities in, several tasks out.

batch['photo']  ──► encoder ──┐
batch['title']  ──► encoder ──┼──► fusion ──┬──► head ──► output['category']
(missing)       ──► learned ──┘             └──► head ──► output['price']
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from mmpipe.data.seen import SeenRows, present_chunks
from mmpipe.errors import ConfigError, DataError, ModelError
from mmpipe.models.contract import InputSpec, input_spec, layers_of
from mmpipe.models.fusion import make_fusion
from mmpipe.models.heads import RegressionHead, make_head
from mmpipe.models.lora import PART
from mmpipe.shards import Rows

if TYPE_CHECKING:
    from mmpipe.train.tasks import Task

FREEZE = ('encoders', 'trunk')
FIT_ROWS = 4096  # that are in memory together where an encoder or head fits its buffers


class MultitaskModel(nn.Module):
    """An encoder per modality, a fusion, a head per task.

    Where a row lacks a modality, the encoder does not see that row at all, so zeros never reach its statistics. A
    learned vector takes the place of its features, unless the fusion is told what is missing, as that by attention is.

    Args:
        encoders: {field: module with `out_features`}; see `mmpipe.models.encoders`.
        tasks: what to learn; their names must differ.
        fusion: 'concat', 'mean', 'attention', or a module from a list of features to `[B, out_features]`; see
            `mmpipe.models.fusion`.
        hidden: size of the fused features.
        dropout: probability in [0, 1), after the fusion.
        modality_dropout: probability in [0, 1) that, in training, a modality that is there is treated as missing,
            per row and modality; one modality always stays. It teaches the model to do without.

    Attributes:
        inputs: names of the fields it reads, sorted.
        tasks: as given.
        frozen: names of the modules and parameters that `freeze` stopped.
        cached: fields whose values in a batch are features already (`mm.embed`), so that no encoder runs for them.

    Raises:
        ConfigError: no encoders, no tasks, two tasks of one name, or a probability outside [0, 1).
        ModelError: an encoder without `out_features`.

    >>> from mmpipe.models import encoders
    >>> from mmpipe.train import classification
    >>> model = MultitaskModel(encoders={'title': encoders.vector(8, 16)}, tasks=[classification('kind', 3)])
    >>> batch = {'title': torch.zeros(2, 8), '_mask': {'title': torch.tensor([True, False])}}
    >>> model(batch)['kind'].shape
    torch.Size([2, 3])
    """

    def __init__(
        self,
        *,
        encoders: Mapping[str, nn.Module],
        tasks: Sequence[Task],
        fusion: str | nn.Module = 'concat',
        hidden: int = 256,
        dropout: float = 0.2,
        modality_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if not encoders or not tasks:
            raise ConfigError(
                "MultitaskModel needs at least one encoder and one task: encoders={'photo': mm.encoders.image()}, "
                "tasks=[mm.classification('kind', ['cat', 'dog'])]."
            )
        names = [task.name for task in tasks]
        if len(set(names)) < len(names):
            raise ConfigError(f'Two tasks are called {max(names, key=names.count)!r}: give one of them another name=.')
        for what, value in (('dropout', dropout), ('modality_dropout', modality_dropout)):
            if not 0 <= value < 1:
                raise ConfigError(f'MultitaskModel({what}={value}): a probability in [0, 1) is meant.')
        for field, encoder in encoders.items():
            if not isinstance(getattr(encoder, 'out_features', None), int):
                raise ModelError(
                    f'The encoder of {field!r} ({type(encoder).__name__}) has no out_features: set it to the size of '
                    f'what its forward returns per row.'
                )
        self.tasks = tuple(tasks)
        self.modality_dropout = modality_dropout
        self.every_encoder = False  # use every parameter in every pass, whichever rows have which field
        # In the order of names, so that two factories that differ in the order of a dict build the same model.
        self.inputs = sorted(encoders)
        self.encoders = nn.ModuleDict({slot(field): encoders[field] for field in self.inputs})
        sizes = [int(encoder.out_features) for encoder in self.encoders.values()]  # type: ignore[arg-type]
        self.missing = nn.ParameterDict(
            {name: nn.Parameter(torch.zeros(size)) for name, size in zip(self.encoders, sizes, strict=True)}
        )
        self.fusion = (
            fusion if isinstance(fusion, nn.Module) else make_fusion(fusion, sizes, hidden=hidden, dropout=dropout)
        )
        width = int(self.fusion.out_features)  # type: ignore[arg-type]
        self.heads = nn.ModuleDict({slot(task.name): make_head(task, width) for task in tasks})
        self.frozen: tuple[str, ...] = ()
        self.cached: tuple[str, ...] = ()

    def fit_buffers(self, rows: Rows | SeenRows) -> None:
        """Let every encoder and head that has not been fitted yet fit its buffers on the training rows.

        Args:
            rows: as they are stored; or `DataLoader.seen`, where a loader decodes or transforms them.

        Raises:
            DataError: a field that cannot be fitted on; the message names it.
        """
        parts = [(field, self.encoders[slot(field)]) for field in self.inputs if field not in self.cached]
        parts += [(task.field, self.heads[slot(task.name)]) for task in self.tasks]
        for field, part in parts:
            if hasattr(part, 'fit_buffers'):
                try:
                    size = int(getattr(part, 'fit_rows', FIT_ROWS))
                    part.fit_buffers(present_chunks(rows, field, size=size))  # type: ignore[operator]
                except (DataError, ModelError) as error:
                    raise type(error)(
                        f'Field {field!r} of snapshot {rows.snapshot.id} does not fit {type(part).__name__}: {error}.'
                    ) from error

    def input_specs(self) -> dict[str, InputSpec]:
        """What each encoder takes that says so, by field; the trainer checks it before the first step."""
        found = {field: input_spec(self.encoders[slot(field)]) for field in self.inputs}
        return {field: spec for field, spec in found.items() if spec is not None}

    def target_std(self) -> dict[str, torch.Tensor]:
        """{regression task: standard deviation of its target on the training rows}, to scale its loss by."""
        heads = {task.name: self.heads[slot(task.name)] for task in self.tasks}
        return {name: head.standardize.std for name, head in heads.items() if isinstance(head, RegressionHead)}

    def forward(self, batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """Outputs per task: logits `[B, classes]`, or numbers `[B]` in the unit of the target.

        Args:
            batch: as a loader gives it; `_mask` (and `_present`, if there) of the input fields are used.

        Raises:
            DataError: an input field is not in the batch.
        """
        fused = self.fused(batch)
        return {task.name: self.heads[slot(task.name)](fused) for task in self.tasks}

    def fused(self, batch: Mapping[str, Any]) -> torch.Tensor:
        """What all modalities of a row are together, before the heads: `[B, fusion.out_features]`.

        Args:
            batch: as for `forward`.
        """
        features = []
        takes_mask = getattr(self.fusion, 'takes_mask', False)
        kept = self._kept(batch) if self.training and self.modality_dropout else None
        for position, field in enumerate(self.inputs):
            value = self._features(field, batch)
            if kept is not None and not takes_mask:
                value = torch.where(kept[:, position, None], value, self.missing[slot(field)].to(value.dtype))
            features.append(value)
        if takes_mask:
            there = self._there(batch)
            return self.fusion(features, there if kept is None else there & kept)
        return self.fusion(features)

    def features(self, batch: Mapping[str, Any]) -> dict[str, tuple[np.ndarray, torch.Tensor]]:
        """What the encoders make of a batch: {field: (positions of the rows that have it, features of these)}.

        Args:
            batch: as for `forward`.

        Returns:
            Positions int64 `[n]` on the host, and features `[n, out_features]`.
        """
        found = {}
        for field in self.inputs:
            values = self._features(field, batch)
            positions = _positions(field, batch, len(values))
            found[field] = (positions, values[torch.from_numpy(positions).to(values.device)])
        return found

    def _features(self, field: str, batch: Mapping[str, Any]) -> torch.Tensor:
        if field not in batch:
            raise DataError(
                f'The model reads field {field!r}, which is not in the batch ({", ".join(map(str, batch))}). '
                f'Load it: leave out fields=, or add it to the snapshot.'
            )
        missing = self.missing[slot(field)]
        count = len(batch[field])
        arguments, present = self.arguments(field, batch)
        encoder = nn.Identity() if field in self.cached else self.encoders[slot(field)]
        if present is not None and len(present) == 0 and not self.every_encoder:
            return missing.expand(count, -1)
        with settled_norms(encoder, len(arguments[0])):
            found = encoder(*arguments)
        if present is None:
            return found + missing.to(found.dtype) * 0.0 if self.every_encoder else found
        if len(present) == 0:
            return missing.to(found.dtype).expand(count, -1) + found * 0.0
        return missing.to(found.dtype).expand(count, -1).index_put((present,), found)

    def arguments(self, field: str, batch: Mapping[str, Any]) -> tuple[list[torch.Tensor], torch.Tensor | None]:
        """What the encoder of a field is called with.

        Args:
            field: of the model's inputs.
            batch: as for `forward`.

        Returns:
            Its values, and lengths for an encoder that takes them, of those rows that have the field (of the first row
            where none has); and the positions of these, int64, None where they are all rows.
        """
        values = batch[field]
        count = len(values)
        present = batch['_present'][field] if '_present' in batch else None
        if present is None and field in batch.get('_mask', {}):
            present = batch['_mask'][field].nonzero().flatten()
        if present is not None and len(present) == count:
            present = None
        arguments = [values]
        if field not in self.cached and getattr(self.encoders[slot(field)], 'takes_lengths', False):
            lengths = batch.get('_length', {}).get(field)
            full = values.new_full((count,), values.shape[1], dtype=torch.int64) if lengths is None else lengths
            arguments.append(full)
        if present is None:
            return arguments, None
        return [argument[present] if len(present) else argument[:1] for argument in arguments], present

    def optional(self) -> list[tuple[str, bool, list[nn.Parameter]]]:
        """Parameters that no step uses in which no row has a field, or in which every row has it.

        Where `every_encoder` is set they get gradients of zero all the same, which an optimizer with moments takes for
        something else than none.

        Returns:
            (field, whether rows with it or rows without it use them, the parameters).
        """
        found: list[tuple[str, bool, list[nn.Parameter]]] = []
        for field in self.inputs:
            found.append((field, True, list(self.encoders[slot(field)].parameters())))
            # Modality dropout puts it in place of anything, but for a fusion that is told what there is.
            if not self.modality_dropout or getattr(self.fusion, 'takes_mask', False):
                found.append((field, False, [self.missing[slot(field)]]))
        return found

    def _there(self, batch: Mapping[str, Any]) -> torch.Tensor:
        """bool [B, modalities]: which row has which."""
        masks, first = batch.get('_mask', {}), batch[self.inputs[0]]
        every = torch.ones(len(first), dtype=torch.bool, device=first.device)
        return torch.stack([masks.get(field, every) for field in self.inputs], dim=1)

    def _kept(self, batch: Mapping[str, Any]) -> torch.Tensor:
        """bool [B, modalities]: False where modality dropout strikes, never for all that a row has."""
        there = self._there(batch)
        chance = torch.rand(there.shape, device=there.device)
        kept = chance >= self.modality_dropout
        luckiest = torch.where(there, chance, -1.0).argmax(1)
        return kept.scatter(1, luckiest[:, None], True)

    def freeze(self, what: str | int | None) -> None:
        """Stop training a part: its parameters get no gradient, and its modules stay in eval mode.

        Args:
            what: 'encoders' (with the vectors for missing modalities), 'trunk' (encoders and fusion: only heads
                train); adapters in them train all the same; a number, for all layers of each encoder but so many of the
                last ones; or None for nothing.

        Raises:
            ConfigError: another word, or a number below 0.
        """
        self.frozen = self._parts(what)
        for name, parameter in self.named_parameters():
            inside = any(name == part or name.startswith(f'{part}.') for part in self.frozen)
            parameter.requires_grad_(not inside or PART in name)  # adapters are there to be trained
        self.train(self.training)

    def _parts(self, what: str | int | None) -> tuple[str, ...]:
        """Names of the modules (and of parameters that lie in no layer) to freeze."""
        check_freeze(what)
        if not isinstance(what, int):
            return {None: (), 'encoders': ('encoders', 'missing'), 'trunk': ('encoders', 'missing', 'fusion')}[what]
        names = {id(part): name for name, part in self.named_modules()}
        found: list[str] = []
        for name, encoder in self.encoders.items():
            layers = layers_of(encoder)
            trained = layers[len(layers) - min(what, len(layers)) :]
            if len(trained) == len(layers):
                continue
            inside = {id(part) for layer in layers for part in layer.modules()}
            free = {id(part) for layer in trained for part in layer.modules()}
            # What is no layer, such as a norm without parameters or a class token, is before the first trained one.
            leaves = [part for part in encoder.modules() if id(part) not in inside and not list(part.children())]
            found += [names[id(part)] for part in [*layers, *leaves] if id(part) not in free]
            own = {id(p) for layer in layers for p in layer.parameters()}
            found += [f'encoders.{name}.{key}' for key, p in encoder.named_parameters() if id(p) not in own]
        return tuple(found)

    def train(self, mode: bool = True) -> MultitaskModel:
        """As `nn.Module.train`, but frozen parts stay in eval mode: no dropout, and BatchNorm keeps its statistics."""
        super().train(mode)
        modules = dict(self.named_modules())
        for name in self.frozen:
            if name in modules:
                modules[name].train(False)
        for name, part in modules.items():
            if PART in name:
                part.train(mode)
        return self


def _positions(field: str, batch: Mapping[str, Any], count: int) -> np.ndarray:
    if '_present' in batch:
        return np.asarray(batch['_present'][field], dtype=np.int64)
    mask = batch.get('_mask', {}).get(field)
    return np.arange(count) if mask is None else np.flatnonzero(mask.cpu().numpy())


def check_freeze(what: Any) -> None:
    """Refuse what `MultitaskModel.freeze` does not take.

    Raises:
        ConfigError: another word, or a number below 0.

    >>> check_freeze('trunk'); check_freeze(2)
    """
    number = isinstance(what, int) and not isinstance(what, bool) and what >= 0
    if not (number or what is None or what in FREEZE):
        raise ConfigError(
            f'freeze={what!r} is none of {", ".join(map(repr, FREEZE))}, a number of layers to train, and None.'
        )


def slot(name: str) -> str:
    """The name under which a field or task has its module: itself, unless torch's containers use that name.

    >>> slot('photo'), slot('type'), slot('values')
    ('photo', 'type_', 'values_')
    """
    return name + '_' if hasattr(nn.ModuleDict, name) or hasattr(nn.ParameterDict, name) else name


@contextmanager
def settled_norms(encoder: nn.Module, rows: int) -> Iterator[None]:
    """Let BatchNorm use its running statistics where there is one row, which it cannot normalise by itself.

    >>> with settled_norms(nn.BatchNorm1d(2), 1):
    ...     pass
    """
    # A last batch of one row, or one row that has this modality, is normal here.
    norms = _batch_norms(encoder) if encoder.training and rows == 1 else []
    for norm in norms:
        norm.eval()
    try:
        yield
    finally:
        for norm in norms:
            norm.train()


def _batch_norms(module: nn.Module) -> list[nn.Module]:
    found: Iterable[nn.Module] = module.modules()
    return [norm for norm in found if isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.training]
