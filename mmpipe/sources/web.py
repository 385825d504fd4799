"""Download from http and https, from public addresses alone: a hop's name is looked up once, checked, and connected to.

A URL in a manifest is written by whoever wrote the manifest. Asked for by us, `http://169.254.169.254/` is a cloud's
secrets, and `http://localhost:5432/` a neighbour; a name that is public at the check and private at the connection, or
a redirect, gets there as well. So an address is never looked up again between the check and the connection.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import quote, urljoin, urlsplit

from mmpipe.errors import BadInputError

REDIRECTS = 5
TIMEOUT_S = 30.0
MAX_BYTES = 4 << 30
PIECE = 1 << 20
SAFE = "/%:?@!$&'()*+,;=~-._[]"  # what a path may hold as it is, its own percent signs included
NAT64 = ipaddress.ip_network('64:ff9b::/96')


class Network:
    """Names to addresses, addresses to connections; the one place that touches the network."""

    def resolve(self, host: str, port: int) -> list[str]:
        """All addresses of a host."""
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return list(dict.fromkeys(str(entry[4][0]) for entry in found))

    def connect(self, address: str, port: int) -> socket.socket:
        """A connection to an address."""
        return socket.create_connection((address, port), timeout=TIMEOUT_S)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a server gave.

    Args:
        identity: its word for this content (ETag and Last-Modified); '' when it has none.
        pieces: the content; None when it is what `known` said.
    """

    identity: str
    pieces: Iterator[bytes] | None


def is_public(address: str) -> bool:
    """Whether an address belongs to the public internet, the one that it may be wrapped in included.

    >>> [is_public(a) for a in ('93.184.216.34', '127.0.0.1', '10.1.2.3', '169.254.169.254', '::1', '::ffff:10.0.0.1')]
    [True, False, False, False, False, False]
    """
    ip = ipaddress.ip_address(address.partition('%')[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if ip in NAT64 or int(ip) < 1 << 32:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFF_FFFF)
        if ip.is_site_local or (inner is not None and not is_public(str(inner))):
            return False
    return ip.is_global and not ip.is_multicast


def download(url: str, *, known: str = '', network: Network | None = None) -> Answer:
    """Open a URL, through redirects; its content is read as it is asked for.

    Args:
        url: http or https.
        known: the identity of what is here already, to ask only for what is new.
        network: other names and connections, for tests.

    Raises:
        BadInputError: an address that is not public, too many redirects, from https to http, or no such thing there.
    """
    network = network or Network()
    for _ in range(REDIRECTS + 1):
        connection = _connect(url, network)
        try:
            parts = urlsplit(url)
            path = quote(parts.path or '/', safe=SAFE) + (f'?{quote(parts.query, safe=SAFE)}' if parts.query else '')
            connection.request('GET', path, headers=_conditions(known))
            answer = connection.getresponse()
        except (OSError, http.client.HTTPException, ValueError) as error:
            connection.close()
            raise BadInputError(f'cannot be downloaded ({_what(error)}): check the URL, or try again') from error
        if answer.status in (301, 302, 303, 307, 308) and answer.getheader('Location'):
            connection.close()
            target = urljoin(url, answer.getheader('Location'))
            if parts.scheme == 'https' and urlsplit(target).scheme != 'https':
                raise BadInputError(f"redirects from https to '{target}': give the URL it should be")
            url = target
            continue
        if answer.status == 304 and known:
            connection.close()
            return Answer(identity=known, pieces=None)
        if answer.status != 200:
            connection.close()
            raise BadInputError(f'cannot be downloaded (HTTP {answer.status} {answer.reason}): check the URL')
        said = [answer.getheader(name) or '' for name in ('ETag', 'Last-Modified')]
        return Answer(identity='\n'.join(said) if any(said) else '', pieces=_pieces(connection, answer))
    raise BadInputError(f'redirects more than {REDIRECTS} times: give the URL it ends at')


def _connect(url: str, network: Network) -> http.client.HTTPConnection:
    """A connection to a checked address of the URL's host."""
    parts = urlsplit(url)
    try:
        host, port = parts.hostname, parts.port or {'http': 80, 'https': 443}.get(parts.scheme)
    except ValueError as error:
        raise BadInputError(f'is no URL ({error}): correct it') from error
    if port is None or not host or parts.username is not None:
        raise BadInputError(f"leads to '{url}', and only plain http and https URLs are downloaded: correct it")
    try:
        addresses = network.resolve(host, port)
    except (OSError, UnicodeError) as error:
        raise BadInputError(f"cannot be downloaded (the host '{host}' is not found: {_what(error)})") from error
    private = [address for address in addresses if not is_public(address)]
    if private or not addresses:
        raise BadInputError(
            f"leads to '{host}' at {', '.join(private) or 'no address'}, which is not public, and is never asked: "
            f'download the file yourself, and give its path'
        )
    secure = parts.scheme == 'https'
    connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
    try:
        connection.sock = network.connect(addresses[0], port)
        if secure:
            connection.sock = ssl.create_default_context().wrap_socket(connection.sock, server_hostname=host)
    except OSError as error:
        connection.close()
        raise BadInputError(f'cannot be downloaded ({_what(error)}): check the URL, or try again') from error
    return connection


def _conditions(known: str) -> Mapping[str, str]:
    etag, _, modified = known.partition('\n')
    asked = {'If-None-Match': etag, 'If-Modified-Since': modified}
    return {name: value for name, value in asked.items() if value} | {
        'Accept-Encoding': 'identity',
        'User-Agent': 'mmpipe',
    }


def _pieces(connection: http.client.HTTPConnection, answer: http.client.HTTPResponse) -> Iterator[bytes]:
    size, expected = 0, answer.length
    try:
        while piece := answer.read(PIECE):
            size += len(piece)
            if size > MAX_BYTES:
                raise BadInputError(f'is larger than {MAX_BYTES >> 30} GiB: download it yourself, and give its path')
            yield piece
    except (OSError, http.client.HTTPException) as error:
        raise BadInputError(f'cannot be downloaded ({_what(error)}): try again') from error
    finally:
        connection.close()
    if expected is not None and size < expected:
        raise BadInputError(f'cannot be downloaded ({size} of {expected} bytes came): try again')


def _what(error: Exception) -> str:
    return ' '.join(str(error).split()) or type(error).__name__
