"""Downloads from the web: public addresses alone, at every hop, and what was checked is what is connected to."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from web_server import PUBLIC, Names, serving

from mmpipe.errors import BadInputError
from mmpipe.sources import web
from mmpipe.sources.web import download, is_public


@pytest.mark.parametrize('address', [
    '127.0.0.1', '127.8.8.8', '0.0.0.0', '10.0.0.1', '172.16.0.1', '192.168.1.1', '169.254.169.254', '100.64.0.1',
    '198.18.0.1', '224.0.0.1', '240.0.0.1', '255.255.255.255', '::', '::1', 'fe80::1', 'fe80::1%eth0', 'fc00::1',
    'fec0::1', 'ff02::1', '::ffff:127.0.0.1', '::127.0.0.1', '64:ff9b::7f00:1', '64:ff9b::a9fe:a9fe', '2002:7f00:1::',
    '2001:db8::1',
])  # fmt: skip
def test_addresses_that_are_not_public(address):
    assert not is_public(address)


@pytest.mark.parametrize('address', [PUBLIC, '8.8.8.8', '2606:4700::1111', '::ffff:8.8.8.8', '64:ff9b::808:808'])
def test_addresses_that_are(address):
    assert is_public(address)


def test_loopback_is_refused_however_it_is_written_and_nobody_is_asked():
    with serving({'/secret': (200, {}, b'secret')}) as (port, requests):
        hosts = ('127.0.0.1', 'localhost', '127.1', '2130706433', '0x7f000001', '0', '[::1]', '[::ffff:127.0.0.1]')
        for host in hosts:
            with pytest.raises(BadInputError, match='not public, and is never asked: download the file yourself'):
                download(f'http://{host}:{port}/secret')
        assert requests == []


def test_a_redirect_is_checked_as_the_first_address_is():
    pages = {
        '/to-loopback': (302, {'Location': 'http://127.0.0.1:PORT/secret'}, b''),
        '/to-metadata': (307, {'Location': 'http://169.254.169.254/latest/meta-data/'}, b''),
        '/to-name': (301, {'Location': 'http://inner.test/secret'}, b''),
        '/to-file': (302, {'Location': 'file:///etc/passwd'}, b''),
        '/to-user': (302, {'Location': 'http://me:word@public.test/ok'}, b''),
        '/loop': (302, {'Location': '/loop'}, b''),
        '/one': (308, {'Location': '/two?a=b'}, b''), '/two?a=b': (302, {'Location': 'http://other.test/ok'}, b''),
        '/ok': (200, {'ETag': '"1"'}, b'fine'), '/secret': (200, {}, b'secret'),
    }  # fmt: skip
    with serving(pages) as (port, requests):
        pages['/to-loopback'] = (302, {'Location': f'http://127.0.0.1:{port}/secret'}, b'')
        names = Names(port, public_test=[[PUBLIC]], other_test=[[PUBLIC]], inner_test=[['10.0.0.7']])
        for path, said in (
            ('/to-loopback', "leads to '127.0.0.1' at 127.0.0.1"), ('/to-metadata', 'at 169.254.169.254'),
            ('/to-name', "leads to 'inner.test' at 10.0.0.7"), ('/to-file', 'only plain http and https'),
            ('/to-user', 'only plain http and https'), ('/loop', 'redirects more than 5 times'),
        ):  # fmt: skip
            with pytest.raises(BadInputError, match=said):
                download(f'http://public.test{path}', network=names)
        assert '/secret' not in {path for _, path in requests}
        assert set(names.connected) == {PUBLIC}
        answer = download('http://public.test/one', network=names)
        assert (b''.join(answer.pieces), answer.identity) == (b'fine', '"1"\n')
        assert requests[-3:] == [('public.test', '/one'), ('public.test', '/two?a=b'), ('other.test', '/ok')]


def test_a_name_that_changes_after_the_check_is_connected_to_where_it_was_checked():
    with serving({'/': (200, {}, b'fine')}) as (port, _):
        names = Names(port, rebinding_test=[[PUBLIC], ['127.0.0.1']])
        assert b''.join(download('http://rebinding.test', network=names).pieces) == b'fine'
        assert names.connected == [PUBLIC]
        with pytest.raises(BadInputError, match=r'at 127\.0\.0\.1, which is not public'):
            download('http://rebinding.test', network=names)
        mixed = Names(port, mixed_test=[[PUBLIC, '127.0.0.1']])
        with pytest.raises(BadInputError, match=r'at 127\.0\.0\.1'):
            download('http://mixed.test', network=mixed)
        assert mixed.connected == []


def test_proxies_of_the_environment_are_not_asked(monkeypatch):
    with serving({'/': (200, {}, b'')}) as (port, requests):
        monkeypatch.setenv('http_proxy', f'http://127.0.0.1:{port}')
        with pytest.raises(BadInputError, match='not public'):
            download('http://10.0.0.1/')
        assert requests == []


def test_what_is_known_is_not_sent_again_and_what_is_cut_or_too_large_or_missing_is_refused(monkeypatch):
    pages = {
        '/a': (200, {'ETag': '"v1"'}, b'content'), '/cut': (200, {'Content-Length': '100'}, b'short'),
        '/b c': (200, {}, b'no'), '/b%20c': (200, {}, b'space'),
    }  # fmt: skip
    with serving(pages) as (port, _):
        names = Names(port, public_test=[[PUBLIC]])
        first = download('http://public.test/a', network=names)
        assert b''.join(first.pieces) == b'content'
        again = download('http://public.test/a', known=first.identity, network=names)
        assert (again.pieces, again.identity) == (None, first.identity)
        assert b''.join(download('http://public.test/b c', network=names).pieces) == b'space'
        with pytest.raises(BadInputError, match=r'5 of 100 bytes|IncompleteRead'):
            list(download('http://public.test/cut', network=names).pieces)
        with pytest.raises(BadInputError, match='HTTP 404'):
            download('http://public.test/none', network=names)
        monkeypatch.setattr(web, 'MAX_BYTES', 3)
        with pytest.raises(BadInputError, match='is larger than'):
            list(download('http://public.test/a', network=names).pieces)
    with pytest.raises(BadInputError, match=r"host 'nowhere\.invalid' is not found"):
        download('http://nowhere.invalid/')


@pytest.mark.skipif(shutil.which('openssl') is None, reason='makes a certificate with openssl')
def test_https_asks_for_the_name_at_the_checked_address_and_trusts_only_what_is_certified(tmp_path, monkeypatch):
    key, certificate = tmp_path / 'key.pem', tmp_path / 'certificate.pem'
    made = [
        'openssl',
        'req',
        '-x509',
        '-newkey',
        'ec',
        '-pkeyopt',
        'ec_paramgen_curve:prime256v1',
        '-nodes',
        '-days',
        '2',
    ]
    named = ['-subj', '/CN=public.test', '-addext', 'subjectAltName=DNS:public.test']
    subprocess.run([*made, *named, '-keyout', key, '-out', certificate], check=True, capture_output=True)
    pages = {'/': (200, {}, b'fine'), '/plain': (302, {'Location': 'http://public.test/'}, b'')}
    with serving(pages, certificate=(certificate, key)) as (port, requests):
        names = Names(port, public_test=[[PUBLIC]], other_test=[[PUBLIC]])
        with pytest.raises(BadInputError, match='certificate verify failed'):
            download('https://public.test/', network=names)
        monkeypatch.setenv('SSL_CERT_FILE', str(certificate))
        assert b''.join(download('https://public.test/', network=names).pieces) == b'fine'
        with pytest.raises(BadInputError, match='certificate verify failed'):
            download('https://other.test/', network=names)
        with pytest.raises(BadInputError, match="redirects from https to 'http://public"):
            download('https://public.test/plain', network=names)
        assert [path for _, path in requests] == ['/', '/plain']
