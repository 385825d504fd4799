"""Image transforms on batches: torchvision's results, for each sample by itself, in one pass."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models import get_weight
from torchvision.transforms import v2

from mmpipe.data import transforms
from mmpipe.data.leases import Leases
from mmpipe.data.transforms import IMAGENET_MEAN, IMAGENET_STD, Draw
from mmpipe.data.transforms.images import erase_boxes, inside
from mmpipe.errors import ConfigError, DataError, ModelError

IMAGES = torch.randint(0, 256, (6, 3, 20, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
HASHES = np.arange(6, dtype=np.uint64) * np.uint64(977)
EVERYTHING = {
    'resize': 12, 'scale': (0.1, 1.0), 'flip': True, 'brightness': 0.4, 'contrast': 0.4, 'saturation': 0.4,
    'hue': 0.1, 'erase': 0.5,
}  # fmt: skip


def normalised(*steps):
    return v2.Compose([*steps, v2.ToDtype(torch.float32, scale=True), v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)])


def test_the_central_crop_and_normalisation_equal_torchvision():
    expected = normalised(v2.CenterCrop((11, 12)))(IMAGES)
    torch.testing.assert_close(transforms.image(crop=(11, 12))(IMAGES), expected, rtol=1e-5, atol=1e-5)


def test_resizing_equals_torchvision():
    expected = normalised(v2.Resize((10, 14)))(IMAGES)
    torch.testing.assert_close(transforms.image(resize=(10, 14))(IMAGES), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('name', ['ResNet50_Weights.IMAGENET1K_V2', 'Swin_T_Weights.IMAGENET1K_V1'])
@pytest.mark.parametrize('shape', [(256, 256), (180, 251)])
def test_weights_prepare_images_as_their_own_preset_does_up_to_rounding(name, shape):
    # Smooth as photographs are: the preset resizes floats, which overshoot at hard edges where bytes are cut off.
    coarse = torch.rand(2, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    images = torch.nn.functional.interpolate(coarse, shape, mode='bilinear').mul(255).to(torch.uint8)
    expected = get_weight(name).transforms()(images)
    torch.testing.assert_close(transforms.image(weights=name)(images), expected, rtol=0, atol=1.01 / (255 * 0.224))


def test_weights_without_a_size_resize_the_shorter_side():
    assert transforms.image(weights='FCN_ResNet50_Weights.COCO_WITH_VOC_LABELS_V1')(IMAGES).shape == (6, 3, 520, 624)


def test_timm_weights_prepare_images_as_timm_does_up_to_the_rounding_of_its_resize():
    from PIL import Image
    from timm import get_pretrained_cfg
    from timm.data import create_transform, resolve_data_config

    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    photo = Image.fromarray(pixels).resize((300, 260))
    config = get_pretrained_cfg('tf_efficientnet_lite0').to_dict()
    expected = create_transform(**resolve_data_config(pretrained_cfg=config))(photo)
    images = torch.from_numpy(np.array(photo)).permute(2, 0, 1)[None]
    found = transforms.image(weights='tf_efficientnet_lite0')(images)[0]
    assert found.shape == expected.shape == (3, 224, 224)
    torch.testing.assert_close(found, expected, rtol=0, atol=1.01 / 127.5)  # one step of 255, at this deviation


def test_random_windows_of_weights_have_their_size_and_deviation():
    made = transforms.image(weights='ResNet18_Weights.IMAGENET1K_V1', scale=(0.2, 1), flip=True)
    assert made.random
    views = made(torch.full((2, 3, 30, 40), 128, dtype=torch.uint8), draw=Draw(HASHES[:2]))
    assert views.shape == (2, 3, 224, 224)
    expected = (128 / 255 - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)
    torch.testing.assert_close(views[1, :, 5, 5], expected)


def test_weights_that_nobody_knows_or_that_say_nothing_are_refused():
    for name in ('no_such_net', 'resnet50.no_such_tag', 'ResNet18_Weights.NOTHING'):
        with pytest.raises(ModelError, match='knows no weights'):
            transforms.image(weights=name)
    with pytest.raises(ModelError, match='declares no mean'):
        transforms.image(weights='FasterRCNN_ResNet50_FPN_Weights.COCO_V1')
    with pytest.raises(ModelError, match='says nothing'):
        transforms.image(weights=torch.nn.Linear(1, 1))


def test_a_configuration_of_timm_says_how_much_of_the_image_is_kept():
    plain = {'input_size': (3, 224, 224), 'interpolation': 'bilinear'}
    found = transforms.preprocessing(plain)
    assert (found.size, found.resize, found.mean, found.std) == ((224, 224), 256, IMAGENET_MEAN, IMAGENET_STD)
    assert transforms.preprocessing({**plain, 'crop_pct': 1.0}).resize == 224
    assert transforms.preprocessing({**plain, 'crop_mode': 'squash', 'crop_pct': 0.5}).resize == (448, 448)
    with pytest.raises(ConfigError, match='lanczos'):
        transforms.preprocessing({**plain, 'interpolation': 'lanczos'})


def test_a_model_gives_what_its_backbone_was_trained_with():
    from mmpipe.models import encoders

    encoder = encoders.timm('tf_efficientnet_lite0')
    assert transforms.preprocessing(encoder) == transforms.preprocessing('tf_efficientnet_lite0')
    assert transforms.preprocessing(encoder).mean == (0.5, 0.5, 0.5)


def test_a_random_crop_is_a_window_of_its_own_image_perhaps_mirrored():
    plain = transforms.image(mean=(0, 0, 0), std=(1, 1, 1))(IMAGES)
    views = transforms.image(crop=9, flip=True, mean=(0, 0, 0), std=(1, 1, 1))(IMAGES, draw=Draw(HASHES))
    for image, view in zip(plain, views, strict=True):
        windows = image.unfold(1, 9, 1).unfold(2, 9, 1)
        found = [(windows == v[:, None, None]).all(dim=(0, 3, 4)).any() for v in (view, view.flip(2))]
        assert any(found)


@pytest.mark.parametrize('options', [{'crop': 9, 'flip': True}, EVERYTHING])
def test_samples_are_changed_differently(options):
    same = IMAGES[:1].expand(64, -1, -1, -1)
    views = transforms.image(**options)(same, draw=Draw(np.arange(64, dtype=np.uint64)))
    assert len({view.numpy().tobytes() for view in views}) > 30


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=12), st.integers(0, 5))
def test_a_sample_is_the_same_in_any_batch_and_place(places, epoch):
    made = transforms.image(**EVERYTHING)
    whole = made(IMAGES, draw=Draw(HASHES, epoch=epoch))
    part = made(IMAGES[places], draw=Draw(HASHES[places], epoch=epoch))
    torch.testing.assert_close(part, whole[places], rtol=0, atol=1e-5)


def test_window_mirror_colours_and_erasing_are_drawn_independently():
    many = Draw(np.arange(3000, dtype=np.uint64))
    made = transforms.image(**EVERYTHING)
    placement, factors = made._placement(many, 3000, 40, 40), made._factors(many, 3000)
    erased = made._erased(many, 3000, (40, 40))
    drawn = np.stack([*placement.boxes[:, :2].T, placement.mirrored, *factors.T, erased[:, 2] > 0])
    correlation = np.corrcoef(drawn) - np.eye(len(drawn))
    correlation[0, 1] = correlation[1, 0] = 0  # large windows begin near both edges
    assert np.abs(correlation).max() < 4.5 / 3000**0.5


def test_working_through_a_large_batch_in_parts_changes_nothing(monkeypatch):
    made = transforms.image(**EVERYTHING)
    whole = made(IMAGES, draw=Draw(HASHES))
    monkeypatch.setattr('mmpipe.data.transforms.images.CHUNK_BYTES', 2 * 4 * 3 * 12 * 12)
    torch.testing.assert_close(made(IMAGES, draw=Draw(HASHES)), whole, rtol=0, atol=1e-5)


def test_the_steps_come_in_their_order_with_what_was_drawn():
    """Against torchvision, step by step, with the parameters that the draw gives."""
    made = transforms.image(**EVERYTHING)
    placement = made._placement(Draw(HASHES), 6, 20, 24)
    factors = made._factors(Draw(HASHES), 6)
    erased = made._erased(Draw(HASHES), 6, (12, 12))
    assert placement.mirrored.any()
    assert erased[:, 2:].any()
    expected = []
    for image, box, mirror, (bright, contrast, saturation, hue), gone in zip(
        IMAGES, placement.boxes.tolist(), placement.mirrored, factors.tolist(), erased.tolist(), strict=True
    ):
        step = v2.functional.resized_crop(image, *box, [12, 12], antialias=True)
        step = (v2.functional.horizontal_flip(step) if mirror else step) / 255
        step = v2.functional.adjust_contrast(v2.functional.adjust_brightness(step, bright), contrast)
        step = v2.functional.adjust_hue(v2.functional.adjust_saturation(step, saturation), hue)
        step = v2.functional.normalize(step, IMAGENET_MEAN, IMAGENET_STD)
        expected.append(v2.functional.erase(step, *gone, torch.zeros(1)))
    torch.testing.assert_close(made(IMAGES, draw=Draw(HASHES)), torch.stack(expected), rtol=0, atol=1e-4)


def test_the_validation_twin_of_a_random_transform_draws_nothing():
    twin = transforms.image(**EVERYTHING, random=False)
    assert not twin.random
    expected = normalised(v2.CenterCrop(20), v2.Resize((12, 12)))(IMAGES)
    torch.testing.assert_close(twin(IMAGES), expected, rtol=1e-5, atol=1e-5)


def test_the_frames_of_a_clip_share_what_is_drawn_and_clips_do_not():
    clips = IMAGES[:1, None].expand(3, 4, -1, -1, -1)
    views = transforms.image(**EVERYTHING)(clips, draw=Draw(HASHES[:3]))
    assert views.shape == (3, 4, 3, 12, 12)
    assert (views == views[:, :1]).all()
    assert not torch.equal(views[0], views[1])


def test_erased_rectangles_off_the_cpu_are_those_on_it():
    boxes = np.array([[0, 0, 0, 0], [1, 2, 3, 1], [0, 0, 5, 6]])
    values = torch.rand(3, 2, 3, 5, 6)
    masked = values.masked_fill(inside(boxes, values.shape, values.device), 0)
    erase_boxes(values, boxes)
    assert torch.equal(values, masked)
    assert (values[1] == 0).sum() == 2 * 3 * 3


class Asked(TorchDispatchMode):
    """Counts the numbers that the host asks of tensors."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **kwargs or {})


@pytest.mark.parametrize('options', [EVERYTHING, {'crop': 8, 'flip': True}, {'resize': 9}, {}])
def test_no_number_is_asked_back_from_the_device(options):
    made = transforms.image(**options)
    with Asked() as asked:
        made(IMAGES, draw=Draw(HASHES))
    assert asked.count == 0
    # The way of other devices; a tensor without data has no number to give, so asking for one is an error.
    views = made(IMAGES.to('meta'), draw=Draw(HASHES))
    assert views.shape == made(IMAGES, draw=Draw(HASHES)).shape
    assert (views.device.type, views.dtype) == ('meta', torch.float32)


def test_results_on_the_cpu_lie_in_the_memory_that_is_lent():
    pool = Leases()
    made = transforms.image(crop=16)
    views = made(IMAGES, allocate=pool)
    assert pool.allocations == 1
    torch.testing.assert_close(views, made(IMAGES))
    del views
    made(IMAGES, allocate=pool)
    assert pool.allocations == 1


def test_an_empty_batch_stays_empty():
    assert transforms.image(**EVERYTHING)(IMAGES[:0], draw=Draw(HASHES[:0])).shape == (0, 3, 12, 12)
    assert transforms.image(crop=8, flip=True)(IMAGES[:0], draw=Draw(HASHES[:0])).shape == (0, 3, 8, 8)


def test_what_is_given_is_not_changed():
    before = IMAGES.clone()
    transforms.image(**EVERYTHING)(IMAGES, draw=Draw(HASHES))
    assert torch.equal(IMAGES, before)


def test_images_of_other_channels_are_normalised_by_constants_of_their_own():
    grey = IMAGES[:, :1]
    found = transforms.image(mean=(0.5,), std=(0.25,), crop=8, flip=True)(grey, draw=Draw(HASHES))
    assert found.shape == (6, 1, 8, 8)
    assert found.min() >= -2


def test_what_is_no_uint8_image_or_too_small_is_refused():
    with pytest.raises(DataError, match='uint8'):
        transforms.image()(IMAGES.float())
    with pytest.raises(DataError, match='20x24'):
        transforms.image(crop=22)(IMAGES)


@pytest.mark.parametrize(
    ('options', 'why'),
    [
        ({'crop': 0}, 'at least 1 pixel'),
        ({'resize': (4, 0)}, 'at least 1 pixel'),
        ({'std': (1, 1, 0)}, 'positive'),
        ({'mean': (0.5,)}, 'per channel'),
        ({'flip': 1.5}, 'probability'),
        ({'erase': -0.5}, 'probability'),
        ({'scale': (0.1, 1)}, 'Pass resize='),
        ({'scale': (0.1, 1), 'crop': 4, 'resize': 4}, 'no crop='),
        ({'scale': (1, 0.1), 'resize': 4}, 'lower one first'),
        ({'hue': 0.7}, 'hue'),
        ({'brightness': (2, 1)}, 'brightness'),
        ({'interpolation': 'nearest'}, 'bicubic'),
        ({'mean': (0.5,), 'std': (0.5,), 'hue': 0.1}, 'red, green and blue'),
    ],
)
def test_options_that_cannot_work_are_refused_when_the_transform_is_made(options, why):
    with pytest.raises(ConfigError, match=why):
        transforms.image(**options)
