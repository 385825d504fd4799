"""Initial weights that keep the variance of activations from layer to layer, by type of layer and what follows it.

He et al. 2015, "Delving Deep into Rectifiers", equation 10, before rectifiers: they lose half of what comes in. Glorot,
Bengio 2010, "Understanding the difficulty of training deep feedforward neural networks", equation 12, before anything
else (called Xavier, after its first author). torch's own default, a uniform distribution of variance 1 / (3 fan_in), is
neither: behind a rectifier a sixth of the variance is left after each layer.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import nn

from mmpipe.errors import ConfigError

M = TypeVar('M', bound=nn.Module)
RECTIFIERS = ('relu', 'leaky_relu', 'elu', 'gelu', 'silu', 'mish')
"""Activations that let the positive half through: He's initialisation."""
SATURATING = ('tanh', 'sigmoid', 'linear')
"""Others, and none at all: Glorot's."""
SMOOTH: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    'elu': nn.functional.elu, 'gelu': nn.functional.gelu, 'silu': nn.functional.silu, 'mish': nn.functional.mish,
}  # fmt: skip
"""Those of which `torch.nn.init.calculate_gain` knows no gain."""
MODULES: dict[type[nn.Module], str] = {
    nn.ReLU: 'relu', nn.ReLU6: 'relu', nn.LeakyReLU: 'leaky_relu', nn.ELU: 'elu', nn.GELU: 'gelu', nn.SiLU: 'silu',
    nn.Mish: 'mish', nn.Tanh: 'tanh', nn.Sigmoid: 'sigmoid', nn.SELU: 'selu',
}  # fmt: skip
WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def initialise(module: M, *, activation: str | nn.Module = 'linear') -> M:
    """Give all layers of a module new initial weights, in place, where they are: nothing is copied to the host.

    What follows a layer is looked up in the `nn.Sequential` that it is in, past norms and dropout. Biases become zero.
    Gates of recurrent layers: Glorot's for what comes in, orthogonal for what comes back (Saxe et al. 2014), and 1 for
    the bias of what an LSTM forgets (Jozefowicz et al. 2015). Embeddings and norms stay as torch makes them.

    Args:
        module: any; not one with trained weights, which would be lost.
        activation: what follows the layers that are in no `nn.Sequential`, or last in it: 'relu', 'leaky_relu', 'elu',
            'gelu', 'silu', 'mish', 'selu', 'tanh', 'sigmoid', 'linear' for nothing; or a module of these.

    Returns:
        The module.

    Raises:
        ConfigError: another activation.

    >>> layer = initialise(nn.Linear(1000, 1000), activation='relu')
    >>> round(float(layer.weight.detach().var() * 1000), 1), bool(layer.bias.any())
    (2.0, False)
    """
    last = activation_of(activation)
    if last is None:
        raise ConfigError(
            f'initialise(activation={activation!r}): one of {", ".join([*RECTIFIERS, "selu", *SATURATING])} is meant.'
        )
    follows = dict(_followers(module))
    done: set[int] = set()
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.TransformerEncoderLayer | nn.TransformerDecoderLayer):
                name, slope = activation_of(part.activation) or ('relu', 0.0)
                _weigh(part.linear1, name, slope)
                done.add(id(part.linear1))
            elif isinstance(part, nn.MultiheadAttention):
                _attention(part)
            elif isinstance(part, nn.RNNBase):
                _recurrent(part)
            elif isinstance(part, WEIGHTED) and id(part) not in done:
                _weigh(part, *follows.get(id(part), last))
    return module


def gain(activation: str, slope: float = 0.01) -> float:
    """By what a layer's weights are larger than for no activation, so that variance stays.

    Those of `torch.nn.init.calculate_gain`; of what it does not know, the gain g with E[f(g z)^2] = 1 for a standard
    normal z: inputs whose square is 1 on average leave the layer and its activation f with 1, which is He's argument
    for an f that depends on the scale.

    Args:
        activation: its name, as for `initialise`.
        slope: of 'leaky_relu', below zero.

    >>> round(gain('relu'), 3), round(gain('gelu'), 3), gain('linear')
    (1.414, 1.468, 1.0)
    """
    if activation in SMOOTH:
        return _measured_gain(activation)
    # For SELU torch's own 3/4 would take its self-normalising away: 1 / fan_in is what Klambauer et al. 2017 want.
    name: Any = 'linear' if activation == 'selu' else activation
    return float(nn.init.calculate_gain(name, slope if name == 'leaky_relu' else None))


def activation_of(activation: Any) -> tuple[str, float] | None:
    """Name and slope of an activation; None where it is none that is known.

    Args:
        activation: a name, a module, or a function of `torch.nn.functional`.

    >>> activation_of(nn.LeakyReLU(0.2)), activation_of(torch.nn.functional.gelu), activation_of(nn.Dropout())
    (('leaky_relu', 0.2), ('gelu', 0.01), None)
    """
    if isinstance(activation, nn.Module):
        name = MODULES.get(type(activation))
        return None if name is None else (name, getattr(activation, 'negative_slope', 0.01))
    name = activation if isinstance(activation, str) else getattr(activation, '__name__', '')
    return (name, 0.01) if name in (*RECTIFIERS, 'selu', *SATURATING) else None


@functools.cache
def _measured_gain(activation: str) -> float:
    z = torch.linspace(-12, 12, 10_001, dtype=torch.float64, device='cpu')
    density = torch.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    low, high = 0.5, 5.0
    for _ in range(50):  # the second moment grows with the gain
        middle = (low + high) / 2
        moment = float(torch.trapezoid(SMOOTH[activation](middle * z) ** 2 * density, z))
        low, high = (middle, high) if moment < 1 else (low, middle)
    return low


def _followers(module: nn.Module) -> Iterator[tuple[int, tuple[str, float]]]:
    """(id of a layer, the activation that follows it), of layers in sequences; outer sequences see more, so last."""
    for sequence in reversed([part for part in module.modules() if _is_sequence(part)]):
        layers = list(_flat(sequence))
        for position, layer in enumerate(layers):
            for after in layers[position + 1 :]:
                found = activation_of(after)
                if found is not None:
                    yield id(layer), found
                if found is not None or (any(True for _ in after.parameters()) and not _is_norm(after)):
                    break


def _is_sequence(module: nn.Module) -> bool:
    """Also of a class derived from it, such as torchvision's Conv2dNormActivation, which goes through it as it does."""
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def _flat(sequence: Any) -> Iterator[nn.Module]:
    for child in sequence:
        if _is_sequence(child):
            yield from _flat(child)
        else:
            yield child


def _is_norm(module: nn.Module) -> bool:
    norms = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
    return isinstance(module, norms) or 'Norm' in type(module).__name__


def _weigh(layer: Any, activation: str, slope: float) -> None:
    factor = gain(activation, slope)
    ins, outs = nn.init._calculate_fan_in_and_fan_out(layer.weight)
    if isinstance(layer, TRANSPOSED):
        ins, outs = outs, ins
    fan = ins if activation in (*RECTIFIERS, 'selu') else (ins + outs) / 2
    nn.init.normal_(layer.weight, std=factor / math.sqrt(max(fan, 1)))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def _attention(layer: nn.MultiheadAttention) -> None:
    """Queries, keys and values each as a layer of its own; the result by Glorot, as any linear layer."""
    if layer.in_proj_weight is not None:
        for part in layer.in_proj_weight.chunk(3):
            nn.init.xavier_normal_(part)
    else:
        for part in (layer.q_proj_weight, layer.k_proj_weight, layer.v_proj_weight):
            nn.init.xavier_normal_(part)
    if layer.in_proj_bias is not None:
        nn.init.zeros_(layer.in_proj_bias)


def _recurrent(layer: nn.RNNBase) -> None:
    gates = {'LSTM': 4, 'GRU': 3}.get(type(layer).__name__, 1)
    for name, parameter in layer.named_parameters():
        if name.startswith('weight'):
            fill = nn.init.orthogonal_ if name.startswith('weight_hh') else nn.init.xavier_normal_
            for part in parameter.chunk(gates):
                fill(part)
        else:
            nn.init.zeros_(parameter)
            if gates == 4 and name.startswith('bias_ih'):
                parameter.chunk(4)[1].fill_(1.0)
