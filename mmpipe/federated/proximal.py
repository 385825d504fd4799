"""FedProx's part of a client: a pull towards the weights that the round began with.

Li et al. 2020, "Federated Optimization in Heterogeneous Networks", equation 2: each client minimises its loss plus
mu / 2 times the squared distance of its weights to those it was sent. (The example in the docstring of Flower 1.41's
strategy adds norms that are not squared.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from mmpipe.train.balancing import Balancing, Losses, make_balancing, name_of, sum_of

if TYPE_CHECKING:
    from mmpipe.train.tasks import Task


class Proximal(Balancing):
    """A balancing with the proximal term, once a step whatever the number of micro-batches.

    Args:
        chosen: the balancing itself.
        mu: how hard the pull is.

    >>> weight = nn.Parameter(torch.ones(2))
    >>> pulled = Proximal('fixed', mu=4.0)
    >>> pulled.prepare([])
    >>> for _ in range(2):  # the second from another place than the first
    ...     weight.grad = None
    ...     _ = pulled.backward({'price': weight.sum()}, share=1.0, parameters=[weight], scale=lambda loss: loss)
    ...     weight.data += 0.5
    >>> weight.grad
    tensor([3., 3.])
    """

    def __init__(self, chosen: str | Balancing, *, mu: float) -> None:
        super().__init__()
        self.chosen, self.mu = chosen, mu
        self.inner: nn.Module = nn.Module()
        self.start: list[torch.Tensor] | None = None

    def prepare(self, tasks: Sequence[Task]) -> None:
        """See `Balancing.prepare`."""
        self.inner = make_balancing(self.chosen, tasks)
        self.start = None

    def backward(
        self,
        losses: Losses,
        *,
        share: float,
        parameters: Sequence[nn.Parameter],
        scale: Callable[[torch.Tensor], torch.Tensor],
    ) -> torch.Tensor:
        """See `Balancing.backward`."""
        if self.start is None:  # before the first update
            self.start = [parameter.detach().clone() for parameter in parameters]
        # What the balancing itself learns was sent by nobody.
        own = {id(parameter) for parameter in self.parameters()}
        total = self.inner.backward(losses, share=share, parameters=parameters, scale=scale)  # type: ignore[operator]
        pairs = zip(parameters, self.start, strict=True)
        distances = [(now - then).square().sum() for now, then in pairs if id(now) not in own]
        if distances:
            term = sum_of(distances) * (share * self.mu / 2)
            scale(term).backward()
            total = total + term.detach()
        return total

    def extra_repr(self) -> str:
        """See `Balancing.extra_repr`."""
        return f'{name_of(self.chosen)}, mu={self.mu:g}'
