"""Object stores by their URLs: which package speaks to which, and what is said where it is not installed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmpipe.errors import ConfigError, MissingExtraError

STORES = {
    's3': 's3fs', 's3a': 's3fs', 'gs': 'gcsfs', 'gcs': 'gcsfs', 'az': 'adlfs', 'abfs': 'adlfs', 'abfss': 'adlfs',
    'memory': 'fsspec',
}  # fmt: skip


def protocol_of(url: str) -> str:
    """What stands before `://`.

    >>> protocol_of('S3://bucket/a.jpg')
    's3'
    """
    return url.partition('://')[0].lower()


def file_system(url: str, options: Mapping[str, Any] | None = None, *, move: str) -> tuple[Any, str]:
    """The fsspec file system that a URL lies in, and its path there.

    Args:
        url: such as `s3://bucket/folder`.
        options: of the file system, such as `{'endpoint_url': ...}`; fsspec and the store's package take what is not
            given from their own configuration and from the environment.
        move: what to check when the store cannot be opened, for the message.

    Raises:
        MissingExtraError: the package that speaks to the store is not installed.
        ConfigError: the store cannot be opened, or nobody knows it.

    >>> file_system('Memory://bucket/a', move='check it')[1]
    '/bucket/a'
    """
    import fsspec

    try:
        return fsspec.url_to_fs(f'{protocol_of(url)}://{url.partition("://")[2]}', **dict(options or {}))
    except ImportError as error:
        package = STORES.get(protocol_of(url))
        if package is None:
            raise MissingExtraError(f"'{url}': {what(error)}") from error
        command = "pip install 'mmpipe[s3]'" if package == 's3fs' else f'pip install {package}'
        raise MissingExtraError(f"'{url}' needs {package}, which is not installed: {command}") from error
    except Exception as error:  # each store has exceptions of its own
        raise ConfigError(f"'{url}' cannot be opened ({what(error)}): {move}") from error


def what(error: BaseException) -> str:
    """An error of a store in one short line.

    >>> what(OSError('no  route'))
    'OSError: no route'
    """
    return f'{type(error).__name__}: {" ".join(str(error).split()):.200}'
