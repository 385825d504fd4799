"""A relay between a SuperNode and its SuperLink that keeps every byte, and a reader of the HTTP in them."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass
class Recorded:
    """What went through.

    Attributes:
        port: that the relay listens on.
        connections: (from the node, to the node) of each connection, as far as it came.
    """

    port: int
    connections: list[tuple[bytearray, bytearray]] = field(default_factory=list)

    def sent(self) -> bytes:
        """Every byte that the node sent."""
        return b''.join(bytes(out) for out, _ in self.connections)

    def requests(self) -> list[tuple[str, bytes, bytes]]:
        """(path, body, body of the answer) of every request that was answered, in order per connection."""
        found = []
        for out, back in self.connections:
            asked, answered = list(messages(bytes(out))), list(messages(bytes(back)))
            found += [
                (first.split(b' ')[1].decode(), body, answer)
                for (first, body), (_, answer) in zip(asked, answered, strict=False)
            ]
        return found


@contextlib.contextmanager
def relay(target: int) -> Iterator[Recorded]:
    """Listen on a port of its own, and pass everything on to another port of loopback and back."""
    with socket.create_server(('127.0.0.1', 0)) as listener:
        found = Recorded(listener.getsockname()[1])
        threading.Thread(target=_accept, args=(listener, target, found), daemon=True).start()
        yield found


def _accept(listener: socket.socket, target: int, found: Recorded) -> None:
    while True:
        try:
            near, _ = listener.accept()
        except OSError:  # closed
            return
        try:
            far = socket.create_connection(('127.0.0.1', target))
        except OSError:  # nobody there yet; the node tries again
            near.close()
            continue
        both = (bytearray(), bytearray())
        found.connections.append(both)
        for source, sink, kept in ((near, far, both[0]), (far, near, both[1])):
            threading.Thread(target=_pass_on, args=(source, sink, kept), daemon=True).start()


def _pass_on(source: socket.socket, sink: socket.socket, kept: bytearray) -> None:
    with contextlib.suppress(OSError):
        while content := source.recv(1 << 16):
            kept += content
            sink.sendall(content)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


def messages(stream: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(first line, body) of each complete HTTP/1.1 message in a stream; a body that is packed cannot be searched.

    >>> list(messages(b'POST /a HTTP/1.1\\r\\nContent-Length: 2\\r\\n\\r\\nhi'))
    [(b'POST /a HTTP/1.1', b'hi')]
    """
    while stream:
        head, end, stream = stream.partition(b'\r\n\r\n')
        if not end:
            return
        first, *lines = head.split(b'\r\n')
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(b':') for line in lines)}
        assert b'content-encoding' not in headers, headers
        if headers.get(b'transfer-encoding') == b'chunked':
            body = b''
            while True:
                size, _, stream = stream.partition(b'\r\n')
                part, stream = stream[: int(size, 16)], stream[int(size, 16) + 2 :]
                body += part
                if not part:
                    break
        else:
            length = int(headers.get(b'content-length', 0))
            if len(stream) < length:
                return
            body, stream = stream[:length], stream[length:]
        yield first, body
