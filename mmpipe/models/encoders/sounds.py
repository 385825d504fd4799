"""Sound to features: log-mel spectrograms that are there, or waveforms, of which they are made on the device."""

from __future__ import annotations

import torch
from torch import nn

from mmpipe.data.transforms.spectrograms import LogMel, log_mel
from mmpipe.models.contract import InputSpec
from mmpipe.models.encoders.parts import check_sizes, groups, inside, masked_mean, stages
from mmpipe.models.init import initialise
from mmpipe.models.standardize import Chunks, Standardize

FITTED_AT_ONCE = 1 << 20  # samples of which a spectrogram is made to fit on


def spectrogram(n_mels: int, out_features: int = 128, *, width: int = 32) -> SpectrogramEncoder:
    """A small convolutional network for log-mel spectrograms, which standardises each mel band.

    Args:
        n_mels: mel bands.
        out_features: size of the features.
        width: channels of the first of its four stages.

    Returns:
        Encoder of float [B, n_mels, T], any T from 8 on.

    >>> spectrogram(64, 16)(torch.zeros(2, 64, 100)).shape
    torch.Size([2, 16])
    """
    return SpectrogramEncoder(n_mels, out_features, width=width)


def waveform(
    sample_rate: int = 16_000, out_features: int = 128, *, n_mels: int = 64, width: int = 32
) -> WaveformEncoder:
    """Samples of sound: their log-mel spectrogram, made on the device, and a small convolutional network for it.

    What is behind the end of a row takes no part: a row has the same features in every batch.

    Args:
        sample_rate: in Hz. What is decoded (`mm.decode.audio(rate=...)`) or recorded in the snapshot
            (`mm.field.ragged(..., rate=...)`) is compared with it before the first step.
        out_features: size of the features.
        n_mels: mel bands, from 125 Hz to 7500 Hz or, where that is less, half the rate.
        width: channels of the first of its four stages.

    Returns:
        Encoder of float [B, L] with lengths in samples, nominally in [-1, 1].

    Raises:
        ConfigError: sizes below 1, or a rate that is too low for mel bands.

    >>> waveform(8000, 16, width=8)(torch.zeros(2, 4000), torch.tensor([4000, 100])).shape
    torch.Size([2, 16])
    """
    return WaveformEncoder(sample_rate, out_features, n_mels=n_mels, width=width)


class SpectrogramEncoder(nn.Module):
    """What `spectrogram` returns."""

    def __init__(self, n_mels: int, out_features: int, *, width: int) -> None:
        super().__init__()
        check_sizes('encoders.spectrogram', n_mels=n_mels, out_features=out_features, width=width)
        self.n_mels = n_mels
        self.out_features = out_features
        self.standardize = Standardize(n_mels)
        self.stages = stages(1, width)
        self.project = initialise(nn.Linear(width * 8, out_features))

    def input_spec(self) -> InputSpec:
        """Spectrograms of any length."""
        return InputSpec(
            encoder=f'encoders.spectrogram({self.n_mels})', kind='a spectrogram', shape=(self.n_mels, None),
            dtypes=('number',),
        )  # fmt: skip

    def fit_buffers(self, chunks: Chunks) -> None:
        """Fit mean and deviation per mel band, over rows and time."""
        self.standardize.fit_buffers(chunk.swapaxes(1, 2).reshape(-1, chunk.shape[1]) for chunk in chunks)

    def forward_features(self, mels: torch.Tensor) -> torch.Tensor:
        """[B, n_mels, T] -> maps [B, 8 * width, n_mels / 8, T / 8]."""
        return self.stages(self.standardize(mels.transpose(1, 2)).transpose(1, 2)[:, None])

    def forward(self, mels: torch.Tensor) -> torch.Tensor:
        """[B, n_mels, T] -> [B, out_features]."""
        return self.project(self.forward_features(mels).mean((2, 3)))


class WaveformEncoder(nn.Module):
    """What `waveform` returns."""

    takes_lengths = True
    fit_rows = 64  # whose samples are in memory together

    def __init__(self, sample_rate: int, out_features: int, *, n_mels: int, width: int) -> None:
        super().__init__()
        check_sizes('encoders.waveform', sample_rate=sample_rate, out_features=out_features, n_mels=n_mels, width=width)
        self.out_features = out_features
        self.sample_rate = sample_rate
        self.spectra = LogMelSpectra(log_mel(sample_rate, n_mels, highest_hz=min(7500.0, sample_rate / 2)))
        self.standardize = Standardize(n_mels)
        self.stages = nn.ModuleList()
        for stage in range(4):
            ins, outs = 1 if stage == 0 else width * 2 ** (stage - 1), width * 2**stage
            convolution = nn.Conv2d(ins, outs, 3, stride=2 if stage else 1, padding=1, bias=False)
            self.stages.append(initialise(nn.Sequential(convolution, FrameNorm(outs), nn.GELU())))
        self.project = initialise(nn.Linear(width * 8, out_features))

    def input_spec(self) -> InputSpec:
        """Samples of one rate, any number of them."""
        return InputSpec(
            encoder=f'encoders.waveform({self.sample_rate})', kind='a waveform', shape=(None,), rate=self.sample_rate
        )

    def layers(self) -> list[nn.Module]:
        """The stages, and the projection."""
        return [*self.stages, self.project]

    @torch.no_grad()
    def fit_buffers(self, chunks: Chunks) -> None:
        """Fit mean and deviation per mel band, over rows and time."""
        at: torch.Tensor = self.spectra.window
        rows = (each.reshape(-1) for chunk in chunks for each in (chunk if chunk.ndim > 1 else chunk[None]))
        pieces = (row[start : start + FITTED_AT_ONCE] for row in rows for start in range(0, len(row), FITTED_AT_ONCE))
        mels = (self.spectra(torch.as_tensor(piece)[None].to(at.device)) for piece in pieces)
        self.standardize.fit_buffers(mel[0].T.cpu().numpy() for mel in mels)

    def forward_features(self, waves: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[B, L], int64 [B] in samples -> (features over time [B, T, 8 * width], int64 [B] in frames)."""
        mels = self.spectra(waves)
        values = self.standardize(mels.transpose(1, 2)).transpose(1, 2)[:, None]
        lengths = (lengths + self.spectra.settings.hop - 1) // self.spectra.settings.hop
        for number, stage in enumerate(self.stages):
            # As zeros, what is behind the end is what a convolution pads with anyway.
            values = stage(values.where(inside(lengths, values.shape[-1])[:, None, None], 0.0))
            lengths = (lengths + 1) // 2 if number else lengths
        return values.mean(2).transpose(1, 2), lengths

    @torch.compiler.disable  # inductor of torch 2.14 fails on a Fourier transform and maps of any length
    def forward(self, waves: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """[B, L], int64 [B] in samples -> [B, out_features]."""
        features, lengths = self.forward_features(waves, lengths)
        return self.project(masked_mean(features, inside(lengths, features.shape[1])))


class LogMelSpectra(nn.Module):
    """What `mm.transforms.log_mel` computes, as a part of a model: its constants go where the model goes.

    Args:
        settings: of the transform.

    >>> LogMelSpectra(log_mel(n_mels=8))(torch.zeros(2, 1600)).shape
    torch.Size([2, 8, 10])
    """

    window: torch.Tensor
    bands: torch.Tensor

    def __init__(self, settings: LogMel) -> None:
        super().__init__()
        import torchaudio.functional

        self.settings = settings
        self.points = 1 << (settings.window - 1).bit_length()
        here = torch.get_default_device()
        with torch.device('cpu'):  # torchaudio looks at values of the bands
            window = torch.hann_window(settings.window)
            bands = torchaudio.functional.melscale_fbanks(
                self.points // 2 + 1, settings.lowest_hz, settings.highest_hz, settings.n_mels, settings.rate
            )
        # Not persistent: constants, of which a checkpoint need not speak.
        self.register_buffer('window', window.to(here), persistent=False)
        self.register_buffer('bands', bands.to(here), persistent=False)

    def forward(self, waves: torch.Tensor) -> torch.Tensor:
        """[B, L] -> float32 [B, n_mels, T], one frame per hop or part of it."""
        hop = self.settings.hop
        frames = (waves.shape[1] + hop - 1) // hop
        with torch.autocast(waves.device.type, enabled=False):  # a Fourier transform wants float32
            padded = nn.functional.pad(waves.float(), (0, frames * hop - waves.shape[1]))
            spectra = torch.stft(
                padded, self.points, hop, self.settings.window, self.window, pad_mode='constant', return_complex=True
            ).abs()
            # A centred transform has one frame more than hops; the last is half padding.
            mels = (spectra[..., :frames].transpose(1, 2) @ self.bands).transpose(1, 2)
            return (mels + self.settings.offset).log()


class FrameNorm(nn.Module):
    """GroupNorm of each frame by itself, so that no frame depends on how many others there are.

    Args:
        channels: of the maps.

    >>> FrameNorm(4)(torch.rand(2, 4, 8, 5)).shape
    torch.Size([2, 4, 8, 5])
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups(channels), channels)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """[B, C, F, T] -> the same shape."""
        batch, channels, bands, frames = maps.shape
        rows = maps.permute(0, 3, 1, 2).reshape(batch * frames, channels, bands)
        return self.norm(rows).reshape(batch, frames, channels, bands).permute(0, 2, 3, 1)
