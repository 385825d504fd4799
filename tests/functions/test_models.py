from __future__ import annotations

import subprocess
import sys
import threading

import numpy as np
import pytest

from mmpipe.errors import ModelError
from mmpipe.functions import models


def test_threads_that_ask_at_once_get_one_model(monkeypatch):
    built = []
    monkeypatch.setattr(models, '_loaded', {})
    monkeypatch.setattr(models, '_load_text_model', lambda name: built.append(name) or object())
    found = []
    threads = [threading.Thread(target=lambda: found.append(models.text_model('wordllama'))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert built == ['wordllama']
    assert len(set(map(id, found))) == 1


def test_the_packaged_model_is_frozen_in_evaluation_and_normalised_by_its_own_constants():
    model = models.image_model()
    assert not model.module.training
    assert not any(parameter.requires_grad for parameter in model.module.parameters())
    assert model.mean == model.std == (0.5, 0.5, 0.5)
    assert model.module.num_features == models.IMAGE_FEATURES[model.name]


def test_loading_leaves_the_callers_random_numbers_and_threads_alone(monkeypatch):
    import torch

    monkeypatch.setattr(models, '_loaded', {})
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    threads = torch.get_num_threads()
    models.image_model()
    assert torch.equal(torch.rand(1), expected)
    assert torch.get_num_threads() == threads


def test_a_cell_does_not_depend_on_its_batch():
    images = list(np.random.default_rng(0).integers(0, 256, (5, 3, 64, 64), np.uint8))
    together = models.embed_images('tf_efficientnet_lite0', images)
    alone = np.concatenate([models.embed_images('tf_efficientnet_lite0', [image]) for image in images])
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-4)


def test_an_unknown_model_names_its_neighbours():
    with pytest.raises(ModelError, match=r"no model 'resnet19'; near are .*resnet1"):
        models.image_model('resnet19')
    with pytest.raises(ModelError, match="no text model 'bert'"):
        models.text_model('bert')


def test_a_download_that_fails_names_the_next_move(monkeypatch):
    import timm

    tried = []

    def offline(*args, **kwargs):
        tried.append(args)
        raise ConnectionError('no route\nto host')

    monkeypatch.setattr(models, '_failed', {})
    monkeypatch.setattr(timm, 'create_model', offline)
    for _ in range(3):  # as a table's batches do; the hub's own retries take a minute each time
        with pytest.raises(ModelError, match=r"'resnet18' \(ConnectionError: no route to host\).*use model='tf_eff"):
            models.image_model('resnet18')
    assert len(tried) == 1


def test_a_size_the_model_does_not_take_names_the_one_it_does(monkeypatch):
    import timm
    import torch

    module = timm.create_model('vit_tiny_patch16_224', num_classes=0).eval()
    monkeypatch.setitem(
        models._loaded,
        'image:vit_tiny_patch16_224',
        models.ImageModel(
            name='vit', module=module, mean=(0.5,) * 3, std=(0.5,) * 3, size=224, device=torch.device('cpu')
        ),
    )
    with pytest.raises(ModelError, match='pass size=224'):
        models.embed_images('vit_tiny_patch16_224', [np.zeros((3, 160, 160), np.uint8)])


def test_importing_the_functions_imports_no_torch():
    code = "import sys, mmpipe.functions; sys.exit('torch' in sys.modules or 'timm' in sys.modules)"
    assert subprocess.run([sys.executable, '-c', code], check=False).returncode == 0
