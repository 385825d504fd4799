"""An S3 server in a process of its own, with what it was asked written down, and an endpoint that can go away.

    s3fs ──► door (a port that forwards bytes; killed and opened again) ──► moto's server (keeps the objects)

moto holds objects in memory and would lose them with its process, which a store does not: so the door is what is
killed. To its callers that is the same: connections break in the middle, then are refused.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from postgres_server import free_port

READY = 'ready'


class S3:
    """A running server.

    Args:
        port: of the door.
        behind: of moto.
        log: file with a line of JSON per request.
    """

    def __init__(self, port: int, behind: int, log: Path) -> None:
        self.port, self.behind, self.log = port, behind, log
        self._door: subprocess.Popen[str] | None = None

    @property
    def env(self) -> dict[str, str]:
        """What a process needs to know to use it."""
        return {
            'AWS_ENDPOINT_URL': f'http://127.0.0.1:{self.port}', 'AWS_ACCESS_KEY_ID': 'test',
            'AWS_SECRET_ACCESS_KEY': 'test', 'AWS_DEFAULT_REGION': 'us-east-1',
        }  # fmt: skip

    def open(self) -> None:
        """Let callers in."""
        self._door = _started('door', str(self.port), str(self.behind))

    def kill(self) -> None:
        """Be gone: connections break, new ones are refused."""
        assert self._door is not None
        self._door.send_signal(signal.SIGKILL)
        self._door.communicate()

    def requests(self) -> list[tuple[str, str, int, int]]:
        """(method, path, status, bytes of the body that was sent to it) of every request so far."""
        return [tuple(json.loads(line)) for line in self.log.read_text().splitlines()]

    def since(self, count: int, method: str, among: str = '') -> list[tuple[str, str, int, int]]:
        """Requests of one method behind the first `count`, with paths that hold some text."""
        return [each for each in self.requests()[count:] if each[0] == method and among in each[1]]


@contextmanager
def s3_server(folder: Path) -> Iterator[S3]:
    """A server that ends with the block.

    Args:
        folder: for its log.
    """
    server = S3(free_port(), free_port(), folder / 's3.jsonl')
    moto = _started('moto', str(server.behind), str(server.log))
    try:
        server.open()
        try:
            yield server
        finally:
            server.kill()
    finally:
        moto.kill()
        moto.communicate()


def _started(*arguments: str) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().strip() == READY
    return process


def moto(port: int, log: str) -> None:
    """Serve S3 until killed."""
    from moto.s3.responses import S3Response
    from moto.server import ThreadedMotoServer
    from werkzeug.serving import WSGIRequestHandler

    one_at_a_time, put_object = threading.Lock(), S3Response.put_object
    handle = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def put(response):  # moto looks whether the object exists, then stores it; S3 does both in one step
        with one_at_a_time:
            return put_object(response)

    def note(handler, code='-', size='-'):
        sent = int(handler.headers.get('Content-Length') or 0)
        line = [handler.command, handler.path.partition('?')[0], int(code), sent]
        os.write(handle, (json.dumps(line) + '\n').encode())

    S3Response.put_object = put
    WSGIRequestHandler.log_request = note
    server = ThreadedMotoServer(ip_address='127.0.0.1', port=port, verbose=False)
    server.start()
    print(READY, flush=True)
    threading.Event().wait()


def door(port: int, behind: int) -> None:
    """Forward connections until killed."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(('127.0.0.1', port))
    listener.listen(128)
    print(READY, flush=True)
    while True:
        here, _ = listener.accept()
        there = socket.create_connection(('127.0.0.1', behind))
        for one, other in ((here, there), (there, here)):
            threading.Thread(target=_forward, args=(one, other), daemon=True).start()


def _forward(one: socket.socket, other: socket.socket) -> None:
    with suppress(OSError):
        while data := one.recv(1 << 16):
            other.sendall(data)
    for each in (one, other):
        with suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)


def wait_until(condition, what: str, *, seconds: float = 120.0) -> None:
    """Wait for something, and say what it was when it does not come."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f'{what}: not within {seconds} s'
        time.sleep(0.01)


if __name__ == '__main__':
    if sys.argv[1] == 'moto':
        moto(int(sys.argv[2]), sys.argv[3])
    else:
        door(int(sys.argv[2]), int(sys.argv[3]))
