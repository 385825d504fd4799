"""A space that cannot work is refused before the first trial, with the name of its field."""

from __future__ import annotations

import re

import pytest

from mmpipe.errors import ConfigError
from mmpipe.train import Trainer
from mmpipe.tuning import Choice, Float, Int
from mmpipe.tuning.space import check_space


def fit(trainer, *, width=4, norm='batch'):
    raise AssertionError('not called')


def test_fields_of_the_trainer_and_arguments_of_the_function_are_taken():
    space = {
        'lr': Float(1e-5, 1e-1, log=True), 'clip': Choice(None, 1.0), 'warmup': Int(0, 10), 'width': Int(4, 8),
        'schedule': Choice('constant', 'cosine'), 'weight_decay': Int(0, 1), 'ema': Choice(None, 0.99),
    }  # fmt: skip
    check_space(space, Trainer(), fit)


def test_an_argument_that_takes_any_name_takes_any_name():
    check_space({'whatever': Int(0, 1)}, Trainer(), lambda trainer, **rest: None)


@pytest.mark.parametrize(
    ('space', 'message'),
    [
        ({}, 'nothing to search'),
        ({'rate': Float(0, 1)}, "space['rate'] is no field of Trainer and no argument"),
        ({'lr': (0, 1)}, 'a Float, Int or Choice'),
        ({'lr': Float(0, 1)}, 'a positive number is meant'),
        ({'accumulate': Float(1, 4)}, 'Trainer.accumulate takes int'),
        ({'channels_last': Int(0, 1)}, 'Trainer.channels_last takes bool'),
        ({'schedule': Choice('constant', 'cosin')}, "holds 'cosin'"),
        ({'layer_decay': Float(0.5, 1.5)}, 'holds 1.5'),
        ({'device': Choice('cpu', 'cuda')}, 'does not change what is trained'),
    ],
)
def test_what_cannot_work_is_refused(space, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        check_space(space, Trainer(), fit)


def test_a_name_that_means_two_things_is_refused():
    with pytest.raises(ConfigError, match='Rename the argument'):
        check_space({'lr': Float(0.1, 1)}, Trainer(), lambda trainer, lr: None)


def test_a_function_that_takes_no_trainer_is_refused():
    with pytest.raises(ConfigError, match='def fit'):
        check_space({'lr': Float(0.1, 1)}, Trainer(), lambda: None)


@pytest.mark.parametrize(
    'make',
    [
        lambda: Float(1, 1),
        lambda: Float(0, 1, log=True),
        lambda: Int(2, 1),
        lambda: Int(1.5, 3),
        lambda: Choice('a'),
        lambda: Choice('a', object()),
        lambda: Choice(['a', 'b']),
    ],
)
def test_an_empty_range_or_choice_is_refused(make):
    with pytest.raises(ConfigError):
        make()
