"""What does not fit its encoder is refused before the first step, by a message that says what to do."""

from __future__ import annotations

import io
import warnings

import numpy as np
import pytest
import soundfile
import torch
from shop_snapshot import KINDS
from torch import nn

from mmpipe.data import DataLoader, transforms
from mmpipe.decode import audio
from mmpipe.errors import DataError, ModelError, TrainError
from mmpipe.models import BareModel, MultitaskModel, encoders
from mmpipe.models.contract import InputSpec
from mmpipe.shards import Block, Field, write_snapshot
from mmpipe.train import Trainer, classification
from mmpipe.train.inputs import check_inputs, check_rate

KIND = classification('kind', KINDS)


def model_of(field, encoder):
    return MultitaskModel(encoders={field: encoder}, tasks=[KIND], hidden=4)


def fixed_vit():
    """A transformer with positions for images of 160 pixels alone."""
    return encoders.timm('test_vit', dynamic_img_size=False)


def loader_of(snapshot, split='train', **options):
    return DataLoader(snapshot.split(split), batch_size=16, device='cpu', **options)


@pytest.fixture(scope='module')
def sounds(tmp_path_factory):
    """Clips as files, and as samples of which the snapshot says the rate, or says nothing."""
    file = io.BytesIO()
    soundfile.write(file, np.zeros(900), 8000, format='WAV')
    waves = [np.zeros(700 + i, dtype=np.float32) for i in range(6)]
    fields = [
        Field(name='clip', kind='binary'),
        Field(name='wave', kind='ragged', dtype='float32', rate=8000),
        Field(name='unsaid', kind='ragged', dtype='float32'),
        Field(name='whole', kind='ragged', dtype='int16', rate=8000),
        Field(name='kind', kind='label', vocabulary=KINDS),
    ]
    columns = {
        'clip': [file.getvalue()] * 6, 'wave': waves, 'unsaid': waves, 'kind': [KINDS[0]] * 6,
        'whole': [wave.astype(np.int16) for wave in waves],
    }  # fmt: skip
    block = Block(keys=[f'{i}' for i in range(6)], columns=columns, splits=['train'] * 6)
    return write_snapshot(tmp_path_factory.mktemp('sounds'), fields, block)


@pytest.mark.parametrize(
    ('field', 'make', 'options', 'expected'),
    [
        ('title', lambda: encoders.vector(3), {}, r"'title' of the train .*vector\(3\).*\[3\].*float32 \[8\]"),
        ('frames', lambda: encoders.vector(4), {}, r"'frames'.*takes a vector.*\[4\].*float32 \[\d, 4\]"),
        ('frames', lambda: encoders.sequence(5), {}, r"'frames'.*encoders\.sequence\(5\).*\[\*, 5\].*\[\d, 4\]"),
        ('mel', lambda: encoders.spectrogram(64), {}, r"'mel'.*takes a spectrogram.*\[64, \*\].*\[16, 20\]"),
        ('photo', lambda: encoders.image(channels=1), {}, r"'photo'.*\[1, \*, \*\].*uint8 \[3, 16, 16\]"),
        ('photo', lambda: fixed_vit(), {}, r"'photo'.*test_vit.*\[3, 160, 160\].*\[3, 16, 16\]"),
        ('weight', lambda: encoders.category(3), {}, r"'weight'.*takes a label: integer \[\].*float32 \[\]\. Convert"),
        ('note', lambda: encoders.tokens(9, 8), {}, r"'note'.*takes token ids.*given text\. .*mm\.decode\.tokens"),
        ('raw', lambda: encoders.image(), {}, r"'raw'.*given encoded files\. Decode it by decode=\{'raw'"),
        ('photo', lambda: encoders.image(), {'transforms': {'photo': lambda x: x.long()}}, 'int64 .*Convert it'),
        ('title', lambda: encoders.waveform(), {'transforms': {'title': lambda x: x.int()}}, 'int32 .*Make floats'),
    ],
)  # fmt: skip
def test_a_shape_or_dtype_that_does_not_fit_is_named_before_a_run_is_made(
    shop, tmp_path, field, make, options, expected
):
    trainer = Trainer(runs=tmp_path / 'runs')
    with pytest.raises(DataError, match=expected):
        trainer.fit(lambda: model_of(field, make()), loader_of(shop, **options), loader_of(shop, 'val'))
    assert not (tmp_path / 'runs').exists()


def test_the_validation_loader_is_looked_at_too(shop, tmp_path):
    val = loader_of(shop, 'val', transforms={'title': lambda values: values[:, :5]})
    with pytest.raises(DataError, match=r"'title' of the val loader.*float32 \[5\]"):
        Trainer(runs=tmp_path).fit(lambda: model_of('title', encoders.vector(8)), loader_of(shop), val)


def test_what_a_transform_makes_of_a_field_counts(shop):
    squares = transforms.image(resize=160)
    check_inputs(model_of('photo', fixed_vit()), loader_of(shop, transforms={'photo': squares}), what='x')
    mixing = {'photo': transforms.image(crop=12, flip=True), '*': transforms.mixup('photo', {'kind': 3})}
    check_inputs(model_of('photo', encoders.image()), loader_of(shop, transforms=mixing), what='train')


def test_scalars_and_whole_arrays_are_vectors_too_and_nothing_is_said_of_encoders_that_say_nothing(shop):
    class Silent(nn.Module):
        out_features = 4

    for field, encoder in (
        ('weight', encoders.vector(1)), ('mel', encoders.vector(320)), ('kind', encoders.vector(1)),
        ('title', Silent()),
    ):  # fmt: skip
        check_inputs(model_of(field, encoder), loader_of(shop), what='train')


def test_a_field_that_the_first_rows_lack_is_looked_at_where_it_is(tmp_path):
    fields = [Field(name='wave', kind='ragged', dtype='float32', shape=(2,)), Field(name='kind', kind='label',
              vocabulary=KINDS)]  # fmt: skip
    waves = [None] * 100 + [np.zeros((3, 2), dtype=np.float32)]
    block = Block(keys=[f'{i:03}' for i in range(101)], columns={'wave': waves, 'kind': ['cup'] * 101})
    loader = DataLoader(write_snapshot(tmp_path, fields, block).rows(), batch_size=4, device='cpu')
    with pytest.raises(DataError, match=r'float32 \[3, 2\]'):
        check_inputs(model_of('wave', encoders.sequence(3)), loader, what='train')


@pytest.mark.parametrize(
    ('field', 'options', 'problem'),
    [
        ('wave', {}, r"'wave'.*has 8000 samples a second, and encoders\.waveform\(16000\) takes 16000 Hz.*twice|0\.5"),
        ('clip', {'decode': {'clip': audio(rate=22_050)}}, r"'clip'.*22050 .*mm\.decode\.audio\(rate=16000\)"),
        ('wave', {'transforms': {'wave': [transforms.gain(), transforms.shift(0.1)]}}, r"'wave'.*8000 samples"),
        ('clip', {'decode': {'clip': audio(rate=16_000)}}, None),
        ('unsaid', {}, None),
        ('wave', {'transforms': {'wave': lambda values: values.repeat_interleave(2, 1)}}, None),
        ('wave', {'host_transforms': {'wave': lambda values: values.repeat(2)}, 'num_workers': 0}, None),
    ],
)
def test_a_sample_rate_that_is_known_and_differs_is_refused(sounds, field, options, problem):
    loader, model = loader_of(sounds, **options), model_of(field, encoders.waveform(16_000, 8, width=8))
    if problem is None:
        check_inputs(model, loader, what='train')
    else:
        with pytest.raises(DataError, match=problem):
            check_inputs(model, loader, what='train')


def test_a_transform_made_for_another_rate_is_refused_too(sounds):
    loader = loader_of(sounds, transforms={'wave': transforms.log_mel(16_000, 16)})
    with pytest.raises(DataError, match=r"'wave'.*8000 samples a second, and transforms\.LogMel takes 16000"):
        check_inputs(model_of('wave', encoders.spectrogram(16, 8, width=8)), loader, what='train')
    loader = loader_of(sounds, transforms={'wave': transforms.log_mel(8000, 16, highest_hz=4000)})
    check_inputs(model_of('wave', encoders.spectrogram(16, 8, width=8)), loader, what='train')


def test_a_resampling_of_torchaudio_gives_its_new_rate(sounds):
    import torchaudio

    loader = loader_of(sounds, transforms={'wave': torchaudio.transforms.Resample(8000, 16_000)})
    assert check_rate(loader, 'wave') == 16_000
    check_inputs(model_of('wave', encoders.waveform(16_000, 8, width=8)), loader, what='train')


def test_other_constants_than_those_of_the_weights_are_told_and_theirs_are_not(shop):
    encoder = encoders.timm('tf_efficientnet_lite0', pretrained=True)
    for options, told in (({'resize': 64}, True), ({'resize': 64, 'weights': 'tf_efficientnet_lite0'}, False)):
        loader = loader_of(shop, transforms={'photo': transforms.image(**options)})
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter('always')
            check_inputs(model_of('photo', encoder), loader, what='train')
        assert [str(each.message) for each in found if each.category.__name__ == 'InputWarning'] == ([
            "Field 'photo' of the train loader is normalised with mean (0.485, 0.456, 0.406) and std (0.229, 0.224, "
            "0.225), and the weights of encoders.timm('tf_efficientnet_lite0') were trained with (0.5, 0.5, 0.5) and "
            "(0.5, 0.5, 0.5). Pass weights='tf_efficientnet_lite0' to mm.transforms.image, or leave the transform out: "
            'the encoder normalises uint8 itself.'
        ] if told else [])  # fmt: skip


def test_a_module_of_ones_own_may_say_what_it_takes(shop):
    class Own(nn.Linear):
        def input_spec(self):
            return InputSpec(encoder='Own', kind='a title', shape=(9,))

    with pytest.raises(DataError, match=r"'title'.*Own: it takes a title: float \[9\]"):
        check_inputs(BareModel(Own(9, 3), inputs='title', tasks=[KIND]), loader_of(shop), what='train')
    Own.input_spec = lambda self: (9,)
    with pytest.raises(ModelError, match=r'Own\.input_spec\(\) returned a tuple'):
        check_inputs(model_of('title', Own(9, 3)), loader_of(shop), what='train')


def test_empty_splits_and_loaders_without_a_batch_are_refused(shop, tmp_path):
    with pytest.raises(DataError, match=r"no split 'test'; it has 'train', 'val'"):
        shop.split('test')
    with pytest.raises(DataError, match=r'no rows to load.*splits: '):
        DataLoader(shop.split('val').take([]), batch_size=4, device='cpu')
    val = DataLoader(shop.split('val'), batch_size=500, drop_last=True, device='cpu')
    with pytest.raises(TrainError, match=r'no batch to evaluate on: val has 24 rows.*500.*drop_last=False'):
        Trainer(runs=tmp_path / 'runs').fit(lambda: model_of('title', encoders.vector(8)), loader_of(shop), val)
    assert not (tmp_path / 'runs').exists()


def test_looking_moves_no_loader_and_draws_from_no_generator(shop):
    loader = loader_of(shop, transforms={'photo': transforms.image(crop=12, flip=True)}, shuffle=True)
    model = model_of('photo', encoders.image(8, width=8))
    before = torch.random.get_rng_state()
    check_inputs(model, loader, what='train')
    assert loader.state_dict()['consumed'] == 0
    assert torch.equal(before, torch.random.get_rng_state())
