"""How the losses of several tasks become the gradients of one step.

A balancing of your own is a class with one method: `total`, from the losses per task to their weighted sum; or, where
it has to see the gradients of each task, `backward`. What it has to learn are its parameters, which are trained and
kept in checkpoints like the model's.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from mmpipe.errors import ConfigError

if TYPE_CHECKING:
    from mmpipe.train.tasks import Task

Losses = Mapping[str, torch.Tensor]
"""By task: its weighted loss, of those rows of a micro-batch that have a label, over the labelled rows of the step."""


class Balancing(nn.Module):
    """Fixed weights: the sum of the tasks' losses, which carry the weights of the tasks already.

    Kurin et al. 2022, "In Defense of the Unitary Scalarization for Deep Multi-Task Learning", find that such sums match
    elaborate schemes once training is regularised.

    >>> Balancing().total({'kind': torch.tensor(1.0), 'price': torch.tensor(0.5)}, share=1.0)
    tensor(1.5000)
    """

    def prepare(self, tasks: Sequence[Task]) -> None:
        """Called once, before training.

        Args:
            tasks: what is learned.
        """

    def total(self, losses: Losses, *, share: float) -> torch.Tensor:
        """The loss of a micro-batch: a scalar.

        Args:
            losses: of the tasks that have a label in this step.
            share: part of the step that this micro-batch is, so that what does not depend on rows counts once a step.
        """
        return sum_of(list(losses.values()))

    def backward(
        self,
        losses: Losses,
        *,
        share: float,
        parameters: Sequence[nn.Parameter],
        scale: Callable[[torch.Tensor], torch.Tensor],
    ) -> torch.Tensor:
        """Add the gradients of a micro-batch to the parameters.

        Args:
            losses: as for `total`.
            share: as for `total`.
            parameters: what is trained.
            scale: multiplies what is differentiated by the loss scale of fp16 (by 1 else).

        Returns:
            The loss of the micro-batch, detached.
        """
        total = self.total(losses, share=share)
        scale(total).backward()
        return total.detach()

    def extra_repr(self) -> str:
        """Shown in run records."""
        return ''


class Uncertainty(Balancing):
    """Weights that are learned: each task has a log-variance s, and adds c exp(-s) loss + s / 2.

    Kendall, Gal, Cipolla 2018, "Multi-Task Learning Using Uncertainty to Weigh Losses", equations 7 and 10, with s the
    logarithm of the variance: c is 1/2 for squared errors, 1 for likelihoods of classes.

    >>> from mmpipe.train.tasks import classification, regression
    >>> balancing = Uncertainty()
    >>> balancing.prepare([classification('kind', 3), regression('price')])
    >>> balancing.total({'kind': torch.tensor(1.0), 'price': torch.tensor(1.0)}, share=1.0)
    tensor(1.5000, grad_fn=<SumBackward0>)
    """

    def prepare(self, tasks: Sequence[Task]) -> None:
        """See `Balancing.prepare`."""
        from mmpipe.models.multitask import slot

        self.factors = {task.name: 0.5 if task.kind == 'regression' else 1.0 for task in tasks}
        self.slots = {task.name: slot(task.name) for task in tasks}
        self.log_variances = nn.ParameterDict({self.slots[task.name]: nn.Parameter(torch.zeros(())) for task in tasks})

    def total(self, losses: Losses, *, share: float) -> torch.Tensor:
        """See `Balancing.total`."""
        parts = []
        for name, loss in losses.items():
            log_variance = self.log_variances[self.slots[name]]
            parts.append(self.factors[name] * torch.exp(-log_variance) * loss + share * log_variance / 2)
        return sum_of(parts)


def takes_gradients(chosen: str | Balancing) -> bool:
    """Whether a balancing has a `backward` of its own, which `DistributedDataParallel` and `fully_shard` do not see.

    >>> takes_gradients('uncertainty')
    False
    """
    kind = BALANCINGS[chosen] if isinstance(chosen, str) else type(chosen)
    return kind.backward is not Balancing.backward


def sum_of(scalars: Sequence[torch.Tensor]) -> torch.Tensor:
    """Of one, itself.

    >>> sum_of([torch.tensor(1.0), torch.tensor(2.0)])
    tensor(3.)
    """
    return scalars[0] if len(scalars) == 1 else torch.stack(list(scalars)).sum()


BALANCINGS = {'fixed': Balancing, 'uncertainty': Uncertainty}


def check_balancing(chosen: str | Balancing) -> None:
    """Refuse what is no balancing.

    Raises:
        ConfigError: no balancing has that name, or the object is none.

    >>> check_balancing('uncertainty')
    """
    if not isinstance(chosen, Balancing) and not (isinstance(chosen, str) and chosen in BALANCINGS):
        raise ConfigError(
            f'balancing={chosen!r} is none of {", ".join(map(repr, BALANCINGS))}, and no mmpipe.train.Balancing: '
            f'derive your own from that class.'
        )


def make_balancing(chosen: str | Balancing, tasks: Sequence[Task]) -> Balancing:
    """The balancing called so, or a copy of the one given, for some tasks.

    >>> from mmpipe.train.tasks import regression
    >>> type(make_balancing('fixed', [regression('price')])).__name__
    'Balancing'
    """
    check_balancing(chosen)
    made = BALANCINGS[chosen]() if isinstance(chosen, str) else copy.deepcopy(chosen)  # another training has another
    made.prepare(tasks)
    return made


def name_of(chosen: str | Balancing) -> str:
    """How a run record names it.

    >>> name_of('fixed'), name_of(Uncertainty())
    ('fixed', 'mmpipe.train.balancing.Uncertainty()')
    """
    if isinstance(chosen, str):
        return chosen
    return f'{type(chosen).__module__}.{type(chosen).__qualname__}({chosen.extra_repr()})'
