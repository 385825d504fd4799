from __future__ import annotations

import os
import sys
import threading
import uuid
from pathlib import Path

import pytest

SUPPORT = str(Path(__file__).parents[1] / 'support')
if SUPPORT not in sys.path:  # test folders are no packages, so what they share is put on the path
    sys.path.insert(0, SUPPORT)


@pytest.fixture(scope='session')
def s3():
    """A real S3 server on loopback that s3fs finds by the environment; a list of (method, path) of all requests."""
    pytest.importorskip('s3fs', reason='the extra s3 is not installed')
    server = pytest.importorskip('moto.server', reason='moto[server] is not installed')
    import fsspec
    from moto.s3.responses import S3Response
    from werkzeug.serving import WSGIRequestHandler

    requests, one_at_a_time, put_object = [], threading.Lock(), S3Response.put_object

    def put(
        response,
    ):  # moto looks whether the object exists, then stores it; S3 does both in one step, and so does this
        with one_at_a_time:
            return put_object(response)

    def note(handler, code='-', size='-'):
        requests.append((handler.command, handler.path.partition('?')[0], int(code)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(S3Response, 'put_object', put)
        patch.setattr(WSGIRequestHandler, 'log_request', note)
        for name in ('AWS_ACCESS_KEY_ID', 'AWS_SECRET_ACCESS_KEY'):
            patch.setenv(name, 'test')
        patch.setenv('AWS_DEFAULT_REGION', 'us-east-1')
        running = server.ThreadedMotoServer(ip_address='127.0.0.1', port=0)
        running.start()
        host, port = running.get_host_and_port()
        patch.setenv('AWS_ENDPOINT_URL', f'http://{host}:{port}')
        fsspec.filesystem('s3').mkdir('shards')
        yield requests
        running.stop()


@pytest.fixture(scope='module')
def front(s3):
    """A store in front of the real one that fails where it is told to (`faulty_store.Faulty`)."""
    from faulty_store import faulty
    from s3fs import S3FileSystem

    with pytest.MonkeyPatch.context() as patch, faulty(os.environ['AWS_ENDPOINT_URL']) as (endpoint, state):
        patch.setenv('AWS_ENDPOINT_URL', endpoint)
        S3FileSystem.clear_instance_cache()  # which keeps the endpoint
        yield state
    S3FileSystem.clear_instance_cache()


@pytest.fixture(params=['memory', pytest.param('s3', marks=pytest.mark.slow)])
def url(request):
    """A root on an object store, which nobody else uses."""
    if request.param == 's3':
        request.getfixturevalue('s3')
    return f'{request.param}://shards/{uuid.uuid4().hex}'


@pytest.fixture(autouse=True)
def cache(request, tmp_path_factory, monkeypatch):
    """An empty cache of shards for each test."""
    folder = tmp_path_factory.mktemp('cache')
    monkeypatch.setattr('mmpipe.shards.copies.shard_cache_dir', lambda: folder)
    return folder
