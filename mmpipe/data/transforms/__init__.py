"""Transforms of whole batches on the device, after the transfer.

image               uint8 images and clips: crop, resize, flip, colours, normalise, erase
jpeg                files of JPEG images decoded on the device
mixup, cutmix       two rows of a batch into one, with soft targets
log_mel             waveforms into log-mel spectrograms
gain, shift         waveforms louder or softer, earlier or later
spec_augment        bands and stretches of a spectrogram blanked
standardise         numbers by mean and deviation of the training split

    transforms={'photo': mm.transforms.image(weights='resnet50.a1_in1k', scale=(0.08, 1), flip=True),
                'speech': [mm.transforms.gain(6), mm.transforms.log_mel(16_000), mm.transforms.spec_augment()],
                '*': mm.transforms.mixup('photo', {'kind': 2})}

A transform is any callable of a field's tensor; what else it wants, such as random numbers, it says by attributes
(`calling`). All that is random is a function of (seed, epoch, key of the sample), so any batch can be made again, and a
sample does not depend on the batch it is in; `Draw` gives the numbers.
"""

from mmpipe.data.transforms.calling import apply, apply_all, check, select
from mmpipe.data.transforms.constants import IMAGENET_MEAN, IMAGENET_STD, Preprocessing, preprocessing
from mmpipe.data.transforms.draw import Draw
from mmpipe.data.transforms.images import ImageTransform, image
from mmpipe.data.transforms.jpegs import jpeg
from mmpipe.data.transforms.mixing import cutmix, mixup
from mmpipe.data.transforms.spectrograms import log_mel, spec_augment
from mmpipe.data.transforms.tables import standardise
from mmpipe.data.transforms.waves import gain, shift

__all__ = [
    'image',
    'jpeg',
    'mixup',
    'cutmix',
    'log_mel',
    'gain',
    'shift',
    'spec_augment',
    'standardise',
    'preprocessing',
    'Draw',
    'ImageTransform',
    'Preprocessing',
    'IMAGENET_MEAN',
    'IMAGENET_STD',
    'apply',
    'apply_all',
    'check',
    'select',
]
