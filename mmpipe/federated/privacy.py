"""Flower's differential privacy for whole clients, with what it comes to.

| | noise | who must be trusted | what is private |
|---|---|---|---|
| `central_dp` | on the mean of the updates, by the server | server | whether a client took part |
| `local_dp` | on each update, by the client | nobody | what the client sent, whatever its rows |

Epsilon is stated by Renyi differential privacy. A Gaussian mechanism whose noise is z times its sensitivity has RDP
`a / (2 z^2)` at order a; T releases add up to `a T / (2 z^2)`; and RDP r at order a is (r + log(1/delta) / (a - 1),
delta)-DP (Mironov 2017, "Renyi Differential Privacy", corollary 3, propositions 1 and 3). The best a gives

    epsilon = T / (2 z^2) + sqrt(2 T log(1/delta)) / z

for every way of choosing clients: nothing is taken off for choosing them at random. Declared metrics and shared counts
are not covered. Flower draws the noise from NumPy's global generator: seed it nowhere in a process that relies on it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mmpipe.errors import ConfigError
from mmpipe.federated.engine import check_flower

if TYPE_CHECKING:
    from flwr.clientapp.mod import LocalDpMod
    from flwr.serverapp.strategy import Strategy

METHOD = 'RDP of the Gaussian mechanism, closed form (Mironov 2017)'


@dataclass(frozen=True)
class PrivacySpent:
    """What so many releases cost.

    Attributes:
        epsilon: with `delta`, of (epsilon, delta)-differential privacy.
        delta: what it may fail with.
        num_releases: how many were counted.
        noise_multiplier: standard deviation of the noise over the sensitivity.
        accounting_method: by which formula.
        optimal_order: of the RDP that gave it; None of no release.

    >>> PrivacySpent(1.0, 1e-5, 3, 8.0).accounting_method
    'RDP of the Gaussian mechanism, closed form (Mironov 2017)'
    """

    epsilon: float
    delta: float
    num_releases: int
    noise_multiplier: float
    accounting_method: str = METHOD
    optimal_order: float | None = None


def gaussian_epsilon(noise_multiplier: float, *, releases: int, delta: float) -> PrivacySpent:
    """Epsilon of Gaussian releases.

    Args:
        noise_multiplier: standard deviation of the noise over the sensitivity.
        releases: how many, such as rounds.
        delta: less than one over the number of clients, by custom.

    Raises:
        ConfigError: a number outside its range.

    >>> round(gaussian_epsilon(4.0, releases=10, delta=1e-5).epsilon, 3)
    4.106
    """
    if not noise_multiplier > 0 or releases < 0 or not 0 < delta < 1:
        raise ConfigError(
            f'gaussian_epsilon({noise_multiplier}, releases={releases}, delta={delta}): a positive noise multiplier, '
            f'releases from 0 on and a delta between 0 and 1 are meant.'
        )
    return _spent(releases / noise_multiplier**2, delta, releases, noise_multiplier)


def _spent(rate: float, delta: float, releases: int, noise_multiplier: float) -> PrivacySpent:
    """`rate` is the sum of 1 / z^2 over the releases."""
    if not rate:
        return PrivacySpent(0.0, delta, 0, noise_multiplier)
    epsilon = rate / 2 + math.sqrt(2 * rate * math.log(1 / delta))
    order = 1 + math.sqrt(2 * math.log(1 / delta) / rate)
    return PrivacySpent(epsilon, delta, releases, noise_multiplier, optimal_order=order)


class ClosedFormAccountant:
    """An accountant for Flower's strategies, by the formula above; it needs no package beside Flower.

    Args:
        config: Flower's `PrivacyConfig`.
    """

    def __init__(self, config: Any) -> None:
        self.config = config
        self._events: list[tuple[Any, int]] = []

    @property
    def num_releases(self) -> int:
        """How many were composed."""
        return sum(count for _, count in self._events)

    def compose(self, event: Any, count: int = 1) -> None:
        """Count releases that were made."""
        self._events.append((event, count))

    def get_privacy_spent(self, delta: float | None = None) -> PrivacySpent:
        """What was spent so far."""
        return self._after([], delta)

    def get_epsilon(self, delta: float) -> float:
        """What was spent so far, at another delta."""
        return self._after([], delta).epsilon

    def get_delta(self, epsilon: float) -> float:
        """The delta at which that epsilon was spent so far."""
        rate = sum(count / event.noise_multiplier**2 for event, count in self._events)
        if not rate:
            return 0.0
        above = epsilon - rate / 2
        return math.exp(-(above**2) / (2 * rate)) if above > 0 else 1.0

    def would_exceed(self, event: Any, max_epsilon: float | None = None, count: int = 1) -> bool:
        """Whether more releases would spend more than was allowed."""
        limit = self.config.max_epsilon if max_epsilon is None else max_epsilon
        return limit is not None and self._after([(event, count)], None).epsilon > limit

    def state_dict(self) -> dict[str, object]:
        """What was composed, as JSON."""
        return {
            'events': [
                [event.noise_multiplier, event.sample_size, event.population_size, count]
                for event, count in self._events
            ]
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        from flwr.serverapp import GaussianPrivacyEvent

        self._events = [(GaussianPrivacyEvent(*numbers), count) for *numbers, count in state['events']]

    def _after(self, more: list[tuple[Any, int]], delta: float | None) -> PrivacySpent:
        events = [*self._events, *more]
        rate = sum(count / event.noise_multiplier**2 for event, count in events)
        releases = sum(count for _, count in events)
        noise = math.sqrt(releases / rate) if rate else math.inf
        return _spent(rate, self.config.target_delta if delta is None else delta, releases, noise)


def central_dp(
    strategy: Strategy,
    *,
    noise_multiplier: float,
    clipping_norm: float,
    clients: int,
    delta: float,
    population: int | None = None,
    max_epsilon: float | None = None,
    accountant: Any = None,
) -> Strategy:
    """Flower's wrapper that clips each update and adds noise to their mean, with an accountant.

    `strategy.privacy_spent()` states epsilon after any round, and the server's run records it as `privacy`. Private is
    whether a client took part (add or remove one, its update taken as zero), to those who see the models and not the
    updates: the server itself is trusted. A round in which not all chosen clients answer is left out whole, since the
    mean of fewer would need more noise; clients must be weighted equally, as they are by default.

    Args:
        strategy: FedAvg, or one that averages as it does, such as FedProx.
        noise_multiplier: standard deviation of the noise over what one client can change.
        clipping_norm: largest Euclidean norm of an update, over all parameters.
        clients: how many are chosen in a round.
        delta: at which epsilon is stated.
        population: clients there are; those of a round when None.
        max_epsilon: Flower stops the federation before the round that would spend more.
        accountant: another one of Flower's interface, such as `flwr.serverapp.RdpAccountant`, which needs `flwr[dp]`
            and converts more tightly.

    Returns:
        Flower's `DifferentialPrivacyServerSideFixedClipping`.

    Raises:
        ConfigError: numbers that cannot work, or a strategy that does not average.
        MissingExtraError: Flower is not installed.

    >>> from flwr.serverapp.strategy import FedAvg
    >>> central_dp(FedAvg(), noise_multiplier=1.0, clipping_norm=0.5, clients=4, delta=1e-3).privacy_spent().epsilon
    0.0
    """
    check_flower('mm.federated.central_dp')
    from flwr.serverapp import NeighboringRelation, PrivacyConfig, SamplingMethod
    from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping

    try:
        if accountant is None:
            config = PrivacyConfig(
                target_delta=delta,
                population_size=clients if population is None else population,
                neighboring_relation=NeighboringRelation.ADD_OR_REMOVE_ONE,
                sampling_method=SamplingMethod.NO_AMPLIFICATION,
                max_epsilon=max_epsilon,
            )
            accountant = ClosedFormAccountant(config)
        return DifferentialPrivacyServerSideFixedClipping(
            strategy, noise_multiplier, clipping_norm, clients, accountant=accountant
        )
    except ValueError as error:
        raise ConfigError(f'mm.federated.central_dp: {error}') from error


def local_dp(
    *, noise_multiplier: float, clipping_norm: float, rounds: int, delta: float
) -> tuple[LocalDpMod, PrivacySpent]:
    """Flower's mod by which a client clips its update and adds noise before it is sent, and what that comes to.

    Two clipped updates can lie two norms apart, so that is the sensitivity. Flower takes the noise from an epsilon by
    the classic formula, which is proved only below 1 and says nothing of several rounds (Dwork, Roth 2014, theorem
    A.1); here the noise is given, Flower is told the epsilon that gives it, and what is stated comes from RDP over all
    rounds.

    Args:
        noise_multiplier: standard deviation of the noise over the sensitivity.
        clipping_norm: largest Euclidean norm of an update, over all parameters.
        rounds: how many the client takes part in at most.
        delta: at which epsilon is stated.

    Returns:
        The mod, for `mods=` of `mm.federated.client_app`, and the epsilon of all rounds together.

    Raises:
        ConfigError: numbers that cannot work.
        MissingExtraError: Flower is not installed.

    >>> mod, spent = local_dp(noise_multiplier=8.0, clipping_norm=1.0, rounds=5, delta=1e-5)
    >>> mod.sensitivity, round(spent.epsilon, 2)
    (2.0, 1.38)
    """
    check_flower('mm.federated.local_dp')
    from flwr.clientapp.mod import LocalDpMod

    spent = gaussian_epsilon(noise_multiplier, releases=rounds, delta=delta)
    if not clipping_norm > 0:
        raise ConfigError(f'mm.federated.local_dp(clipping_norm={clipping_norm}): a positive number is meant.')
    told = math.sqrt(2 * math.log(1.25 / delta)) / noise_multiplier
    return LocalDpMod(clipping_norm, 2 * clipping_norm, told, delta), spent
