"""Backbones of timm and torchvision."""

from __future__ import annotations

import pytest
import torch
import torchvision

from mmpipe.errors import ModelError
from mmpipe.models import encoders
from mmpipe.models.encoders.pretrained import stored_weights
from mmpipe.models.weights_file import save_weights
from mmpipe.train.optimizer import parameter_groups


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """torch's cache with weights of a MobileNetV2, under the name that torchvision gives them."""
    torch.manual_seed(3)
    model = torchvision.models.mobilenet_v2().eval()
    folder = tmp_path / 'checkpoints'
    folder.mkdir()
    monkeypatch.setattr('torch.hub.get_dir', lambda: str(tmp_path))
    torch.save(model.state_dict(), folder / 'mobilenet_v2-7ebf99e0.pth')
    return model, folder


def pretend(monkeypatch, digest='7ebf99e0'):
    """Weights that are published have a digest; ours are made here."""

    class Digest:
        def hexdigest(self):
            return digest + '0' * 56

    monkeypatch.setattr('mmpipe.models.encoders.pretrained.hashlib.file_digest', lambda *_: Digest())


@pytest.mark.parametrize(
    ('name', 'width'),
    [
        ('resnet18', 512), ('shufflenet_v2_x0_5', 1024), ('mobilenet_v3_small', 1024), ('efficientnet_b0', 1280),
        ('convnext_tiny', 768), ('regnet_x_400mf', 400), ('mnasnet0_5', 1280),
    ],
)  # fmt: skip
def test_backbones_give_the_features_that_their_last_layer_takes(name, width):
    encoder = encoders.torchvision(name).eval()
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        assert encoder(images).shape == (2, encoder.out_features) == (2, width)
        spec = encoder.input_spec()
        mean, std = (torch.tensor(each)[:, None, None] for each in (spec.mean, spec.std))
        torch.testing.assert_close(encoder(images), encoder((images / 255 - mean) / std), rtol=1e-3, atol=1e-3)
    assert encoder.input_spec().differs(images) is None
    assert len(encoder.layers()) >= 5
    assert len(parameter_groups(encoder, weight_decay=0.1, layer_decay=0.5)) >= 5


def test_trained_weights_come_from_the_cache_with_their_constants(cache, monkeypatch):
    model, _ = cache
    pretend(monkeypatch)
    images = torch.randn(2, 3, 64, 64)
    for weights in ('DEFAULT', 'MobileNet_V2_Weights.IMAGENET1K_V2', torchvision.models.MobileNet_V2_Weights.DEFAULT):
        encoder = encoders.torchvision('mobilenet_v2', weights=weights).eval()
        with torch.no_grad():
            wanted = model.features(images).mean((2, 3))
            torch.testing.assert_close(encoder(images), wanted)
            torch.testing.assert_close(encoder.forward_features(images).mean((2, 3)), wanted)
    spec = encoder.input_spec()
    assert (spec.mean, spec.std, spec.size) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), (224, 224))
    assert spec.weights == 'MobileNet_V2_Weights.IMAGENET1K_V2'


def test_weights_that_are_not_there_damaged_or_unknown_are_refused_and_nothing_is_downloaded(cache, monkeypatch):
    def download(*_, **__):
        raise AssertionError('something was downloaded')

    monkeypatch.setattr('torch.hub.download_url_to_file', download)
    with pytest.raises(ModelError, match=r'resnet18-f37072fd\.pth.*Nothing is downloaded'):
        encoders.torchvision('resnet18', weights='DEFAULT')
    with pytest.raises(ModelError, match=r'mobilenet_v2-7ebf99e0\.pth is damaged: its SHA-256'):
        encoders.torchvision('mobilenet_v2', weights='DEFAULT')
    with pytest.raises(ModelError, match="'IMAGENET22K' of mobilenet_v2; there are IMAGENET1K_V1, IMAGENET1K_V2"):
        encoders.torchvision('mobilenet_v2', weights='IMAGENET22K')
    with pytest.raises(ModelError, match='knows no classification model'):
        encoders.torchvision('resnet_18')
    with pytest.raises(ModelError, match='without a linear layer at its end'):
        encoders.torchvision('squeezenet1_1')
    with encoders.weights_follow():  # a checkpoint brings them, so they need not be there
        assert encoders.torchvision('resnet18', weights='DEFAULT').input_spec().size == (224, 224)


def test_a_file_of_ones_own_is_read_and_one_of_another_model_is_refused(tmp_path):
    torch.manual_seed(4)
    model = torchvision.models.resnet18().eval()
    save_weights(model, tmp_path / 'own.safetensors')
    torch.save(model.state_dict(), tmp_path / 'own.pth')
    for file in ('own.safetensors', 'own.pth'):
        encoder = encoders.torchvision('resnet18', file=tmp_path / file)
        assert torch.equal(encoder.backbone.conv1.weight, model.conv1.weight)
    with pytest.raises(ModelError, match=r"own\.pth does not fit ResNet: it lacks 'layer1\.2\.conv1\.weight'"):
        encoders.torchvision('resnet34', file=tmp_path / 'own.pth')
    (tmp_path / 'bad.pth').write_bytes(b'x')
    with pytest.raises(ModelError, match=r'bad\.pth holds no weights'):
        stored_weights(tmp_path / 'bad.pth')


def test_a_file_that_would_run_code_is_not_unpickled(tmp_path):
    class Evil:
        def __reduce__(self):
            return print, ('run',)

    torch.save({'weight': Evil()}, tmp_path / 'evil.pth')
    with pytest.raises(ModelError, match='holds no weights'):
        stored_weights(tmp_path / 'evil.pth')


def test_a_transformer_takes_one_size_and_has_no_maps():
    encoder = encoders.torchvision('vit_b_32', image_size=64)
    assert encoder.input_spec().shape == (3, 64, 64)
    with pytest.raises(ModelError, match='no maps to give'):
        encoder.forward_features(torch.zeros(1, 3, 64, 64))


def test_a_timm_backbone_says_what_its_weights_want_and_how_many_channels_it_takes():
    trained = encoders.timm('tf_efficientnet_lite0', pretrained=True).input_spec()
    assert (trained.weights, trained.size, trained.mean) == ('tf_efficientnet_lite0', (224, 224), (0.5, 0.5, 0.5))
    grey = encoders.timm('test_resnet', in_chans=1)
    pixels = torch.zeros(2, 1, 64, 64, dtype=torch.uint8)
    assert grey.input_spec().weights is None
    assert grey.input_spec().differs(pixels) is None
    assert grey(pixels).shape == (2, 96)
    assert grey.forward_features(pixels).ndim == 4
