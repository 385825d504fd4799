"""Encoders: one `nn.Module` per modality, from a field's batch tensor to features.

The contract: `out_features: int`, and `forward(values [B, ...]) -> [B, out_features]`. Any module that keeps it is an
encoder; nothing needs to be registered. What an encoder may have besides:

| name                      | what for                                                                              |
|---------------------------|---------------------------------------------------------------------------------------|
| `input_spec()`            | what it takes, checked before the first step (`mmpipe.models.contract.InputSpec`)     |
| `forward_features(...)`   | what lies before pooling, such as a map per image, for tasks that want more than a    |
|                           | vector                                                                                |
| `layers()`                | its layers from input to output, for learning rates, unfreezing and checkpointing     |
| `takes_lengths = True`    | it is also given int64 `[B]` lengths of a ragged field (the full ones of any other)   |
| `fit_buffers(chunks)`     | buffers that it fits once on the present values of the training rows                  |
|                           | (`mmpipe.models.standardize`), of at most `fit_rows` rows at a time where it says so  |
"""

from mmpipe.models.encoders.images import ImageEncoder, TimmEncoder, TorchvisionEncoder, image, timm, torchvision
from mmpipe.models.encoders.pretrained import weights_follow
from mmpipe.models.encoders.sounds import SpectrogramEncoder, WaveformEncoder, spectrogram, waveform
from mmpipe.models.encoders.tables import CategoryEncoder, TabularEncoder, category, tabular
from mmpipe.models.encoders.texts import TokensEncoder, tokens
from mmpipe.models.encoders.vectors import SequenceEncoder, VectorEncoder, sequence, vector
from mmpipe.models.encoders.videos import VideoEncoder, video

__all__ = [
    'CategoryEncoder',
    'ImageEncoder',
    'SequenceEncoder',
    'SpectrogramEncoder',
    'TabularEncoder',
    'TimmEncoder',
    'TokensEncoder',
    'TorchvisionEncoder',
    'VectorEncoder',
    'VideoEncoder',
    'WaveformEncoder',
    'category',
    'image',
    'sequence',
    'spectrogram',
    'tabular',
    'timm',
    'tokens',
    'torchvision',
    'vector',
    'video',
    'waveform',
    'weights_follow',
]
