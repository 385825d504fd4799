"""Checkpoints: whole or not there, of their own run alone, and kept by a policy."""

from __future__ import annotations

import random
import re
import shutil
import threading
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from mmpipe.errors import RunError
from mmpipe.models.rebuild import run_weights
from mmpipe.runs import create_run, open_run
from mmpipe.runs.keep import score_of, which_to_keep
from mmpipe.runs.seal import check_seal
from mmpipe.runs.served import weight_files
from mmpipe.train import checkpoint
from mmpipe.train.balancing import make_balancing
from mmpipe.train.checkpoint import Keep, load_checkpoint, save_checkpoint, save_in_pieces
from mmpipe.train.optimizer import make_optimizer
from mmpipe.train.tasks import classification
from mmpipe.train.writing import Writing

FILES = ['balancing.safetensors', 'checkpoint.json', 'model.safetensors', 'optimizer.safetensors', 'state.json']


def made(width=4):
    """A model, its optimizer with some state, and a part beside it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width))
    parts = {'balancing': make_balancing('uncertainty', [classification('kind', 2)]), 'nothing': nn.Identity()}
    optimizer = make_optimizer(nn.ModuleDict({'model': model, **parts}), lr=0.1, weight_decay=0.1)
    step(model, parts, optimizer)
    return model, optimizer, parts


def step(model, parts, optimizer):
    optimizer.zero_grad()
    loss = model(torch.ones(3, model[0].in_features)).square().sum() + 1
    parts['balancing'].total({'kind': loss}, share=1.0).backward()
    optimizer.step()


def run_of(folder, **record):
    return create_run('shop', {'snapshot': {'id': 'a' * 16}, 'factory': None, **record}, runs=folder)


def test_what_was_saved_comes_back_bit_for_bit(tmp_path):
    run, (model, optimizer, parts) = run_of(tmp_path), made()
    folder = save_checkpoint(run, model, optimizer, {'step': 1, 'note': [1.5]}, parts=parts)
    assert sorted(file.name for file in folder.iterdir()) == FILES
    other, other_optimizer, other_parts = made()
    for _ in range(3):
        step(other, other_parts, other_optimizer)
    assert load_checkpoint(run, folder, other, other_optimizer, parts=other_parts) == {'step': 1, 'note': [1.5]}
    for _ in range(2):  # and goes on in the same way
        step(model, parts, optimizer)
        step(other, other_parts, other_optimizer)
    for mine, theirs in ((model, other), (parts['balancing'], other_parts['balancing'])):
        for name, value in mine.state_dict().items():
            assert torch.equal(value, theirs.state_dict()[name]), name


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    file=st.sampled_from(FILES), how=st.sampled_from(['flip', 'cut', 'grow', 'gone', 'swap']), seed=st.integers(0, 9999)
)
def test_any_damage_is_found_and_named(tmp_path, file, how, seed):
    root = Path(tmp_path / str(random.random()))
    run, (model, optimizer, parts) = run_of(root), made()
    old = save_checkpoint(run, model, optimizer, {'step': 1}, parts=parts, keep=Keep(newest=2))
    step(model, parts, optimizer)
    folder = save_checkpoint(run, model, optimizer, {'step': 2}, parts=parts, keep=Keep(newest=2))
    path, rng = folder / file, random.Random(seed)
    data = bytearray(path.read_bytes())
    if how == 'flip':
        at = rng.randrange(len(data))
        if file == 'checkpoint.json' and chr(data[at]).isspace():
            return  # layout means nothing
        data[at] ^= 1 << rng.randrange(8)
    elif how == 'cut':
        del data[rng.randrange(len(data)) :]
    elif how == 'grow':
        data += b'\0'
    if how == 'gone':
        path.unlink()
    elif how == 'swap':
        if (old / file).read_bytes() == bytes(data):
            return
        shutil.copy(old / file, path)
    else:
        path.write_bytes(data)
    named = r'checkpoint\.json|has SHA-256|is of ' if file == 'checkpoint.json' else file.replace('.', r'\.')
    with pytest.raises(RunError, match=rf'(?s)({named}|holds ).*from the one of step 1'):
        load_checkpoint(run, folder, model, optimizer, parts=parts)
    load_checkpoint(run, old, model, optimizer, parts=parts)


def save_pieces(run, model, optimizer, step, parts, **options):
    writing = Writing()
    save_in_pieces(run, model, optimizer, {'step': step}, parts=parts, writing=writing, **options)
    writing.wait()
    return run.checkpoint(step)


@pytest.mark.parametrize('whole', [False, True])
def test_what_was_saved_in_pieces_comes_back_bit_for_bit(tmp_path, whole):
    run, (model, optimizer, parts) = run_of(tmp_path), made()
    folder = save_pieces(run, model, optimizer, 1, parts, whole=whole)
    files = {'checkpoint.json', 'pieces.json', 'pieces-00000-of-00001.safetensors', 'state.json'}
    assert {file.name for file in folder.iterdir()} == files | (
        {'model.safetensors', 'balancing.safetensors'} if whole else set()
    )
    other, other_optimizer, other_parts = made()
    for _ in range(3):
        step(other, other_parts, other_optimizer)
    assert load_checkpoint(run, folder, other, other_optimizer, parts=other_parts) == {'step': 1}
    for _ in range(2):
        step(model, parts, optimizer)
        step(other, other_parts, other_optimizer)
    for mine, theirs in ((model, other), (parts['balancing'], other_parts['balancing'])):
        for name, value in mine.state_dict().items():
            assert torch.equal(value, theirs.state_dict()[name]), name
    assert run_weights(run)['0.weight'].shape == (4, 4)
    assert all(file.is_file() for file in weight_files(run))


@pytest.mark.parametrize('file', ['pieces.json', 'pieces-00000-of-00001.safetensors', 'state.json', 'checkpoint.json'])
@pytest.mark.parametrize('how', ['flip', 'cut', 'gone'])
def test_damage_to_pieces_is_found_and_named(tmp_path, file, how):
    run, (model, optimizer, parts) = run_of(tmp_path), made()
    keep = Keep(newest=2)
    old = save_pieces(run, model, optimizer, 1, parts, keep=keep)
    step(model, parts, optimizer)
    path = save_pieces(run, model, optimizer, 2, parts, keep=keep) / file
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data[:-3] if how == 'cut' else data)
    if how == 'gone':
        path.unlink()
    with pytest.raises(RunError, match=rf'(?s){re.escape(file)}.*from the one of step 1'):
        load_checkpoint(run, path.parent, model, optimizer, parts=parts)
    load_checkpoint(run, old, model, optimizer, parts=parts)


def test_pieces_hold_what_was_there_when_they_were_taken_however_late_they_are_written(tmp_path, monkeypatch):
    run, (model, optimizer, parts) = run_of(tmp_path), made()
    wanted = {name: value.clone() for name, value in model.state_dict().items()}
    written, writing, original = threading.Event(), Writing(), checkpoint.write_piece

    def late(*arguments):
        assert written.wait(20)
        original(*arguments)

    monkeypatch.setattr(checkpoint, 'write_piece', late)
    save_in_pieces(run, model, optimizer, {'step': 1}, parts=parts, writing=writing)
    step(model, parts, optimizer)
    assert run.newest_checkpoint() is None  # nothing has the name before all is there
    written.set()
    writing.wait()
    assert all(torch.equal(value, wanted[name]) for name, value in run_weights(run).items())


def test_a_disk_that_takes_no_more_is_told_with_the_next_checkpoint_and_the_one_before_stays(tmp_path, monkeypatch):
    run, (model, optimizer, parts) = run_of(tmp_path), made()
    writing = Writing()
    save_in_pieces(run, model, optimizer, {'step': 1}, parts=parts, writing=writing)
    writing.wait()

    def full(tensors, file):
        raise OSError(28, 'No space left on device')

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, 'save_file', full)
        save_in_pieces(run, model, optimizer, {'step': 2}, parts=parts, writing=writing)
        with pytest.raises(
            RunError, match=r'could not be written: OSError.*No space left.*one before it is still there'
        ):
            save_in_pieces(run, model, optimizer, {'step': 3}, parts=parts, writing=writing)
    assert sorted(entry.name for entry in (run.path / 'checkpoints').iterdir()) == ['00000001']
    check_seal(run.checkpoint())


def test_one_of_another_run_snapshot_or_code_is_refused(tmp_path):
    run, (model, optimizer, parts) = run_of(tmp_path), made()
    folder = save_checkpoint(run, model, optimizer, {'step': 1}, parts=parts)
    for record, what in (
        ({}, 'run'),
        ({'snapshot': {'id': 'b' * 16}}, 'snapshot'),
        ({'factory': {'kind': 'function', 'fingerprint': 'other'}}, 'factory'),
    ):
        other = run_of(tmp_path, **record)
        if what != 'run':  # but for this, it would be the same
            other = type(other)(other.path, {**other.record, 'id': run.id, 'created': run.record['created']})
        with pytest.raises(RunError, match=rf'is of {what} .* is wanted\. It was copied from another run'):
            load_checkpoint(other, folder, model, optimizer, parts=parts)


def test_an_old_one_goes_only_when_the_new_one_is_right_on_the_disk(tmp_path, monkeypatch):
    run, (model, optimizer, parts) = run_of(tmp_path), made()
    save_checkpoint(run, model, optimizer, {'step': 1}, parts=parts)
    sealed = checkpoint.seal

    def sealed_then_damaged(folder, about):
        sealed(folder, about)
        (folder / 'model.safetensors').write_bytes(b'0' * (folder / 'model.safetensors').stat().st_size)

    monkeypatch.setattr(checkpoint, 'seal', sealed_then_damaged)
    with pytest.raises(RunError, match=r'model\.safetensors has SHA-256'):
        save_checkpoint(run, model, optimizer, {'step': 2}, parts=parts)
    check_seal(run.checkpoint(1))


SCORES = st.dictionaries(st.integers(0, 500), st.none() | st.floats(-9, 9), min_size=1, max_size=12)


@given(scores=SCORES, newest=st.integers(1, 5), every=st.none() | st.integers(1, 50), best=st.booleans())
def test_the_policy_keeps_the_newest_the_best_and_the_milestones_and_nothing_else(scores, newest, every, best):
    kept = which_to_keep(scores, newest=newest, every=every, best=best)
    assert kept <= set(scores)
    last = sorted(scores)[-newest:]
    assert set(last) <= kept
    known = {step: score for step, score in scores.items() if score is not None}
    top = max((score, step) for step, score in known.items())[1] if best and known else None
    for step in set(scores) - set(last):
        assert (step in kept) == (step == top or (every is not None and step % every == 0))
    gone = {step: score for step, score in scores.items() if step in kept}
    assert which_to_keep(gone, newest=newest, every=every, best=best) == kept  # asking again deletes nothing


def test_the_best_is_found_again_by_its_metric(tmp_path):
    run, (model, optimizer, parts) = run_of(tmp_path), made()
    for number, rmse in ((1, 3.0), (2, 1.0), (3, 2.0), (4, 2.5)):
        state = {'step': number, 'metrics': {'price': {'rmse': rmse}}}
        save_checkpoint(run, model, optimizer, state, parts=parts, keep=Keep(best='price.rmse'))
    assert sorted(open_run(run).checkpoints()) == [2, 4]
    assert run.checkpoint('best').name == '00000002'
    assert run.checkpoint().name == '00000004'
    with pytest.raises(RunError, match='no checkpoint of step 3; it has 2, 4'):
        run.checkpoint(3)
    assert score_of({'a.b': {'f1': 0.5}}, 'a.b.f1') == 0.5  # a task may have a point in its name
