"""Low-rank adapters: encoders stay as they are, and small matrices beside their layers learn (peft's LoRA)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from mmpipe.errors import ConfigError, ModelError, require

if TYPE_CHECKING:
    from mmpipe.models.multitask import MultitaskModel

PART = '.lora_'
"""In the names of what peft adds to a module."""


ADAPTED = nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d
"""Layers that peft has adapters for."""


@dataclass(frozen=True, kw_only=True)
class Lora:
    """Which layers get adapters, and how large these are.

    A layer's weight W counts as W + alpha / rank * B A from then on, with A `[rank, in]` and B `[out, rank]`, which
    starts at 0 (Hu et al. 2021, "LoRA", section 4.1).

    Args:
        rank: of the adapters; more can learn more, and costs more.
        alpha: strength of what they learn, relative to the rank.
        dropout: probability in [0, 1) that an input of an adapter is dropped in training.
        targets: 'linear' for every `nn.Linear` and every convolution of 1 x 1 of the encoders; or the ends of their
            names, such as ('qkv', 'fc1'). The layers in `nn.MultiheadAttention` get none: it reads their weights and
            never calls them, so that an adapter there would change nothing.

    Raises:
        ConfigError: numbers that cannot work.
        MissingExtraError: peft is not installed.

    >>> Lora(rank=4).targets
    'linear'
    """

    rank: int = 8
    alpha: int = 16
    dropout: float = 0.0
    targets: str | Sequence[str] = 'linear'

    def __post_init__(self) -> None:
        require('lora', 'peft', why='mm.Lora')
        if type(self.rank) is not int or self.rank < 1 or not self.alpha > 0 or not 0 <= self.dropout < 1:
            raise ConfigError(
                f'Lora(rank={self.rank}, alpha={self.alpha}, dropout={self.dropout}): a whole rank from 1, a positive '
                f'alpha, and a probability in [0, 1) are meant.'
            )
        if self.targets != 'linear' and (isinstance(self.targets, str) or not self.targets):
            raise ConfigError(f"Lora(targets={self.targets!r}): 'linear', or a list of the ends of layers' names.")

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values; `Lora(**value)` gives it back.

        >>> Lora(**Lora(rank=2).to_json()) == Lora(rank=2)
        True
        """
        targets = self.targets if isinstance(self.targets, str) else list(self.targets)
        return {**asdict(self), 'targets': targets}


def add_lora(model: MultitaskModel, lora: Lora) -> list[str]:
    """Give the encoders of a model adapters, in place. What was there keeps its values, and comes to be frozen.

    Args:
        model: with trained encoders.
        lora: which layers, and how.

    Returns:
        Names of the layers that have one now.

    Raises:
        ModelError: no encoder has such a layer.

    >>> from mmpipe.train.example import example_model
    >>> model = example_model()
    >>> add_lora(model, Lora(rank=2))
    ['encoders.price.project.0']
    """
    import peft

    found: list[str] = []
    for name, encoder in model.encoders.items():
        only_read = {id(part.out_proj) for part in encoder.modules() if isinstance(part, nn.MultiheadAttention)}
        layers = [
            inner
            for inner, part in encoder.named_modules()
            if inner and id(part) not in only_read and _takes(inner, part, lora.targets)
        ]
        if not layers:
            continue
        _call_layers(encoder)
        config = peft.LoraConfig(
            r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=layers, bias='none'
        )
        peft.inject_adapter_in_model(config, encoder)
        found += [f'encoders.{name}.{layer}' for layer in layers]
    if not found:
        raise ModelError(
            f'Lora(targets={lora.targets!r}): no encoder has such a layer. Their layers are '
            f'{", ".join(_linear_names(model)[:8]) or "of other kinds"}.'
        )
    return found


def merge_lora(model: nn.Module) -> nn.Module:
    """Add what adapters have learned to the weights beside them, and take the adapters out; in place.

    Args:
        model: with or without adapters.

    Returns:
        The model, which gives what it gave, with the parameters of one that never had adapters.

    >>> from mmpipe.train.example import example_model
    >>> model = example_model(); before = sorted(model.state_dict())
    >>> _ = add_lora(model, Lora(rank=2)); sorted(merge_lora(model).state_dict()) == before
    True
    """
    for name, part in list(model.named_modules()):
        if hasattr(part, 'get_base_layer') and hasattr(part, 'merge'):
            part.merge()
            parent = model.get_submodule(name.rpartition('.')[0])
            setattr(parent, name.rpartition('.')[2], part.get_base_layer())
    return model


def _call_layers(encoder: nn.Module) -> None:
    # A transformer layer of torch that is frozen (in eval mode, without gradients of its own) reads the weights of its
    # layers instead of calling them, in training too. These attributes say that it must not; they do nothing else.
    for part in encoder.modules():
        if isinstance(part, nn.TransformerEncoderLayer):
            part.activation_relu_or_gelu = 0
        elif isinstance(part, nn.TransformerEncoder):
            part.use_nested_tensor = False


def _takes(name: str, part: nn.Module, targets: str | Sequence[str]) -> bool:
    if targets == 'linear':
        return _is_linear(part)
    return isinstance(part, ADAPTED) and any(name == target or name.endswith(f'.{target}') for target in targets)


def _is_linear(part: nn.Module) -> bool:
    return isinstance(part, nn.Linear) or (
        isinstance(part, nn.Conv2d) and part.kernel_size == (1, 1) and part.groups == 1
    )


def _linear_names(model: MultitaskModel) -> list[str]:
    return [name for name, part in model.encoders.named_modules() if _is_linear(part)]
