"""What is fitted on a field is fitted on what the model sees: decoded, transformed, less what is random."""

from __future__ import annotations

import io

import numpy as np
import pytest
import soundfile

import mmpipe as mm
from mmpipe.shards import Block, Field, write_snapshot


@pytest.fixture(scope='module')
def calls(tmp_path_factory):
    """40 calls of two pitches as FLAC files, one missing, with a number and vectors beside them."""
    rng = np.random.default_rng(0)
    sounds, kinds = [], []
    for i in range(40):
        time_s = np.arange(int(8000 * (0.3 + 0.01 * i))) / 8000
        tone = 0.3 * np.sin(2 * np.pi * (300 if i % 2 else 900) * time_s) + 0.01 * rng.normal(size=len(time_s))
        file = io.BytesIO()
        soundfile.write(file, tone, 8000, format='FLAC')
        sounds.append(None if i == 7 else file.getvalue())
        kinds.append('low' if i % 2 else 'high')
    fields = [
        Field(name='call', kind='binary'), Field(name='kind', kind='label', vocabulary=('high', 'low')),
        Field(name='weight', kind='scalar', dtype='float32'),
        Field(name='frames', kind='ragged', dtype='float32', shape=(3,)),
    ]  # fmt: skip
    columns = {
        'call': sounds, 'kind': kinds, 'weight': [None if i == 3 else 100.0 + i for i in range(40)],
        'frames': [rng.normal(5, 2, size=(1 + i % 4, 3)).astype(np.float32) for i in range(40)],
    }  # fmt: skip
    block = Block(keys=[f'k{i}' for i in range(40)], columns=columns, splits=['train'] * 40)
    return write_snapshot(tmp_path_factory.mktemp('calls'), fields, block).rows()


def loader_of(calls, **options):
    transforms = {
        'call': [mm.transforms.gain(6), mm.transforms.log_mel(16_000, n_mels=16)],
        **mm.transforms.standardise(calls, ['frames', 'weight']),
    }
    decode = {'call': mm.decode.audio(rate=16_000)}
    return mm.DataLoader(
        calls, batch_size=8, shuffle=True, device='cpu', decode=decode, transforms=transforms, **options
    )


def test_a_spectrogram_made_on_the_device_is_learned_from(calls, tmp_path):
    def build():
        encoders = {
            'call': mm.encoders.spectrogram(16, 16, width=4),
            'frames': mm.encoders.sequence(3, 4),
            'weight': mm.encoders.vector(1, 4),
        }
        return mm.MultitaskModel(encoders=encoders, tasks=[mm.classification('kind', 2)], hidden=16, dropout=0.0)

    loader = loader_of(calls)
    model = build()
    run = mm.Trainer(epochs=8, lr=1e-2, runs=tmp_path).fit(model, loader, loader_of(calls), name='calls')
    assert run.metrics['kind']['accuracy'] > 0.9
    # A field that a transform has standardised is not standardised again.
    for name in ('frames', 'weight'):
        standardize = model.encoders[name].each.standardize if name == 'frames' else model.encoders[name].standardize
        np.testing.assert_allclose(standardize.mean, 0, atol=1e-5)
        np.testing.assert_allclose(standardize.std, 1, atol=1e-4)
    # And the spectrogram's bands by what comes out of the loader, without the gain.
    plain = mm.DataLoader(
        calls, batch_size=64, device='cpu', fields=['call'], decode={'call': mm.decode.audio(rate=16_000)},
        transforms={'call': mm.transforms.log_mel(16_000, n_mels=16)},
    )  # fmt: skip
    (batch,) = plain
    values = batch['call'][batch['_mask']['call']].transpose(1, 2).reshape(-1, 16)
    np.testing.assert_allclose(model.encoders['call'].standardize.mean, values.mean(0), rtol=1e-4)


def test_values_that_nothing_changes_are_read_as_they_are_stored(calls):
    loader = loader_of(calls)
    (labels,) = loader.seen.present('kind')
    assert labels.tolist() == [i % 2 for i in range(40)]
    assert sum(map(len, loader.seen.present('call'))) == 39
    assert sum(map(len, loader.seen.present('frames'))) == sum(1 + i % 4 for i in range(40))
    assert sum(map(len, loader.seen.take(range(10)).present('weight'))) == 9
