"""A store on loopback in front of a real one, that fails where a test says so and counts what it sends."""

from __future__ import annotations

import http.client
import http.server
import socket
import threading
import time
from contextlib import contextmanager


class Faulty:
    """What goes wrong, and what went through.

    Attributes:
        faults: taken from the front by each GET of a shard: None, an HTTP status, 'reset', 'cut' or seconds to stall.
        always: the fault of every GET of a shard once `faults` is empty.
        rate: bytes per second of an answer; None for as fast as it goes.
        sent: (path, bytes of the body that were sent) of each GET of a shard.
        most: how many were under way at once.
    """

    def __init__(self, behind):
        self.behind, self.faults, self.always, self.rate = behind, [], None, None
        self.over = threading.Event()  # ends the stalls
        self.sent, self.most, self.now = [], 0, 0
        self.lock = threading.Lock()

    def reset(self):
        """Be a store without fault that has sent nothing."""
        self.over.set()
        while self.now:
            time.sleep(0.01)
        self.over = threading.Event()
        self.faults, self.always, self.rate, self.most = [], None, None, 0
        self.sent.clear()

    @property
    def bytes(self):
        return sum(count for _, count in self.sent)

    def paths(self):
        return [path.rpartition('/')[2] for path, _ in self.sent]


@contextmanager
def faulty(endpoint):
    """A store that forwards everything to `endpoint`; gives its URL and a `Faulty`."""
    state = Faulty(endpoint.removeprefix('http://'))

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = 'HTTP/1.1'

        def log_message(self, *args):
            pass

        def forward(self):
            size = int(self.headers.get('Content-Length') or 0)
            body = self.rfile.read(size) if size else None
            fault, counted = None, self.command == 'GET' and '/shards/' in self.path.partition('?')[0][7:]
            if counted:
                with state.lock:
                    fault = state.faults.pop(0) if state.faults else state.always
                    state.now += 1
                    state.most = max(state.most, state.now)
            try:
                self.answer(body, fault, counted)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True
            finally:
                if counted:
                    with state.lock:
                        state.now -= 1

        def answer(self, body, fault, counted):
            if isinstance(fault, int):
                said = b'<Error><Code>%d</Code><Message>told to fail</Message></Error>' % fault
                state.sent.append((self.path, 0))  # before the answer, which a test may look at it after
                self.send_response(fault)
                self.send_header('Content-Length', str(len(said)))
                self.end_headers()
                self.wfile.write(said)
                return
            if fault == 'reset':
                state.sent.append((self.path, 0))
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
                return
            if isinstance(fault, float):
                state.sent.append((self.path, 0))
                state.over.wait(fault)
                self.close_connection = True
                return
            behind = http.client.HTTPConnection(state.behind, timeout=30)
            headers = {k: v for k, v in self.headers.items() if k.lower() not in ('host', 'connection', 'expect')}
            behind.request(self.command, self.path, body=body, headers=headers)
            found = behind.getresponse()
            data = found.read()
            behind.close()
            self.send_response(found.status)
            for name, value in found.getheaders():
                if name.lower() not in ('content-length', 'transfer-encoding', 'connection', 'server', 'date'):
                    self.send_header(name, value)
            length = found.getheader('Content-Length') if self.command == 'HEAD' else len(data)
            self.send_header('Content-Length', str(length or 0))
            self.end_headers()
            if counted:
                sent = state.sent
                with state.lock:
                    sent.append((self.path, 0))
                    at = len(sent) - 1
            count = 0
            step = max(1, int(state.rate / 20)) if state.rate and counted else len(data) or 1
            for start in range(0, len(data), step):
                if fault == 'cut' and start >= len(data) // 2:
                    break
                part = data[start : start + step] if fault != 'cut' else data[: len(data) // 2]
                self.wfile.write(part)
                count += len(part)
                if counted and at < len(sent):  # else it was cleared meanwhile
                    sent[at] = (self.path, count)
                if state.rate and counted:
                    state.over.wait(0.05)
            if fault == 'cut':
                self.wfile.flush()
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = forward

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request, client_address):
            pass

    server = Server(('127.0.0.1', 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.02}, daemon=True)
    thread.start()
    try:
        yield f'http://127.0.0.1:{server.server_address[1]}', state
    finally:
        state.over.set()
        server.shutdown()
        server.server_close()
