"""Any `nn.Module` as a model that the trainer takes: which fields it is called with, and which tasks it answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from mmpipe.errors import ConfigError, ModelError
from mmpipe.models.contract import InputSpec, input_spec, layers_of

if TYPE_CHECKING:
    from mmpipe.train.tasks import Task


class BareModel(nn.Module):
    """Calls a module of the user's with fields of the batch, in order.

    Args:
        module: takes the fields' tensors; returns a tensor (one task) or {task name: tensor}. Missing values are
            zeros: it is not told of masks.
        inputs: names of the fields.
        tasks: what its outputs are trained for.

    Raises:
        ConfigError: no inputs, no tasks, or no module.

    >>> from mmpipe.train import classification
    >>> model = BareModel(nn.Linear(4, 3), inputs='title', tasks=[classification('kind', 3)])
    >>> model({'title': torch.zeros(2, 4)})['kind'].shape
    torch.Size([2, 3])
    """

    def __init__(self, module: nn.Module, *, inputs: str | Sequence[str], tasks: Sequence[Task]) -> None:
        super().__init__()
        if not isinstance(module, nn.Module):
            raise ConfigError(f'BareModel wraps an nn.Module, not {module!r}; that of a run is mm.load_model(run).')
        self.module = module
        self.inputs = [inputs] if isinstance(inputs, str) else list(inputs)
        self.tasks = tuple(tasks)
        if not self.inputs or not self.tasks:
            raise ConfigError(
                "BareModel needs the names of its input fields and at least one task: inputs='photo', tasks=[...]."
            )

    def layers(self) -> list[nn.Module]:
        """Those of the module; see `mmpipe.models.contract`."""
        return layers_of(self.module)

    def input_specs(self) -> dict[str, InputSpec]:
        """What the module takes, where it says so and has one input; see `mmpipe.models.contract`."""
        found = input_spec(self.module) if len(self.inputs) == 1 else None
        return {} if found is None else {self.inputs[0]: found}

    def forward(self, batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """Outputs per task.

        Raises:
            ModelError: the module returned one tensor for several tasks, or lacks one.
        """
        output = self.module(*(batch[name] for name in self.inputs))
        if isinstance(output, torch.Tensor) and len(self.tasks) == 1:
            task = self.tasks[0]
            # Linear(n, 1) gives [B, 1], a number per row is [B]: subtracting those would silently give [B, B].
            single = task.kind == 'regression' and output.ndim == 2 and output.shape[1] == 1
            return {task.name: output.squeeze(1) if single else output}
        if not isinstance(output, Mapping) or any(task.name not in output for task in self.tasks):
            raise ModelError(
                f'{type(self.module).__name__} must return a dict with the tasks '
                f'{", ".join(task.name for task in self.tasks)}, but returned {type(output).__name__}.'
            )
        return dict(output)
