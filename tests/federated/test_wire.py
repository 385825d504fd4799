"""What a SuperNode really says: every byte of a federation went through a relay that kept it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from federation import ROUNDS, build
from flower_processes import deployment
from relay import messages, relay
from shop_snapshot import FIELDS, shop_block

import mmpipe as mm
from mmpipe.shards import write_snapshot

CODE = """
import sys
sys.path.insert(0, {support!r})
from federation import build, client as client_of, server as server_of
from flwr.serverapp.strategy import FedAvg

client = client_of({runs!r}, build)
server = server_of({runs!r}, FedAvg(min_train_nodes=1, min_evaluate_nodes=1, min_available_nodes=1), build)
"""
CONTENTS = ('/v1/fleet/push-messages', '/v1/fleet/push-object')
ABOUT_ITSELF = ('register-node', 'activate-node', 'deactivate-node', 'unregister-node', 'send-node-heartbeat')
ASKING = ('pull-messages', 'get-run', 'get-fab', 'pull-object', 'confirm-message-received')


@dataclasses.dataclass(frozen=True)
class Heard:
    """A federation of one client.

    Attributes:
        snapshot: of the client.
        secrets: by what they are.
        sent: every byte from the client.
        requests: (path, body, answer).
    """

    snapshot: mm.Snapshot
    secrets: dict[str, bytes]
    sent: bytes
    requests: list[tuple[str, bytes, bytes]]


@pytest.fixture(scope='module')
def heard(tmp_path_factory):
    folder = tmp_path_factory.mktemp('wire')
    snapshot = write_patients(folder / 'ward-seven')
    support = str(Path(__file__).parents[1] / 'support')
    code = CODE.format(support=support, runs=str(folder / 'runs'))
    with deployment(folder / 'flower', code, secure=False) as flower, relay(flower.ports[0]) as wire:
        flower.node(0, snapshot.root, through=wire.port)
        assert flower.wait(flower.submit(), seconds=200) == 'finished:completed', flower.log('link')
    return Heard(snapshot, secrets_of(snapshot), wire.sent(), wire.requests())


def write_patients(root):
    """Rows whose keys, notes and pixels can be told from anything else."""
    block = shop_block(48, holes=0.1)
    pattern = np.random.default_rng(7).integers(0, 256, size=(3, 16, 16), dtype=np.uint8)
    columns = {
        **block.columns,
        'photo': [None if photo is None else pattern for photo in block.columns['photo']],
        'note': [f'diagnosis {number} is confidential' for number in range(48)],
    }
    keys = [f'patient-{number:04d}-Kowalska' for number in range(48)]
    return write_snapshot(root, FIELDS, dataclasses.replace(block, keys=keys, columns=columns))


def secrets_of(snapshot):
    rows = snapshot.rows()
    photos, _ = rows.read('photo')
    titles, there = rows.read('title')
    pattern = next(photo for photo in photos if photo.any())
    found = {
        'the folder of the snapshots': b'ward-seven',
        'a part of a key': b'Kowalska',
        'a note': b'confidential',
        'the id of the snapshot': snapshot.id.encode(),
        'pixels': pattern.tobytes()[:32],
    }
    found |= {f'title of row {number}': titles[number].tobytes()[:16] for number in np.flatnonzero(there)}
    found |= {f'hash of key {number}': np.uint64(each).tobytes() for number, each in enumerate(rows.hashes)}
    return found


def said(heard):
    """The answers of the client, put together from the objects that crossed."""
    from flwr.app import Message
    from flwr.proto.fleet_pb2 import PushMessagesRequest
    from flwr.proto.message_pb2 import PullObjectRequest, PullObjectResponse, PushObjectRequest
    from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

    objects, roots, pushed = {}, [], set()
    for path, body, answer in heard.requests:
        if path == '/v1/fleet/push-object':
            each = PushObjectRequest.FromString(body)
            objects[each.object_id] = each.object_content
            pushed.add(each.object_id)
        elif path == '/v1/fleet/pull-object':  # what the SuperLink has is not sent to it again
            asked = PullObjectRequest.FromString(body).object_id
            objects[asked] = PullObjectResponse.FromString(answer).object_content
        elif path == '/v1/fleet/push-messages':
            roots += list(PushMessagesRequest.FromString(body).message_object_trees)
    trees, belonging = list(roots), set()
    while trees:
        tree = trees.pop()
        belonging.add(tree.object_id)
        trees += tree.children
    assert pushed <= belonging  # there is no object beside those of the answers
    found = [inflate_object_from_contents(each.object_id, dict(objects)) for each in roots]
    assert all(isinstance(each, Message) for each in found)
    return found


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_no_key_pixel_note_or_path_is_in_any_byte_that_a_client_sends(heard):
    assert b'encoders.title' in heard.sent  # names of parameters are, so what is there would be found
    assert b'kind.accuracy' in heard.sent
    assert [what for what, secret in heard.secrets.items() if secret in heard.sent] == []


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_what_a_client_sends_is_parameters_and_declared_metrics_alone(heard):
    answers = said(heard)
    shapes = {name: tuple(np.atleast_1d(each.detach()).shape) for name, each in build().named_parameters()}
    assert len(answers) == 2 * ROUNDS
    for answer in answers:
        training = answer.metadata.message_type == 'train'
        assert set(answer.content) == ({'arrays', 'metrics'} if training else {'metrics'})
        assert set(answer.content['metrics']) == {'num-examples', *([] if training else ['kind.accuracy'])}
        assert answer.content['metrics']['num-examples'] == 1.0
        if training:
            assert {name: tuple(array.shape) for name, array in answer.content['arrays'].items()} == shapes


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_everything_else_that_a_supernode_says_is_about_the_node_or_asks_for_something(heard):
    paths = {path for path, _, _ in heard.requests}
    assert set(CONTENTS) < paths
    assert paths <= {*CONTENTS, *(f'/v1/fleet/{name}' for name in (*ABOUT_ITSELF, *ASKING))}
    others = [body for path, body, _ in heard.requests if path not in CONTENTS]
    assert max(map(len, others)) < 300  # numbers and digests; the longest is the node's public key


def test_a_reader_of_http_takes_lengths_and_chunks_and_leaves_what_is_not_whole():
    stream = (
        b'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n'
        b'HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nxyzHTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nx'
    )
    assert [body for _, body in messages(stream)] == [b'abc', b'xyz']
