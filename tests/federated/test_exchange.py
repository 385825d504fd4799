"""What crosses: parameters and what was declared, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from federation import ROUNDS, build, build_plain, client, server
from shop_snapshot import KINDS
from torch import nn

import mmpipe as mm
from mmpipe.errors import ConfigError, ModelError, TrainError
from mmpipe.federated.exchange import check_declared, from_arrays, shared_names, to_arrays, to_metrics

strategies = pytest.importorskip('flwr.serverapp.strategy')
FROM_SERVER = {'server-round', 'proximal-mu'}


def leaves(message):
    """Every name and value in a message, however deep."""
    for record_name, record in message.content.items():
        for name, value in record.items():
            yield record_name, name, value


def heard(roots, tmp_path, factory, **others):
    messages = []
    app = client(tmp_path, factory, **others)
    told = {'buffers': others['buffers']} if 'buffers' in others else {}
    strategy = strategies.FedProx(proximal_mu=0.1)
    run = mm.federated.simulate(server(tmp_path, strategy, factory, **told), app, roots, listen=messages.append)
    return run, messages


def test_messages_hold_parameters_and_declared_metrics_alone(roots, tmp_path):
    run, messages = heard(roots, tmp_path, build)
    parameters = {name: each.shape for name, each in build().named_parameters()}
    assert len(messages) == 2 * 2 * len(roots) * ROUNDS  # asked and answered, trained and measured
    for message in messages:
        from_client = message.metadata.dst_node_id == 1
        for record, name, value in leaves(message):
            if record == 'arrays':
                assert value.shape == list(parameters[name]) or tuple(value.shape) == tuple(parameters[name])
                assert value.dtype == 'float32'
            elif record == 'config':
                assert not from_client
                assert name in FROM_SERVER
            else:
                assert from_client
                assert record == 'metrics'
                assert name in {'num-examples', 'kind.accuracy'}
                assert isinstance(value, float)
                assert name != 'num-examples' or value == 1.0  # not how many rows there are
        if 'arrays' in message.content:
            assert set(message.content['arrays']) == set(parameters)
    assert run.status == 'finished'


def test_no_row_key_word_or_path_is_anywhere_in_the_bytes_of_a_message(roots, tmp_path):
    _, messages = heard(roots, tmp_path, build)
    keys = [key for root in roots for key in mm.open_snapshot(root).rows().keys.tolist()]
    secrets = [*keys, *KINDS, *roots, 'note ']
    for message in messages:
        for _, name, value in leaves(message):
            data = value.data if hasattr(value, 'data') else str(value).encode()
            told = name.encode() + b' ' + data
            assert not [secret for secret in secrets if secret.encode() in told]


def test_what_a_client_cannot_do_is_told_without_the_text_of_the_error(roots, tmp_path):
    messages = []

    def broken(snapshot, split):
        raise ValueError(f'row {snapshot.rows().keys[0]} is of a patient')

    bad = mm.federated.client_app(build_plain, broken, trainer=mm.Trainer(runs=tmp_path))
    apps = [bad, *[client(tmp_path) for _ in roots[1:]]]
    mm.federated.simulate(server(tmp_path, strategies.FedAvg()), apps, roots, listen=messages.append)
    reasons = {message.error.reason for message in messages if message.has_error()}
    assert reasons == {"ValueError in the client; the client's log says more."}


def test_buffers_cross_where_they_are_declared_and_counts_of_rows_too(roots, tmp_path):
    _, messages = heard(roots, tmp_path, build, buffers='shared', weight='rows')
    answers = [m for m in messages if m.metadata.dst_node_id == 1 and 'arrays' in m.content]
    floats = {name for name, each in build().state_dict().items() if each.is_floating_point()}
    assert {frozenset(answer.content['arrays']) for answer in answers} == {frozenset(floats)}
    told = [answer.content['metrics']['num-examples'] for answer in answers[: len(roots)]]
    assert told == [float(len(mm.open_snapshot(root).split('train'))) for root in roots]


def test_standardisation_is_fitted_by_each_client_and_averaged_where_it_is_shared(roots, tmp_path):
    run, _ = heard(roots, tmp_path, build, buffers='shared')
    mean = mm.load_model(run).state_dict()['encoders.title.standardize.mean']
    each = [mm.open_snapshot(root).split('train').read('title') for root in roots]
    expected = np.mean([values[valid].mean(axis=0) for values, valid in each], axis=0)
    np.testing.assert_allclose(mean.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_tensors_come_back_as_they_went_numbers_and_half_precision_too():
    model = nn.ParameterDict({'most': torch.rand(3, 2).bfloat16(), 'one': torch.tensor(2.5)})
    names = shared_names(model, 'local')
    arrays = to_arrays(model.state_dict(), names)
    assert [list(array.shape) for array in arrays.values()] == [[3, 2], [1]]
    back = from_arrays(arrays, model, names)
    assert all(torch.equal(back[name], tensor) for name, tensor in model.state_dict().items())


def test_arrays_that_do_not_fit_are_refused_by_name():
    wide, model = nn.Linear(3, 1), nn.Linear(2, 1)
    names = ['weight', 'bias']
    with pytest.raises(ModelError, match=r"'weight' has shape \[1, 3\] there and \[1, 2\] here"):
        from_arrays(to_arrays(wide.state_dict(), names), model, names)
    with pytest.raises(ModelError, match="they have 'bias'"):
        from_arrays(to_arrays(model.state_dict(), names), model, ['weight'])
    with torch.no_grad():
        model.bias.fill_(torch.nan)
    with pytest.raises(ModelError, match="'bias' that is not finite"):
        from_arrays(to_arrays(model.state_dict(), names), model, names)


def test_a_metric_that_is_not_defined_is_refused_instead_of_spoiling_the_average():
    with pytest.raises(TrainError, match=r"'kind.accuracy' is None on these rows; there are kind.accuracy, kind.n"):
        to_metrics({'kind': {'accuracy': None, 'n': 0}}, ['kind.accuracy'], weight=1.0)
    with pytest.raises(ConfigError, match=r"'task.metric'"):
        check_declared('kind')
