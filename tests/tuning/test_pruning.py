"""What a trial tells while it trains is kept with it, and costs little where epochs are short."""

from __future__ import annotations

import optuna

from mmpipe.tuning.pruning import COSTS_EVERY_S, Listening


def told(trial, epochs, monkeypatch, *, apart_s):
    """Each epoch's score and costs, and how often costs were written."""
    now, written = [0.0], []
    monkeypatch.setattr('mmpipe.tuning.pruning.time.monotonic', lambda: now[0])
    keep = trial.set_user_attr
    monkeypatch.setattr(trial, 'set_user_attr', lambda name, value: (written.append(name), keep(name, value)))
    listening = Listening(trial)
    for epoch in range(epochs):
        listening({'epoch': epoch, 'score': epoch / 10, 'seconds': now[0], 'memory': 5})
        now[0] += apart_s
    return written.count('seconds')


def test_every_score_is_kept_and_costs_once_in_a_while(monkeypatch):
    trial = optuna.create_study().ask()
    assert told(trial, 40, monkeypatch, apart_s=COSTS_EVERY_S / 8) == 5
    kept = trial.study.trials[0]
    assert kept.intermediate_values == {epoch: epoch / 10 for epoch in range(40)}
    assert kept.user_attrs == {'seconds': COSTS_EVERY_S * 4, 'memory': 5}


def test_costs_of_long_epochs_are_kept_after_each(monkeypatch):
    assert told(optuna.create_study().ask(), 7, monkeypatch, apart_s=2 * COSTS_EVERY_S) == 7
