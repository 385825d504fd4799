"""Flower, found and checked before it is used."""

from __future__ import annotations

import os
from importlib import metadata

from mmpipe.errors import ConfigError, require

# Read by Flower when it is imported; set before anything here imports it. Who wants telemetry sets it to 1 beforehand.
os.environ.setdefault('FLWR_TELEMETRY_ENABLED', '0')

KNOWN = (1, 41)
"""What the in-process grid is written for: it sets names of Flower that are not public."""


def check_flower(why: str, *, private: bool = False) -> None:
    """See that Flower is there.

    Args:
        why: what needs it, for messages.
        private: whether what it is needed for uses names that another version may lack.

    Raises:
        MissingExtraError: it is not installed.
        ConfigError: it is another version than this was written for, where that matters.

    >>> check_flower('mm.federated')
    """
    require('federated', 'flwr', why=why)
    version = metadata.version('flwr')
    if private and tuple(int(part) for part in version.split('.')[:2]) != KNOWN:
        raise ConfigError(
            f'{why} was written for Flower {".".join(map(str, KNOWN))}, and {version} is installed: '
            f"pip install 'flwr=={KNOWN[0]}.{KNOWN[1]}.*', or run a SuperLink and SuperNodes, which any version has."
        )
