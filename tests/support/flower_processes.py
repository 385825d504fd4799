"""A SuperLink and SuperNodes as processes of their own on loopback, over TLS with certificates made for the test, or
without, for a relay that writes down what they say."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
APP = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "shop"
version = "1.0.0"
description = "A federation of shops"
license = "Apache-2.0"
dependencies = ["flwr>=1.41"]

[tool.flwr.app]
publisher = "mmpipe"

[tool.flwr.app.components]
serverapp = "shop_app:server"
clientapp = "shop_app:client"
"""


class Deployment:
    """One SuperLink and its SuperNodes; all are ended, and waited for, when the context is left.

    Args:
        folder: for certificates, configuration and logs.
        code: of the module with `client` and `server`.
        secure: whether they speak TLS.
    """

    def __init__(self, folder: Path, code: str, *, secure: bool = True) -> None:
        self.folder = folder
        self.secure = secure
        self.app = folder / 'app'
        self.app.mkdir(parents=True)
        (self.app / 'pyproject.toml').write_text(APP)
        (self.app / 'shop_app.py').write_text(code)
        self.ports = free_ports(2)
        self.authority, self.certificate, self.key = make_certificates(folder)
        home = folder / 'flower'
        home.mkdir()
        (home / 'config.toml').write_text(
            f'[superlink]\ndefault = "test"\n\n[superlink.test]\naddress = "127.0.0.1:{self.ports[0]}"\n'
            + (f'root-certificates = "{self.authority}"\n' if secure else 'insecure = true\n')
        )
        self.environment = {
            **os.environ,
            'FLWR_HOME': str(home),
            'FLWR_TELEMETRY_ENABLED': '0',
            'FLWR_DISABLE_UPDATE_CHECK': '1',
            'OMP_NUM_THREADS': '1',
            'PYTHONPATH': str(ROOT),
            'PATH': f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}',
        }
        self.processes: list[subprocess.Popen[bytes]] = []

    def link(self) -> subprocess.Popen[bytes]:
        """Start the SuperLink."""
        files = '--ssl-certfile', self.certificate, '--ssl-keyfile', self.key, '--ssl-ca-certfile', self.authority
        return self._start(
            'link', 'flower-superlink', *(files if self.secure else ['--insecure']), '--port', str(self.ports[0]),
            '--disable-runtime-dependency-installation',
        )  # fmt: skip

    def node(
        self, number: int, root: Path | str, *, authority: Path | None = None, through: int | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a SuperNode over a snapshot root.

        Args:
            number: of its log.
            root: that it is told.
            authority: whose certificate it trusts; the deployment's when None.
            through: port of a relay to the SuperLink.
        """
        trust = ['--root-certificates', authority or self.authority] if self.secure else ['--insecure']
        return self._start(
            f'node-{number}', 'flower-supernode', '--superlink', f'127.0.0.1:{through or self.ports[0]}', *trust,
            '--node-config', f'root="{root}"', '--port', str(free_ports(1)[0]),
        )  # fmt: skip

    def submit(self) -> int:
        """Have the app run.

        Returns:
            Flower's id of the run.
        """
        deadline = time.monotonic() + 60
        while True:
            done = self._flwr('run', str(self.app), 'test', '--format', 'json')
            if done.get('success'):
                return int(done['run-id'])
            assert time.monotonic() < deadline, f'{done}\n{self.log("link")}'
            time.sleep(0.5)

    def status(self, run: int) -> str:
        """What Flower says of a run, such as 'finished:completed'."""
        found = self._flwr('ls', 'test', '--run-id', str(run), '--format', 'json')
        return found['runs'][0]['status'] if found.get('runs') else ''

    def wait(self, run: int, *, seconds: float) -> str:
        """Until a run has ended."""
        deadline = time.monotonic() + seconds
        while not (status := self.status(run)).startswith('finished'):
            assert time.monotonic() < deadline, f'{status} after {seconds} s\n{self.log("link")}'
            time.sleep(2)  # asking takes a second of a core
        return status

    def log(self, name: str) -> str:
        """What a process said."""
        return (self.folder / f'{name}.log').read_text(errors='replace')

    def _flwr(self, *arguments: str) -> dict:
        done = subprocess.run(
            ['flwr', *arguments], env=self.environment, capture_output=True, text=True, timeout=60, check=False
        )
        try:
            return json.loads(done.stdout)
        except json.JSONDecodeError:
            return {'success': False, 'said': done.stdout + done.stderr}

    def _start(self, name: str, *command: object) -> subprocess.Popen[bytes]:
        with (self.folder / f'{name}.log').open('ab') as log:
            process = subprocess.Popen(
                [str(part) for part in command],
                env=self.environment,
                cwd=self.folder,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # its children are ended with it
            )
        self.processes.append(process)
        return process

    def end(self) -> None:
        """End all, children included."""
        for process in reversed(self.processes):
            kill_group(process)


@contextlib.contextmanager
def deployment(folder: Path, code: str, *, secure: bool = True) -> Iterator[Deployment]:
    """A SuperLink and whatever SuperNodes are added to it."""
    found = Deployment(folder, code, secure=secure)
    try:
        found.link()
        yield found
    finally:
        found.end()


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and the apps that it runs, at once."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=30)


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(('127.0.0.1', 0))
        return [each.getsockname()[1] for each in sockets]


def make_certificates(folder: Path) -> tuple[Path, Path, Path]:
    """An authority of its own, and a certificate of it for 127.0.0.1.

    Returns:
        Files of the authority's certificate, the server's certificate, and its key.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    def named(name: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])

    now = datetime.datetime.now(datetime.UTC)
    keys = {what: ec.generate_private_key(ec.SECP256R1()) for what in ('authority', 'server')}
    made = {}
    for what, key in keys.items():
        builder = (
            x509.CertificateBuilder()
            .subject_name(named(what))
            .issuer_name(named('authority'))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=what == 'authority', path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(keys['authority'].public_key()), critical=False
            )
        )
        if what == 'authority':
            usage = x509.KeyUsage(True, False, False, False, False, True, True, False, False)
            builder = builder.add_extension(usage, critical=True)
        else:
            names = [x509.DNSName('localhost'), x509.IPAddress(ipaddress.ip_address('127.0.0.1'))]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        made[what] = builder.sign(keys['authority'], hashes.SHA256())
    files = folder / 'authority.pem', folder / 'server.pem', folder / 'server.key'
    files[0].write_bytes(made['authority'].public_bytes(serialization.Encoding.PEM))
    files[1].write_bytes(made['server'].public_bytes(serialization.Encoding.PEM))
    files[2].write_bytes(
        keys['server'].private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return files
