"""Where and from what a run was trained: the commit of its code, the machine, and who set which value."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

GIT_S = 10.0  # that git may take


def git_state(folder: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The commit that a folder's files are of.

    Returns:
        {'commit', 'branch' (None where none is checked out), 'dirty': whether tracked files differ from the commit};
        None outside a repository, and where there is no git.

    >>> git_state('/') is None
    True
    """

    def said(*arguments: str) -> str:
        command = ['git', '-C', str(folder), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=GIT_S, check=True)
        return done.stdout.strip()

    try:
        commit = said('rev-parse', 'HEAD')
        branch = said('branch', '--show-current') or None
        dirty = bool(said('status', '--porcelain', '--untracked-files=no'))
    except (OSError, subprocess.SubprocessError):
        return None
    return {'commit': commit, 'branch': branch, 'dirty': dirty}


def machine(device: str) -> dict[str, Any]:
    """What a run's speed, and the last bits of its results, depend on besides its code.

    Args:
        device: where it trains, in words.

    >>> machine('cpu')['device']
    'cpu'
    """
    return {
        'host': platform.node(),
        'system': platform.platform(),
        'processor': _processor(),
        'cores': os.cpu_count(),
        'device': device,
    }


def _processor() -> str:
    try:
        lines = Path('/proc/cpuinfo').read_text(encoding='utf-8').splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    named = (line.partition(':')[2].strip() for line in lines if line.startswith('model name'))
    return next(named, platform.machine())


def code_folder(factory: Mapping[str, Any] | None) -> Path:
    """The folder of the file that makes a run's model; the working directory where that is not known."""
    while factory is not None and factory.get('kind') == 'transfer':
        factory = factory['base']
    file = None if factory is None else factory.get('file')
    return Path(file).parent if file and Path(file).is_file() else Path.cwd()
