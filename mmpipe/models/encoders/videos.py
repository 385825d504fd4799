"""Clips to features: frames by an encoder of images, and what comes after it over time."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from mmpipe.errors import ConfigError, ModelError
from mmpipe.models.contract import InputSpec, input_spec, layers_of
from mmpipe.models.encoders.parts import inside, masked_mean
from mmpipe.models.init import initialise
from mmpipe.models.standardize import Chunks

Pooling = Literal['mean', 'attention', 'gru']
POOLINGS = ('mean', 'attention', 'gru')


def video(frame_encoder: nn.Module, pooling: Pooling = 'mean') -> VideoEncoder:
    """Each frame of a clip by an encoder of images, and one vector of them all.

    Args:
        frame_encoder: an encoder of images, such as `mm.encoders.image()` or `mm.encoders.timm(...)`; its weights are
            as they come.
        pooling: 'mean'; 'attention', a mean by learned weights of each frame (Ilse et al. 2018, equation 8); 'gru', the
            last state of a recurrent layer (Cho et al. 2014), which knows the order of frames.

    Returns:
        Encoder of clips [B, T, C, H, W] as `mm.decode.video` gives them, or of a ragged field of frames with its
        lengths; frames behind the end do not count.

    Raises:
        ConfigError: another pooling.
        ModelError: the frame encoder has no `out_features`.

    >>> from mmpipe.models.encoders import image
    >>> video(image(16, width=8), 'gru')(torch.zeros(2, 5, 3, 16, 16), torch.tensor([5, 3])).shape
    torch.Size([2, 16])
    """
    return VideoEncoder(frame_encoder, pooling)


class VideoEncoder(nn.Module):
    """What `video` returns."""

    takes_lengths = True
    fit_rows = 64  # whose frames are in memory together

    def __init__(self, frame_encoder: nn.Module, pooling: str) -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise ConfigError(f'encoders.video(pooling={pooling!r}): one of {", ".join(map(repr, POOLINGS))} is meant.')
        width = getattr(frame_encoder, 'out_features', None)
        if not isinstance(width, int):
            raise ModelError(
                f'encoders.video needs an encoder of images with out_features, and {type(frame_encoder).__name__} has '
                f'none: set it to the size of what its forward returns per frame.'
            )
        self.frame_encoder = frame_encoder
        self.pooling = pooling
        self.out_features = width
        self.over_time: nn.Module | None = None
        if pooling == 'attention':
            self.over_time = initialise(nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1)))
        elif pooling == 'gru':
            self.over_time = initialise(nn.GRU(width, width, batch_first=True))

    def input_spec(self) -> InputSpec | None:
        """Any number of what the frame encoder takes."""
        found = input_spec(self.frame_encoder)
        if found is None:
            return None
        return InputSpec(
            encoder=f'encoders.video({found.encoder})', kind='a clip', shape=(None, *found.shape),
            dtypes=found.dtypes, mean=found.mean, std=found.std, size=found.size, weights=found.weights,
        )  # fmt: skip

    def layers(self) -> list[nn.Module]:
        """Those of the frame encoder, then what is over time."""
        return [*layers_of(self.frame_encoder), *([] if self.over_time is None else [self.over_time])]

    def fit_buffers(self, chunks: Chunks) -> None:
        """Let the frame encoder fit its buffers on all frames, where it has some."""
        if hasattr(self.frame_encoder, 'fit_buffers'):
            self.frame_encoder.fit_buffers(chunk.reshape(-1, *chunk.shape[-3:]) for chunk in chunks)  # type: ignore[operator]

    def forward_features(self, clips: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """[B, T, C, H, W], int64 [B] -> features of each frame [B, T, out_features]."""
        batch, longest = clips.shape[:2]
        # Behind the end of a clip its frames come again: BatchNorm then sees frames, and no padding.
        places = torch.arange(longest, device=clips.device) % lengths.clamp(min=1)[:, None]
        rows = torch.arange(batch, device=clips.device)[:, None]
        frames = clips[rows, places].flatten(0, 1)
        return self.frame_encoder(frames).reshape(batch, longest, -1)

    def forward(self, clips: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """[B, T, C, H, W], int64 [B] -> [B, out_features]; zeros for a clip of length 0."""
        features, there = self.forward_features(clips, lengths), inside(lengths, clips.shape[1])
        if self.pooling == 'gru':
            states, _ = self.over_time(features)  # type: ignore[misc]
            last = (lengths.clamp(min=1) - 1)[:, None, None].expand(-1, 1, states.shape[2])
            return states.gather(1, last)[:, 0].where(there[:, :1], 0.0)
        if self.pooling == 'attention':
            # The softmax over what is there; a clip of length 0 has a mean of nothing.
            scores = self.over_time(features)[:, :, 0].float()  # type: ignore[misc]
            weights = scores.masked_fill(~inside(lengths.clamp(min=1), clips.shape[1]), -torch.inf).softmax(1)
            weights = weights.where(there, 0.0).to(features.dtype)
            return (features * weights[:, :, None]).sum(1)
        return masked_mean(features, there)
