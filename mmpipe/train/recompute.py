"""Activation checkpointing: blocks of a model forget what their forward pass made, and make it again to go backward.

Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost". By torch's own `checkpoint`, without reentrance.
"""

from __future__ import annotations

import functools
import gc
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from mmpipe.errors import ConfigError

FEWEST = 2  # blocks of one kind that count as repeated
# What costs most to make again: products of matrices, convolutions, attention.
EXPENSIVE = (
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten.baddbmm.default,
    torch.ops.aten.convolution.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_attention_math.default,
)
Policy = Callable[..., Any]
"""policy(context, operator, *arguments) -> a `torch.utils.checkpoint.CheckpointPolicy`."""


def recompute(
    model: nn.Module, *, every: int = 1, blocks: Sequence[str] | None = None, policy: str | Policy | None = None
) -> list[str]:
    """Let blocks of a model forget their activations, in place. Names of weights stay; losses and gradients too.

    Args:
        model: with blocks that repeat, such as a transformer's or a ResNet's; inside of other modules, too.
        every: only each so-many-th block.
        blocks: names of the modules, instead of those that repeat.
        policy: what a block keeps all the same: None for nothing, 'matmuls' for products of matrices, convolutions and
            attention, so that only what is cheap is made again; or a policy of torch's selective checkpointing.

    Returns:
        Names of the blocks.

    Raises:
        ConfigError: a name that is no module, another policy, or a model without blocks that repeat.

    >>> layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    >>> recompute(nn.TransformerEncoder(layer, 3, enable_nested_tensor=False))
    ['layers.0', 'layers.1', 'layers.2']
    """
    if every < 1 or not (policy is None or policy == 'matmuls' or callable(policy)):
        raise ConfigError(
            f"recompute(every={every}, policy={policy!r}): every is 1 or more; a policy is None, 'matmuls' or a "
            f'function.'
        )
    modules = dict(model.named_modules())
    if blocks is None:
        found = repeated_blocks(model)[every - 1 :: every]
        if not found:
            raise ConfigError(
                f'{type(model).__name__} has no blocks that repeat. Name modules of it: blocks=[...], of '
                f'{", ".join(name for name, _ in model.named_children())}.'
            )
    else:
        found = list(blocks)
        unknown = [name for name in found if name not in modules]
        if unknown:
            raise ConfigError(
                f'recompute(blocks=[{unknown[0]!r}]): {type(model).__name__} has no such module; it has '
                f'{", ".join(name for name in list(modules)[1:9])}, ...'
            )
    for name in found:
        _forget(modules[name], _keep_expensive if policy == 'matmuls' else policy)
    return found


def forget_blocks(model: nn.Module, chosen: Any) -> list[str]:
    """`recompute` as `mm.Trainer` says it.

    Args:
        model: as for `recompute`.
        chosen: True, 'matmuls', or names of modules.

    >>> forget_blocks(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), ['1'])
    ['1']
    """
    if isinstance(chosen, str) or chosen is True:
        return recompute(model, policy=None if chosen is True else chosen)
    return recompute(model, blocks=list(chosen))


def repeated_blocks(model: nn.Module) -> list[str]:
    """Names of the modules that repeat: of one class and in one list or sequence, and not inside another of them.

    Args:
        model: any.

    Returns:
        Names in the order of the model.

    >>> block = lambda: nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    >>> repeated_blocks(nn.ModuleDict({'trunk': nn.Sequential(block(), block()), 'head': nn.Linear(2, 1)}))
    ['trunk.0', 'trunk.1']
    """
    found: list[str] = []
    for name, part in model.named_modules():
        if any(name.startswith(f'{block}.') for block in found) or not isinstance(part, nn.Sequential | nn.ModuleList):
            continue
        # A block holds other modules with weights: two linear layers one after another are none.
        inner = {key: child for key, child in part.named_children() if _composed(child)}
        if any(_repeated(part) for child in inner.values() for part in child.modules()):
            continue  # its blocks lie deeper, as those of the stages of a ResNet do
        prefix = f'{name}.' if name else ''
        kinds = _repeated(part)
        found += [f'{prefix}{key}' for key, child in inner.items() if type(child) in kinds]
    return found


def _composed(module: nn.Module) -> bool:
    return bool(list(module.children())) and any(True for _ in module.parameters())


def _repeated(module: nn.Module) -> set[type]:
    """Classes of blocks that a list holds several of."""
    if not isinstance(module, nn.Sequential | nn.ModuleList):
        return set()
    counts = Counter(type(child) for child in module.children() if _composed(child))
    return {kind for kind, count in counts.items() if count >= FEWEST}


def _forget(module: nn.Module, policy: Any) -> None:
    """Give one module a forward that keeps its inputs alone; the module stays what it is, with its names."""
    forward = module.forward

    def contexts() -> tuple[Any, Any]:
        """Around the first pass, and around the second."""
        if policy is None:
            return nullcontext(), _still(module)
        first, second = create_selective_checkpoint_contexts(policy)
        return first, _within(second, module)

    @functools.wraps(forward)
    def forgetful(*args: Any, **kwargs: Any) -> Any:
        if not (torch.is_grad_enabled() and module.training and _needs_gradient(module, args)):
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, context_fn=contexts, **kwargs)

    module.forward = forgetful


@contextmanager
def _still(module: nn.Module) -> Iterator[None]:
    """Statistics of BatchNorm take account of a batch once, in the first pass."""
    norms = [part for part in module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    before = [(norm.momentum, None if (n := norm.num_batches_tracked) is None else n.clone()) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0  # the same operators, and (1 - 0) times what there is
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum = momentum
            if count is not None and norm.num_batches_tracked is not None:
                norm.num_batches_tracked.copy_(count)


@contextmanager
def _within(context: Any, module: nn.Module) -> Iterator[None]:
    with _still(module), context:  # what it does itself is no part of the block
        yield


def _needs_gradient(module: nn.Module, args: tuple[Any, ...]) -> bool:
    given = any(isinstance(each, torch.Tensor) and each.requires_grad for each in args)
    return given or any(parameter.requires_grad for parameter in module.parameters())


def _keep_expensive(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operator in EXPENSIVE else CheckpointPolicy.PREFER_RECOMPUTE


def saved_bytes(run: Callable[[], Any]) -> int:
    """Bytes that a forward pass leaves behind for the backward pass: whatever it made and is still held by somebody.

    Args:
        run: does the forward pass, and returns what keeps its graph, such as the loss.

    >>> layer, values = nn.Linear(4, 4), torch.ones(8, 4)
    >>> saved_bytes(lambda: layer(values).relu().sum())    # the result of relu, and the sum
    132
    """
    with _Made() as made:
        result = run()
    gc.collect()
    total = sum(size for weak, size in made.storages.values() if not weak.expired())
    del result
    return total


class _Made(TorchDispatchMode):
    """Notes the memory of all that is made inside, without holding it."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[int, tuple[StorageWeakRef, int]] = {}
        self._given: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in _tensors((args, kwargs)):
            at = tensor.untyped_storage()._cdata
            if at not in self.storages:
                self._given.add(at)
        out = func(*args, **(kwargs or {}))
        for tensor in _tensors(out):
            storage = tensor.untyped_storage()
            if storage._cdata not in self._given:
                self.storages[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        return out


def _tensors(value: Any) -> list[torch.Tensor]:
    return [each for each in tree_leaves(value) if isinstance(each, torch.Tensor)]
