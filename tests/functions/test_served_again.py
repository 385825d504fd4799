"""Batches of a served run without tables: one bad row among good ones, and a run trained again under its id."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

import mmpipe as mm
from mmpipe.errors import FieldError
from mmpipe.functions import predictions
from mmpipe.models.serve import Served

SUPPORT = str(Path(__file__).parents[1] / 'support')
if SUPPORT not in sys.path:  # test folders are no packages, so what they share is put on the path
    sys.path.insert(0, SUPPORT)

from shop_snapshot import KINDS, write_shop  # noqa: E402


def build():
    return mm.MultitaskModel(
        encoders={'title': mm.encoders.vector(8, 4)}, tasks=[mm.classification('kind', KINDS)], hidden=4
    )


@pytest.fixture
def runs(tmp_path):
    snapshot = write_shop(tmp_path / 'shards', 32, holes=0.0)
    loaders = [mm.DataLoader(snapshot.split(name), batch_size=8, device='cpu') for name in ('train', 'val')]
    return [mm.Trainer(seed=seed, runs=tmp_path / 'runs').fit(build, *loaders, name='shop') for seed in (0, 1)]


def asked(run, rows):
    return list(predictions._asked('predict', str(run.path), rows))


def test_a_value_that_does_not_fit_is_an_error_of_its_row_alone(runs):
    good, bad = {'title': np.ones(8, np.float32)}, {'title': np.ones(9, np.float32)}
    found = asked(runs[0], [good, bad, good, {'title': None}])
    assert isinstance(found[1], FieldError)
    assert found[0] == found[2] == asked(runs[0], [good])[0]
    assert found[3]['kind']['label'] in KINDS


def test_a_run_trained_again_under_its_id_is_noticed_and_loaded_again(runs):
    first, second = runs
    row = {'title': np.arange(8, dtype=np.float32)}
    before, wanted = asked(first, [row]), Served(second, device='cpu').predict([row])
    assert before != wanted
    digests = [_print(first)]
    assert _print(first).digest == digests[0].digest
    shutil.rmtree(first.path / 'checkpoints')
    shutil.copytree(second.path / 'checkpoints', first.path / 'checkpoints')  # the same step, in the same place
    digests.append(_print(first))
    assert digests[1].changes(digests[0].parts) == ['file model.safetensors changed']
    found = asked(first, [row])
    assert found[0]['kind']['label'] == wanted[0]['kind']['label']
    assert found[0]['kind']['probability'] == pytest.approx(wanted[0]['kind']['probability'], abs=1e-6)
    assert _print(second).parts['file model.safetensors'] == digests[1].parts['file model.safetensors']


def _print(run):
    return mm.fingerprint(predictions._predict, constants={'run': str(run.path)})
