"""Rows of tables: one word of a vocabulary, or numbers and categories together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from mmpipe.errors import ConfigError
from mmpipe.models.contract import InputSpec
from mmpipe.models.encoders.parts import check_sizes
from mmpipe.models.encoders.texts import check_ids
from mmpipe.models.init import initialise
from mmpipe.models.standardize import Chunks, Standardize


def category(classes: int, out_features: int = 16) -> CategoryEncoder:
    """One word of a vocabulary as an input: a learned vector per word.

    Args:
        classes: size of the vocabulary.
        out_features: size of the features.

    Returns:
        Encoder of a label field, int64 [B].

    >>> category(3, 4)(torch.tensor([0, 2])).shape
    torch.Size([2, 4])
    """
    return CategoryEncoder(classes, out_features)


def tabular(
    numbers: int = 0,
    categories: Sequence[int] = (),
    out_features: int = 128,
    *,
    hidden: int | None = None,
    layers: int = 2,
    dropout: float = 0.1,
) -> TabularEncoder:
    """The numbers and categories of a table's row in one vector: an MLP, with a learned vector per category.

    The field is a vector of the numbers, and behind them the category of each column as its index. Columns that lack
    values in some rows are better fields of their own (`vector`, `category`), which are missing by themselves.

    Args:
        numbers: how many numbers come first; they are standardised.
        categories: how many categories each of the following columns has. An index outside of them stands for "any
            other", which has a vector of its own.
        out_features: size of the features.
        hidden: width of the layers; `out_features` when None.
        layers: of the MLP, at least 1, each with GELU and dropout.
        dropout: probability in [0, 1).

    Returns:
        Encoder of numbers [B, numbers + len(categories)] of any dtype.

    Raises:
        ConfigError: sizes below 1, or neither numbers nor categories.

    >>> tabular(2, [3, 40], 16)(torch.tensor([[0.5, 12.0, 2.0, 39.0], [0.1, 7.0, 0.0, -1.0]])).shape
    torch.Size([2, 16])
    """
    return TabularEncoder(
        numbers, tuple(categories), out_features, hidden=hidden or out_features, layers=layers, dropout=dropout
    )


class CategoryEncoder(nn.Module):
    """What `category` returns."""

    def __init__(self, classes: int, out_features: int) -> None:
        super().__init__()
        check_sizes('encoders.category', classes=classes, out_features=out_features)
        self.classes = classes
        self.out_features = out_features
        self.embedding = nn.Embedding(classes, out_features)

    def input_spec(self) -> InputSpec:
        """One index."""
        return InputSpec(encoder=f'encoders.category({self.classes})', kind='a label', shape=(), dtypes=('integer',))

    def fit_buffers(self, chunks: Chunks) -> None:
        """Check that no training row holds a word beyond `classes`; there is nothing to fit."""
        check_ids(chunks, self.classes, f'encoders.category({self.classes})', 'the vocabulary')

    def forward(self, labels: torch.Tensor) -> torch.Tensor:
        """int64 [B] -> [B, out_features]."""
        return self.embedding(labels)


class TabularEncoder(nn.Module):
    """What `tabular` returns."""

    def __init__(
        self, numbers: int, categories: tuple[int, ...], out_features: int, *, hidden: int, layers: int, dropout: float
    ) -> None:
        super().__init__()
        if numbers < 0 or not (numbers or categories):
            raise ConfigError(
                f'encoders.tabular(numbers={numbers}, categories={list(categories)}): at least one column is needed.'
            )
        check_sizes(
            'encoders.tabular', out_features=out_features, hidden=hidden, layers=layers,
            categories=min(categories, default=1),
        )  # fmt: skip
        self.numbers, self.categories, self.out_features = numbers, categories, out_features
        self.standardize = Standardize(numbers) if numbers else None
        # Sizes as fastai gives them (tabular/model.py, emb_sz_rule); one more for all that is outside.
        widths = [min(600, round(1.6 * count**0.56)) for count in categories]
        self.embeddings = nn.ModuleList(
            nn.Embedding(count + 1, wide) for count, wide in zip(categories, widths, strict=True)
        )
        width = numbers + sum(widths)
        parts: list[nn.Module] = []
        for number in range(layers):
            outs = out_features if number == layers - 1 else hidden
            parts += [nn.Linear(width, outs), nn.GELU(), nn.Dropout(dropout)]
            width = outs
        self.network = initialise(nn.Sequential(*parts))

    def input_spec(self) -> InputSpec:
        """Numbers, then indices."""
        size = self.numbers + len(self.categories)
        return InputSpec(
            encoder=f'encoders.tabular({self.numbers}, {list(self.categories)})', kind='a row of a table',
            shape=(size,), dtypes=('number',), flat=True,
        )  # fmt: skip

    def layers(self) -> list[nn.Module]:
        """The embeddings together, then the linear layers."""
        linear: list[nn.Module] = [part for part in self.network if isinstance(part, nn.Linear)]
        return [self.embeddings, *linear] if self.categories else linear

    def fit_buffers(self, chunks: Chunks) -> None:
        """Fit mean and deviation per number."""
        if self.standardize is not None:
            self.standardize.fit_buffers(
                np.asarray(chunk).reshape(len(chunk), -1)[:, : self.numbers] for chunk in chunks
            )

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """[B, numbers + len(categories)] -> [B, out_features]."""
        values = values.reshape(len(values), self.numbers + len(self.categories))
        parts = [] if self.standardize is None else [self.standardize(values[:, : self.numbers])]
        for position, (count, embedding) in enumerate(zip(self.categories, self.embeddings, strict=True)):
            index = values[:, self.numbers + position]
            known = (index >= 0) & (index < count)
            parts.append(embedding(index.where(known, count).long()))
        return self.network(torch.cat(parts, dim=1))
