"""Clips from their frames: Pixeltable's `frame_iterator` gives frames, `embed_frame` vectors, `mean_pool` one."""

from __future__ import annotations

import numpy as np
import pixeltable as pxt
import pixeltable.type_system as ts
from pixeltable import exprs

from mmpipe.errors import FieldError
from mmpipe.fingerprints import loads
from mmpipe.functions import models
from mmpipe.functions.caching import cached
from mmpipe.functions.counting import counted
from mmpipe.functions.image import image_vector, vector_type


@pxt.udf
@cached
@counted
@loads(models.image_files)
async def embed_frame(
    frame: pxt.Image, *, model: str = models.DEFAULT_IMAGE_MODEL, size: int = 160, fit: str = 'crop'
) -> pxt.Array[(None,), np.float32]:
    """`embed_image` for a frame of a video, under a name of its own, so that frames are counted by themselves.

    Args:
        frame: a frame, as `frame_iterator` gives it.
        model: a timm model, as in `embed_image`.
        size: edge in pixels that the backbone sees.
        fit: 'crop' or 'pad', as in `pixels`.

    Returns:
        float32 (features,); (1280,) for the packaged model.

    Raises:
        ConfigError: `size` or `fit` cannot work; raised when the column is declared.
        ModelError: as in `embed_image`.

    >>> import asyncio, PIL.Image
    >>> asyncio.run(embed_frame.py_fn(PIL.Image.new('RGB', (40, 20), 'red'), size=64)).shape
    (1280,)
    """
    return await image_vector(frame, model, size, fit)


@embed_frame.conditional_return_type
def _(model: str, size: int, fit: str) -> ts.ColumnType:
    return vector_type(model, size, fit)


@pxt.uda
class mean_pool(pxt.Aggregator):
    """The mean of one group's vectors: `frames.group_by(frames.sku).select(frames.sku, v=mean_pool(frames.vector))`.

    Args:
        vector: array of any shape, the same in all rows of a group; nulls are skipped. Sums are kept in float64, so
            the result does not depend on the order of the rows beyond float32's last bit.

    Returns:
        float32 of the vectors' shape; null for a group without any vector.

    Raises:
        FieldError: two vectors of a group differ in shape.

    >>> pool = mean_pool.agg_class()
    >>> pool.update(np.array([1.0, 2.0], np.float32)); pool.update(np.array([3.0, 6.0], np.float32))
    >>> pool.value()
    array([2., 4.], dtype=float32)
    """

    def __init__(self) -> None:
        self.sum: np.ndarray | None = None
        self.count = 0

    def update(self, vector: pxt.Array) -> None:
        """Take one row in."""
        if self.sum is None:
            self.sum = np.zeros(vector.shape)
        elif self.sum.shape != vector.shape:
            raise FieldError(
                f'mean_pool: one group holds vectors of shapes {self.sum.shape} and {vector.shape}. '
                f'Compute the pooled column with one function and one set of parameters.'
            )
        self.sum += vector
        self.count += 1

    def value(self) -> pxt.Array | None:
        """The mean of the rows so far."""
        return None if self.sum is None else (self.sum / self.count).astype(np.float32)


@mean_pool.conditional_return_type  # type: ignore[attr-defined]  # the decorator makes it a function
def _(vector: exprs.Expr) -> ts.ColumnType:
    shape = getattr(vector.col_type, 'shape', None)
    if shape is None:
        return ts.ArrayType(nullable=True)
    return ts.ArrayType(shape, np.dtype('float32'), nullable=True)
