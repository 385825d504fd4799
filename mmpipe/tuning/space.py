"""What is searched: ranges and choices by the name of a trainer's field or of a function's argument."""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mmpipe.errors import ConfigError
from mmpipe.train.trainer import OUTSIDE, Trainer

if TYPE_CHECKING:
    import optuna

PLAIN = (bool, int, float, str, type(None))


@dataclass(frozen=True)
class Float:
    """A real number.

    Args:
        low: the least.
        high: the most.
        log: draw its logarithm evenly, as learning rates want.

    Raises:
        ConfigError: an empty range, or a logarithm of what is not positive.

    >>> Float(1e-4, 1e-1, log=True).ends()
    (0.0001, 0.1)
    """

    low: float
    high: float
    log: bool = dataclasses.field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        _check_range(self, (int, float))

    def ends(self) -> tuple[Any, ...]:
        """The values that show whether a field takes all of them."""
        return float(self.low), float(self.high)

    def drawn(self, trial: optuna.Trial, name: str) -> Any:
        """A value from Optuna."""
        return trial.suggest_float(name, self.low, self.high, log=self.log)


@dataclass(frozen=True)
class Int:
    """A whole number.

    Args:
        low: the least.
        high: the most.
        log: draw its logarithm evenly, as widths want.

    Raises:
        ConfigError: an empty range, or a logarithm of what is not positive.

    >>> Int(16, 256, log=True).ends()
    (16, 256)
    """

    low: int
    high: int
    log: bool = dataclasses.field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        _check_range(self, (int,))

    def ends(self) -> tuple[Any, ...]:
        """The values that show whether a field takes all of them."""
        return self.low, self.high

    def drawn(self, trial: optuna.Trial, name: str) -> Any:
        """A value from Optuna."""
        return trial.suggest_int(name, self.low, self.high, log=self.log)


@dataclass(frozen=True, init=False)
class Choice:
    """One of several values: numbers, strings, True, False or None.

    Args:
        *values: two or more.

    Raises:
        ConfigError: fewer, or another kind of value, which a storage could not hold.

    >>> Choice('constant', 'cosine').ends()
    ('constant', 'cosine')
    """

    values: tuple[Any, ...]

    def __init__(self, *values: Any) -> None:
        if len(values) < 2 or not all(isinstance(value, PLAIN) for value in values):
            raise ConfigError(
                f'Choice{values!r}: two or more numbers, strings, True, False or None are meant, each an argument. '
                f'Name anything else by a string, and look it up in your function.'
            )
        object.__setattr__(self, 'values', values)

    def ends(self) -> tuple[Any, ...]:
        """The values that show whether a field takes all of them."""
        return self.values

    def drawn(self, trial: optuna.Trial, name: str) -> Any:
        """A value from Optuna."""
        return trial.suggest_categorical(name, self.values)


Space = Mapping[str, Float | Int | Choice]


def check_space(space: Space, trainer: Trainer, fit: Callable[..., Any]) -> None:
    """Compare a space with what it sets, before the first trial.

    Args:
        space: {name: range or choice}.
        trainer: whose fields the names may be; the ends of each range must pass its checks.
        fit: whose arguments after the trainer the other names must be.

    Raises:
        ConfigError: a name that is neither or both, or values that its field does not take.

    >>> check_space({'lr': Float(1e-4, 1e-1, log=True), 'width': Int(4, 8)}, Trainer(), lambda trainer, width: None)
    >>> check_space({'rate': Float(0, 1)}, Trainer(), lambda trainer, width: None)
    Traceback (most recent call last):
    ...
    mmpipe.errors.ConfigError: space['rate'] is no field of Trainer and no argument of the function, which takes width.
    """
    fields = {field.name for field in dataclasses.fields(Trainer)} - set(OUTSIDE)
    arguments, any_name = _arguments(fit)
    if not space:
        raise ConfigError("space={}: there is nothing to search. Name a field, as in {'lr': Float(1e-4, 1e-1)}.")
    for name, each in space.items():
        if not isinstance(each, Float | Int | Choice):
            raise ConfigError(f'space[{name!r}] = {each!r}: a Float, Int or Choice of mmpipe.tuning is meant.')
        if name in OUTSIDE:
            raise ConfigError(f'space[{name!r}]: this setting does not change what is trained. Leave it out.')
        if name in fields and name in arguments:
            raise ConfigError(
                f'space[{name!r}] is a field of Trainer and an argument of the function. Rename the argument.'
            )
        if name in fields:
            _check_field(name, each, trainer)
        elif name not in arguments and not any_name:
            raise ConfigError(
                f'space[{name!r}] is no field of Trainer and no argument of the function, which takes '
                f'{", ".join(arguments) or "none"}.'
            )


def _arguments(fit: Callable[..., Any]) -> tuple[list[str], bool]:
    """Names after the first argument, and whether any other will do."""
    parameters = list(inspect.signature(fit).parameters.values())
    if not parameters or parameters[0].kind not in (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
    ):
        raise ConfigError('mm.tune calls the function with a trainer: write `def fit(trainer, ...)`.')
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    names = [each.name for each in parameters[1:] if each.kind in named]
    return names, any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters)


def _check_field(name: str, each: Float | Int | Choice, trainer: Trainer) -> None:
    hint = typing.get_type_hints(Trainer)[name]
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    kinds = typing.get_args(hint) if union else (hint,)
    for value in each.ends():
        takes = type(value) in kinds or (type(value) is int and float in kinds)
        if not takes:
            shown = ' | '.join(getattr(kind, '__name__', str(kind)) for kind in kinds)
            raise ConfigError(f'space[{name!r}] holds {value!r}, and Trainer.{name} takes {shown}.')
        try:
            dataclasses.replace(trainer, **{name: value})
        except ConfigError as error:
            raise ConfigError(f'space[{name!r}] holds {value!r}: {error}') from error


def _check_range(each: Float | Int, kinds: tuple[type, ...]) -> None:
    numbers = all(isinstance(end, kinds) and not isinstance(end, bool) for end in (each.low, each.high))
    if not numbers or not each.low < each.high or (each.log and each.low <= 0):
        above = ' above 0' if each.log else ''
        raise ConfigError(f'{each!r}: numbers{above} are meant, the first less than the second.')
