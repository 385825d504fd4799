"""A real HTTP server on loopback, and names that lead to it as if it were public."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from mmpipe.sources.web import Network

PUBLIC = '93.184.216.34'


@contextlib.contextmanager
def serving(pages, *, certificate=None):
    """Serve {path: (status, headers, body)} on 127.0.0.1; gives the port and the list of requests that came.

    Over TLS when `certificate` is given: the files of a certificate and its key.
    """
    requests = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append((self.headers['Host'], self.path))
            status, headers, body = pages.get(self.path, (404, {}, b''))
            if headers.get('ETag') and self.headers['If-None-Match'] == headers['ETag']:
                status, body = 304, b''
            self.send_response(status)
            for name, value in ({'Content-Length': str(len(body))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    server.handle_error = lambda *_: None  # a client that does not trust the certificate hangs up
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.01})
    thread.start()
    try:
        yield server.server_address[1], requests
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Names(Network):
    """A resolver of some names, one answer after the other; a public address leads to the local server."""

    def __init__(self, port, **names):
        self.port, self.names = port, {name.replace('_', '.'): list(answers) for name, answers in names.items()}
        self.connected = []

    def resolve(self, host, port):
        if host not in self.names:
            return super().resolve(host, port)
        answers = self.names[host]
        return answers.pop(0) if len(answers) > 1 else answers[0]

    def connect(self, address, port):
        self.connected.append(address)
        return (
            socket.create_connection(('127.0.0.1', self.port), timeout=5)
            if address == PUBLIC
            else super().connect(address, port)
        )
