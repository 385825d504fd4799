"""Text to token ids, by any tokenizer of the Hugging Face `tokenizers` package."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmpipe.errors import ConfigError, DataError, require

if TYPE_CHECKING:
    import tokenizers


def tokens(
    tokenizer: str | os.PathLike[str] | tokenizers.Tokenizer, *, max_tokens: int | None = None, special: bool = True
) -> TokensDecoder:
    """Turn a `string` field (captions, Markdown, whole documents) into int64 token ids, padded in the batch.

    Args:
        tokenizer: a `tokenizer.json`, as models are published with, or a `tokenizers.Tokenizer`. It is copied: its own
            truncation and padding do not count here, and later changes to it do not either. It goes to worker
            processes by value, so that all of them have the same.
        max_tokens: ids kept of each text, its beginning; the tokenizer's special tokens are among them. None for all.
        special: add the special tokens that the tokenizer puts around a text.

    Returns:
        A decoder to int64 `[length]`; `[0]` for a text without tokens.

    Raises:
        ConfigError: there is no such file, it is no tokenizer, or `max_tokens` cannot hold the special tokens.
        MissingExtraError: the package tokenizers is not installed.

    >>> import tokenizers
    >>> words = tokenizers.models.WordLevel({'a': 0, 'red': 1, 'car': 2, '?': 3}, unk_token='?')
    >>> small = tokenizers.Tokenizer(words)
    >>> small.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    >>> tokens(small, max_tokens=3).decode(b'a red car race', np.float32([]), None)
    array([0, 1, 2])
    """
    return TokensDecoder(tokenizer, max_tokens=max_tokens, special=special)


class TokensDecoder:
    """What `mm.decode.tokens` makes; see there. Serves any thread, and pickles with its tokenizer inside.

    Attributes:
        shape: None, texts differ in length.
        rest: ().
        dtype: 'int64'.
        draws: 0.
    """

    shape: tuple[int, ...] | None = None
    rest: tuple[int, ...] = ()
    dtype = 'int64'
    draws = 0

    def __init__(
        self,
        tokenizer: str | os.PathLike[str] | tokenizers.Tokenizer,
        *,
        max_tokens: int | None = None,
        special: bool = True,
    ) -> None:
        require('text', 'tokenizers', why='mm.decode.tokens')
        self.max_tokens = max_tokens
        self.special = special
        self._tokenizer = _copied(tokenizer)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        if max_tokens is not None:
            added = self._tokenizer.num_special_tokens_to_add(is_pair=False) if special else 0
            if max_tokens != int(max_tokens) or max_tokens < max(1, added):
                raise ConfigError(
                    f'mm.decode.tokens(max_tokens={max_tokens}): a whole number of at least {max(1, added)} is needed'
                    + (f', since the tokenizer adds {added} special tokens to each text.' if added else '.')
                )
            self._tokenizer.enable_truncation(max_tokens)

    def decode(self, data: bytes | str, draws: np.ndarray, out: np.ndarray | None) -> np.ndarray:
        """Ids of one text; see `mmpipe.decode.Decoder`.

        Args:
            data: the text, or its UTF-8 bytes.
            draws: not used.
            out: not used, since texts differ in length.

        Raises:
            DataError: the bytes are not UTF-8, or the tokenizer cannot take the text.
        """
        try:
            text = data if isinstance(data, str) else bytes(data).decode()
        except UnicodeDecodeError as error:
            raise DataError(f'the text is not UTF-8: {error}. Store it as a string.') from error
        try:
            # `encode` holds Python's lock while it works; `encode_batch_fast` does not, and counts no offsets.
            [encoding] = self._tokenizer.encode_batch_fast([text], add_special_tokens=self.special)
        except Exception as error:
            raise DataError(f'the tokenizer cannot take the text: {error}.') from error
        return np.array(encoding.ids, np.int64)


def _copied(tokenizer: str | os.PathLike[str] | tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    import tokenizers

    if isinstance(tokenizer, tokenizers.Tokenizer):
        try:
            return tokenizers.Tokenizer.from_str(tokenizer.to_str())
        except Exception as error:
            raise ConfigError(
                f'mm.decode.tokens: this tokenizer cannot be copied: {error}. '
                f'Parts written in Python do not go to worker processes; use those of the package.'
            ) from error
    if not isinstance(tokenizer, str | os.PathLike):
        raise ConfigError(
            f'mm.decode.tokens takes the path of a tokenizer.json or a tokenizers.Tokenizer, '
            f'not a {type(tokenizer).__name__}. The tokenizer of a transformers model has one: '
            f'`tokenizer.backend_tokenizer`.'
        )
    path = Path(tokenizer)
    if not path.is_file():
        raise ConfigError(f'mm.decode.tokens: there is no file {path}. Give the path of a tokenizer.json.')
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:
        raise ConfigError(f'mm.decode.tokens: {path} is no tokenizer of the package tokenizers: {error}.') from error
