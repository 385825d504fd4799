"""Numbers by mean and standard deviation of the training split."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from mmpipe.errors import ConfigError, DataError
from mmpipe.shards import Rows

CHUNK_BYTES = 32 << 20  # of stored values that are looked at together


def standardise(rows: Rows, fields: Iterable[str] | None = None) -> dict[str, Standardise]:
    """Subtract the mean and divide by the standard deviation of the rows, per feature.

    Read once, in chunks, without nulls; sums in float64. The encoders of `mm.encoders` that take numbers standardise by
    themselves: this is for models of your own.

    Args:
        rows: the training rows, such as `snapshot.split('train')`; give the result to the validation loader too.
        fields: names of scalar, tensor or ragged fields; all scalar fields of floats when None.

    Returns:
        {field: transform}, for `transforms=`.

    Raises:
        ConfigError: a field that holds no numbers.
        DataError: no such field, or values that are not finite.

    >>> from mmpipe.data.collate import example_rows
    >>> made = standardise(example_rows(), ['price'])
    >>> made['price'](torch.tensor([1.5, 3.5]))
    tensor([0., 2.])
    """
    # Imported here: the encoders, which lie beside it, import the transforms.
    from mmpipe.data.seen import present_chunks
    from mmpipe.models.standardize import moments

    if fields is None:
        fields = [name for name, field in rows.fields.items() if field.kind == 'scalar' and field.dtype[:5] == 'float']
    made = {}
    for name in fields:
        field = rows.fields.get(name)
        if field is None:
            raise DataError(
                f'transforms.standardise: snapshot {rows.snapshot.id} has no field {name!r}; it has '
                f'{", ".join(rows.fields)}. Name one of these.'
            )
        if field.kind not in ('scalar', 'tensor', 'ragged'):
            raise ConfigError(
                f'transforms.standardise: field {name!r} holds {field.kind}, which has no mean. Leave it out.'
            )
        size = max(1, min(4096, CHUNK_BYTES // (field.bytes_per_row or CHUNK_BYTES // 64)))
        with np.errstate(invalid='ignore'):  # infinite values are reported below
            mean, std, _ = moments(present_chunks(rows, name, size=size))
        if not (np.isfinite(mean).all() and np.isfinite(std).all()):
            raise DataError(
                f'transforms.standardise: field {name!r} of snapshot {rows.snapshot.id} holds NaN or infinite values. '
                f'Store nulls instead.'
            )
        made[name] = Standardise(mean, std, takes_lengths=field.kind == 'ragged')
    return made


class Standardise:
    """What `standardise` returns for a field. A feature that never varied is divided by 1.

    Args:
        mean: of each feature, in the shape of a value; ragged: in that behind its first dimension.
        std: standard deviation to it.
        takes_lengths: for a ragged field, whose padding stays 0.

    Attributes:
        mean: as given, float64.
        std: as given, float64, with 1 in place of 0.

    >>> Standardise(np.array([1.0, 5.0]), np.array([2.0, 0.0]))(torch.tensor([[5.0, 6.0]]))
    tensor([[2., 1.]])
    """

    takes_mask = True

    def __init__(self, mean: np.ndarray, std: np.ndarray, *, takes_lengths: bool = False) -> None:
        self.mean = np.asarray(mean, dtype=np.float64)
        self.std = np.where(np.asarray(std) > 0, std, 1.0).astype(np.float64)
        self.takes_lengths = takes_lengths
        self._sent: dict[tuple[torch.device, torch.dtype], tuple[torch.Tensor, torch.Tensor]] = {}

    def made_by(self) -> tuple[type[Standardise], dict[str, Any]]:
        """See `mmpipe.runs.described`."""
        return Standardise, {'mean': self.mean, 'std': self.std, 'takes_lengths': self.takes_lengths}

    def __repr__(self) -> str:
        return f'Standardise(shape={list(self.mean.shape)}, takes_lengths={self.takes_lengths})'

    def __call__(
        self, values: torch.Tensor, *, mask: torch.Tensor | None = None, lengths: torch.Tensor | None = None
    ) -> Any:
        """Transform one batch.

        Args:
            values: numbers `[B, ...]`; ragged: `[B, L, ...]`.
            mask: bool `[B]`, True where the value is there; the others become 0, which is the mean.
            lengths: int64 `[B]` of a ragged field.

        Returns:
            float32 of the same shape; for a ragged field a pair of it and the lengths.

        Raises:
            DataError: values of another shape.
        """
        if values.shape[values.ndim - self.mean.ndim :] != self.mean.shape or values.ndim <= self.mean.ndim:
            raise DataError(
                f'transforms.standardise: mean and deviation are of values {list(self.mean.shape)}, but the batch is '
                f'{list(values.shape)}. Give each field its own entry of the result.'
            )
        # Large numbers with small differences, such as times in seconds, keep these only in float64.
        wide = values.dtype in (torch.float64, torch.int64) and values.device.type != 'mps'
        mean, std = self._constants(values.device, torch.float64 if wide else torch.float32)
        done = ((values - mean) / std).float()
        if mask is not None:
            done = done.where(mask.reshape(-1, *[1] * (values.ndim - 1)), 0.0)
        if not self.takes_lengths:
            return done
        if lengths is not None:
            known = torch.arange(values.shape[1], device=values.device) < lengths[:, None]
            done = done.where(known.reshape(*known.shape, *[1] * (values.ndim - 2)), 0.0)
        return done, lengths

    def _constants(self, device: torch.device, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Sent to a device once."""
        found = self._sent.get((device, dtype))
        if found is None:
            found = torch.as_tensor(self.mean).to(device, dtype), torch.as_tensor(self.std).to(device, dtype)
            self._sent[device, dtype] = found
        return found
