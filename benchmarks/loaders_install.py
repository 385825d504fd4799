"""The environment of the loaders that mmpipe is measured beside: one of its own, over the packages of this Python.

torch is not installed again: the environment looks for what it does not have where this Python has it. FFCV is built
on the way, and needs OpenCV and libturbojpeg with their headers (Debian: libopencv-dev libturbojpeg0-dev pkg-config);
SPDL needs the libraries of FFmpeg (libavdevice59 libavfilter8, or newer ones).
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

DEFAULT = Path.home() / '.cache' / 'mmpipe-bench'
# Mosaic's own requirement of transformers is older than what `huggingface_hub` needs that others bring; it is
# imported but not used here, so a current one is put in its place.
WANTED = (
    ['litdata'],
    ['mosaicml-streaming'],
    ['webdataset'],
    ['pylance'],
    ['datasets'],
    ['ffcv'],
    ['nvidia-dali-cuda120'],
    ['spdl'],
    ['--upgrade', 'transformers'],
    ['simplejpeg'],  # of mmpipe[jpeg]
    ['scikit-image'],  # real photos
    ['scikit-learn'],
    ['matplotlib'],
)  # fmt: skip
VERSIONS = (
    'import json, sys; from importlib import metadata\n'
    'found = {}\n'
    'for name in sys.argv[1:]:\n'
    '    try: found[name] = metadata.version(name)\n'
    '    except metadata.PackageNotFoundError: pass\n'
    'print(json.dumps(found))'
)


def python_of(env: Path) -> Path:
    """The interpreter of an environment."""
    return env / 'bin' / 'python'


def install(env: Path) -> None:
    """Make the environment, and put every loader into it that can be; says which could not."""
    if not python_of(env).exists():
        venv.create(env, with_pip=True)
    inside = subprocess.run(
        [str(python_of(env)), '-c', 'import sysconfig; print(sysconfig.get_path("purelib"))'],
        check=True, capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip
    shared = sysconfig.get_path('purelib')
    (Path(inside) / '_shared.pth').write_text(f'import site; site.addsitedir({shared!r})\n')
    for packages in WANTED:
        command = [str(python_of(env)), '-m', 'pip', 'install', '--quiet', *packages]
        done = subprocess.run(command, capture_output=True, text=True)
        said = done.stderr.strip().splitlines()[-1:] if done.returncode else []
        print(f'{packages[-1]}: {"not installed: " + " ".join(said) if said else "installed"}', file=sys.stderr)


def versions(env: Path, packages: list[str]) -> dict[str, str]:
    """Versions of packages as the environment sees them."""
    import json

    command = [str(python_of(env)), '-c', VERSIONS, *sorted(set(packages) - {''})]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
