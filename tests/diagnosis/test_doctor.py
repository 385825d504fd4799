"""The doctor: stages are told apart, what they come to is right, advice is tried, and nothing is left changed."""

from __future__ import annotations

import json
import random
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import mmpipe as mm
from mmpipe.data import DataLoader
from mmpipe.data.sampling import Buckets, mixture
from mmpipe.diagnosis import Advice, Diagnosis, Stage, doctor, doctor_training, examine, trials
from mmpipe.diagnosis.rates import Machine, batch_seconds, bottleneck
from mmpipe.diagnosis.stages import Host, host_stages
from mmpipe.diagnosis.trials import Running, changed
from mmpipe.errors import ConfigError
from mmpipe.shards import Block, Field, write_snapshot


class Sleepy:
    """A decoder that waits, as one that reads from far away does, and keeps count."""

    shape, rest, dtype, draws = (2048,), (), 'uint8', 1  # large enough for memory that is lent

    def __init__(self, seconds):
        self.seconds = seconds
        self.threads = []

    def decode(self, data, draws, out):
        self.threads.append(threading.current_thread().name)
        time.sleep(self.seconds)
        out[:] = data[0]
        return out


class Counted(nn.Module):
    """A small model with a buffer that moves and random draws; it can be slow."""

    def __init__(self, seconds=0.0):
        super().__init__()
        self.seconds, self.inputs = seconds, ['price']
        self.tasks = (mm.classification('kind', ['a', 'b']),)
        self.layers = nn.Sequential(nn.Linear(1, 2), nn.BatchNorm1d(2), nn.Dropout(0.5))

    def forward(self, batch):
        time.sleep(self.seconds)
        random.random(), np.random.random()
        return {'kind': self.layers(batch['price'][:, None])}


@pytest.fixture(scope='module')
def rows(tmp_path_factory):
    fields = [
        Field(name='raw', kind='binary'), Field(name='price', kind='scalar', dtype='float32'),
        Field(name='kind', kind='label', vocabulary=('a', 'b')), Field(name='sound', kind='ragged', dtype='float32'),
    ]  # fmt: skip
    columns = {
        'raw': [bytes(range(i % 7, i % 7 + 4 + i % 5)) for i in range(60)],
        'price': [float(i) for i in range(60)],
        'kind': ['ab'[i % 2] for i in range(60)],
        'sound': [np.zeros(1 + i % 9, dtype=np.float32) for i in range(60)],
    }
    block = Block(keys=[f'k{i}' for i in range(60)], columns=columns)
    return write_snapshot(tmp_path_factory.mktemp('doctor'), fields, block).rows()


def loader_of(rows, **options):
    return DataLoader(rows, device='cpu', **{'batch_size': 4, 'num_workers': 0, **options})


def sleepy_loader(rows, **options):
    return loader_of(rows, fields=['raw', 'kind'], decode={'raw': Sleepy(0.004)}, shuffle=True, **options)


# What stages come to


def stages_of(host, device, *, core=0.0):
    return [
        Stage(name='read', side='host', seconds=host, cpu_s=core * host),
        Stage(name='compute', side='device', seconds=device, cpu_s=core * device),
    ]


def simulated(host, device, workers, batches=400):
    """Seconds per batch of workers that each make one batch after the other, and of a step that takes them in order."""
    free, done = [0.0] * workers, 0.0
    for number in range(batches):
        free[number % workers] += host
        done = max(done, free[number % workers]) + device
    return done / batches


@given(host=st.floats(0.01, 10), device=st.floats(0.01, 10), workers=st.integers(1, 9))
def test_the_expected_rate_is_that_of_a_simulated_pipeline(host, device, workers):
    found = batch_seconds(stages_of(host, device), Machine(workers=workers, cores=1))
    assert found == pytest.approx(simulated(host, device, workers), rel=0.05, abs=(host + device) / 100)


@given(
    host=st.floats(0.01, 10), device=st.floats(0.01, 10), core=st.floats(0, 1), workers=st.integers(0, 9),
    cores=st.integers(1, 4),
)  # fmt: skip
def test_more_workers_or_less_work_never_slow_the_whole_and_no_core_does_more_than_it_can(
    host, device, core, workers, cores
):
    stages, machine = stages_of(host, device, core=core), Machine(workers=workers, cores=cores)
    whole = batch_seconds(stages, machine)
    assert batch_seconds(stages, replace(machine, workers=workers + 1)) <= whole
    for stage in stages:
        assert batch_seconds([each for each in stages if each is not stage], machine) <= whole
    assert core * (host + device) / cores <= whole * (1 + 1e-9)
    assert whole <= host + device + 1e-9


def test_an_accelerator_works_while_batches_are_made_and_a_cpu_in_turns():
    stages = [replace(stage, cpu_s=0.0) for stage in stages_of(3.0, 2.0)]
    assert batch_seconds(stages, Machine(workers=0, cores=2)) == 5.0
    assert batch_seconds(stages, Machine(workers=0, cores=2, apart=True)) == 3.0
    assert bottleneck(stages, Machine(workers=2, cores=2)).name == 'compute'


class Bursts:
    """A loader on a clock of its own: so many workers that begin together and end together."""

    device, prefetch_factor, _processes = torch.device('cpu'), None, None

    def __init__(self, clock, workers, period):
        self.clock, self.num_workers, self.period, self.waited_s = clock, workers, period, 0.0

    def __iter__(self):
        while True:
            self.clock[0] += self.period
            self.waited_s += self.period
            for _ in range(max(1, self.num_workers)):
                yield {'_key': ['a', 'b', 'c']}


@given(workers=st.integers(0, 8), turns=st.lists(st.floats(0, 50), min_size=1, max_size=4))
def test_a_turn_counts_whole_bursts_so_that_its_rate_is_that_of_a_long_run(workers, turns):
    clock = [0.0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trials.time, 'perf_counter', lambda: clock[0])
        running = Running(Bursts(clock, workers, 7.0))
        for seconds in turns:
            assert running.rate(seconds) == pytest.approx(3 * max(1, workers) / 7.0)
            assert running.waited == pytest.approx(1.0)
        running.close()


# Stages told apart


def test_each_stage_is_named_in_order_and_what_was_read_is_counted(rows):
    loader = loader_of(
        rows, decode={'raw': Sleepy(0.0)}, host_transforms={'price': np.negative, 'raw': lambda value: value[:2]}
    )
    found = host_stages(changed(loader), seconds=0.2)
    assert [stage.name for stage in found.stages] == [
        'read', 'decode raw', 'transform raw', 'transform price', 'collate'
    ]  # fmt: skip
    assert found.batch == 4
    stored = 4 + np.mean([4 + i % 5 for i in range(60)]) + 8 + 4 * np.mean([1 + i % 9 for i in range(60)])
    assert found.bytes_per_sample == pytest.approx(stored, rel=0.1)  # of some of the batches
    assert found.stages[0].first_s is not None


def test_a_stage_is_told_what_it_takes_and_no_other(rows):
    """A slow decoder shows in decoding, a slow function in transforming; of either, the rest has no part."""

    def slow(value):
        time.sleep(0.003)
        return value

    for options, name in (
        ({'decode': {'raw': Sleepy(0.003)}}, 'decode raw'),
        ({'host_transforms': {'price': slow}}, 'transform price'),
    ):
        found = host_stages(changed(loader_of(rows, **options)), seconds=0.1)
        assert max(found.stages, key=lambda stage: stage.seconds).name == name
        stage = next(stage for stage in found.stages if stage.name == name)
        assert stage.seconds > 4 * 0.003 > stage.cpu_s


# What is advised


def test_a_decoder_that_waits_wants_workers_and_they_are_tried(rows):
    loader = sleepy_loader(rows)
    found = doctor(loader, seconds=1.0)
    assert found.bottleneck == 'decode raw'
    assert found.share > 0.5
    assert found.waiting is None
    (workers,) = [advice for advice in found.advice if advice.setting == 'num_workers']
    assert workers.value > 0
    assert workers.checked_gain is not None
    threads = loader.dataset.task.decode['raw'].threads
    assert {name.split('_')[0] for name in threads} == {'MainThread', 'mmpipe-read'}
    assert any(advice.setting == 'fields' and advice.checked_gain is None for advice in found.advice)
    assert any(stage.name == 'transfer' and stage.seconds == 0 for stage in found.stages)


def test_a_slow_model_is_the_bottleneck_and_nothing_is_to_be_set_for_loading(rows):
    found = doctor(loader_of(rows, num_workers=1), Counted(0.02), seconds=1.0)
    assert found.bottleneck == 'compute'
    assert found.stages[-1].name == 'compute'
    assert not [advice for advice in found.advice if advice.setting in ('num_workers', 'fields', 'prefetch_factor')]
    assert found.loading_s < found.step_s
    assert 'loading is not the bottleneck' in str(found)


@pytest.mark.parametrize('gain', [0.9, 1.04, 2.0])
def test_advice_that_gains_nothing_when_tried_is_dropped_and_told(rows, monkeypatch, gain):
    tried = []
    monkeypatch.setattr(examine, 'gain', lambda loader, settings, *_, **__: tried.append(settings) or gain)
    found = doctor(sleepy_loader(rows), seconds=0.5)
    assert any('num_workers' in settings for settings in tried)
    told = [advice for advice in (*found.advice, *found.dropped) if advice.checked_gain is not None]
    assert all(advice.checked_gain == gain for advice in told)
    if gain < 1.05:
        assert [{advice.setting: advice.value} for advice in found.dropped] == tried
        assert not any(advice.setting == 'num_workers' for advice in found.advice)
        assert 'tried, gains less than 5 %: ' in str(found)
    else:
        assert not found.dropped
        assert [advice.setting for advice in told].count('num_workers') == 1


def test_what_there_is_no_time_to_try_is_told_and_not_advised(rows, monkeypatch):
    monkeypatch.setattr(examine, 'gain', lambda *_, **__: time.sleep(0.2) or 1.5)
    found = doctor(sleepy_loader(rows), seconds=0.1)
    assert [advice.checked_gain for advice in found.advice if advice.setting != 'fields'] == [1.5]
    assert any(note.startswith('no time was left to try ') for note in found.notes)


def test_rows_that_do_not_fit_into_memory_count_as_read_from_the_disk(rows, monkeypatch):
    read = Stage(name='read', side='host', seconds=0.01, cpu_s=0.001, first_s=0.05)
    host = Host(stages=(read,), batch=4.0, bytes_per_sample=1000.0)
    loader = loader_of(rows)
    notes, same = examine._from_disk(loader, host, 0.02)
    assert same == host
    assert '5.0 times' in notes[0]
    assert '60.0 kB fit into memory' in notes[0]
    monkeypatch.setattr(examine, 'memory_bytes', lambda: 50_000)
    notes, slow = examine._from_disk(loader, host, 0.02)
    assert slow.stages[0].seconds == 0.05
    assert 'do not fit into memory' in notes[0]
    assert examine._from_disk(loader, host, 10.0) == ([], host)  # of no account


def test_a_trial_that_runs_out_of_memory_counts_as_no_gain(rows):
    def step(batch):
        if len(batch['_key']) > 4:
            raise torch.OutOfMemoryError('no room')

    assert trials.gain(loader_of(rows), {'batch_size': 8}, step, seconds=0.01) == 0
    assert trials.gain(loader_of(rows), {'num_workers': 1}, step, seconds=0.01) > 0


def test_a_bigger_batch_is_advised_where_part_of_the_step_is_paid_once(rows):
    found = doctor(loader_of(rows, fields=['price', 'kind']), Counted(0.01), seconds=1.0)
    (advice,) = [advice for advice in (*found.advice, *found.dropped) if advice.setting == 'batch_size']
    assert advice.value == 8
    assert advice.expected_gain > 1.05


# Nothing is left changed


def test_the_loader_keeps_place_memory_and_settings(rows):
    crossed = []
    loader = sleepy_loader(rows, on_transfer=lambda *what: crossed.append(what))
    list(loader)
    other = loader.fresh()
    other.set_epoch(1)
    expected = [batch['_key'] for batch in other]
    batches = iter(loader)
    next(batches), next(batches)
    state = loader.state_dict()
    before, own, pool = dict(vars(loader)), dict(vars(loader.batches)), dict(vars(loader.pool))
    counted, slots = len(crossed), {size: len(free) for size, free in pool['_free'].items()}
    doctor(loader, seconds=0.3)
    assert loader.state_dict() == state
    assert len(crossed) == counted
    assert vars(loader) == before
    assert vars(loader.batches) == own
    assert vars(loader.pool) == pool
    assert {size: len(free) for size, free in loader.pool._free.items()} == slots
    assert [batch['_key'] for batch in batches] == expected[2:]


def test_the_model_keeps_weights_buffers_gradients_and_mode_and_generators_their_states(rows):
    model = Counted().eval()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = {name: (tensor.clone(), tensor._version) for name, tensor in model.state_dict(keep_vars=True).items()}
    states = torch.random.get_rng_state(), np.random.get_state(), random.getstate()
    found = doctor(loader_of(rows, shuffle=True), model, precision='bf16', seconds=0.3)
    assert found.stages[-1].name == 'compute'
    for name, tensor in model.state_dict(keep_vars=True).items():
        assert torch.equal(tensor, before[name][0])
        assert tensor._version == before[name][1]
    assert all(torch.equal(parameter.grad, torch.ones_like(parameter)) for parameter in model.parameters())
    assert not model.training
    assert torch.equal(torch.random.get_rng_state(), states[0])
    assert all(np.array_equal(now, then) for now, then in zip(np.random.get_state(), states[1], strict=True))
    assert random.getstate() == states[2]


# Other loaders


@pytest.mark.parametrize('kind', ['mixture', 'buckets', 'global_batch_size', 'few'])
def test_loaders_of_every_kind_are_examined(rows, kind):
    if kind == 'mixture':
        loader = loader_of(mixture({'a': rows, 'b': rows.take(range(9))}, weights={'a': 1, 'b': 1}, samples=40))
    elif kind == 'buckets':
        lengths = np.array([1 + i % 9 for i in range(60)])
        loader = DataLoader(rows, sampler=Buckets(lengths, budget=18), device='cpu', num_workers=0)
    elif kind == 'few':
        loader = loader_of(rows.take([0, 1]))
    else:
        loader = DataLoader(rows, global_batch_size=6, device='cpu', num_workers=1)
    found = doctor(loader, seconds=0.1)
    assert found.measured > 0
    assert all(advice.setting != 'batch_size' for advice in (*found.advice, *found.dropped)) or kind == 'mixture'
    assert Diagnosis.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_what_cannot_be_examined_is_refused(rows):
    with pytest.raises(ConfigError, match='not a list'):
        doctor([])
    with pytest.raises(ConfigError, match='positive'):
        doctor(loader_of(rows), seconds=0)
    with pytest.raises(ConfigError, match='no batch to measure'):
        doctor(loader_of(rows, batch_size=100, drop_last=True), seconds=0.1)
    with pytest.raises(ConfigError, match='has no tasks'):
        doctor(loader_of(rows), nn.Linear(1, 1), seconds=0.1)


def test_a_function_that_trains_is_examined_up_to_where_it_would(rows, tmp_path):
    fit, seen = mm.Trainer.fit, []

    def train(snapshot, *, runs, progress=None):
        try:
            seen.append(runs)
            return mm.Trainer(runs=runs).fit(Counted, loader_of(snapshot.rows()), args={'seconds': 0.0})
        except Exception:
            raise AssertionError('taken for a failure') from None
        finally:
            seen.append('done')

    found = doctor_training(train, rows.snapshot, seconds=0.1)
    assert [stage.name for stage in found.stages][-2:] == ['transfer', 'compute']
    assert seen[1:] == ['done']
    assert mm.Trainer.fit is fit
    assert doctor_training(train, rows.snapshot, with_model=False, seconds=0.1).stages[-1].name == 'transfer'
    with pytest.raises(ConfigError, match='ended without'):
        doctor_training(lambda snapshot, runs: None, rows.snapshot)
    assert mm.Trainer.fit is fit


# What is printed

numbers = st.floats(1e-6, 1e6)
advices = st.builds(
    Advice, setting=st.text(), value=st.one_of(st.integers(), st.text(), st.booleans()), why=st.text(),
    expected_gain=numbers, checked_gain=st.none() | numbers,
)  # fmt: skip
stages = st.builds(
    Stage, name=st.text(), side=st.sampled_from(['host', 'bus', 'device']), seconds=st.just(0.0) | numbers,
    cpu_s=numbers, samples_per_s=st.none() | numbers, samples_per_s_all=st.none() | numbers,
    first_s=st.none() | numbers,
)  # fmt: skip


def tuples(of):
    return st.lists(of, max_size=3).map(tuple)


diagnoses = st.builds(
    Diagnosis, device=st.just('cpu'), batch=numbers, num_workers=st.integers(0, 9), cores=st.integers(1, 9),
    stages=tuples(stages), expected=numbers, measured=numbers, waiting=st.none() | st.floats(0, 1),
    bottleneck=st.text(), share=st.floats(0, 1), gain_without=st.none() | numbers, loading_s=numbers,
    step_s=st.just(0.0) | numbers, advice=tuples(advices), dropped=tuples(advices), notes=tuples(st.text()),
    took_s=numbers,
)  # fmt: skip


@settings(max_examples=50)
@given(diagnosis=diagnoses)
def test_a_diagnosis_comes_back_from_json_and_prints_all_it_holds(diagnosis):
    assert Diagnosis.from_json(json.loads(json.dumps(diagnosis.to_json()))) == diagnosis
    printed = str(diagnosis)
    for each in (*diagnosis.stages, *(advice.why for advice in diagnosis.advice), *diagnosis.notes):
        assert (each.name if isinstance(each, Stage) else each) in printed


PRINTED = """\
batches of 64 to cpu, made by 2 workers; 8 cores; examined in 9.6 s

  stage                  ms/batch    samples/s   of 2 workers
  read                       1.20       53,333        106,667   first time 4.80 ms
  decode photo               62.0        1,032          2,064
  transfer                      0            -
  compute                    15.0        4,267

  measured 1,990 samples/s; 53 % of the time waits for data; the stages come to 2,025
  bottleneck: decode photo, 79 % of the work on a batch; without it 2.1 times as fast
  loading a batch takes 2.1 times as long as the step

  set num_workers=8: expected 2.11x, tried 1.98x. Making a batch takes one worker 63.2 ms, the step 15 ms.
  tried, gains less than 5 %: prefetch_factor=4 (1.01x)
  note: all 6.2 GB fit into memory."""


def test_a_diagnosis_reads_like_this():
    advice = Advice(
        setting='num_workers', value=8, expected_gain=2.11, checked_gain=1.98,
        why='Making a batch takes one worker 63.2 ms, the step 15 ms.',
    )  # fmt: skip
    diagnosis = Diagnosis(
        device='cpu', batch=64.0, num_workers=2, cores=8, expected=2025.0, measured=1990.0, waiting=0.53,
        stages=(
            Stage(name='read', side='host', seconds=0.0012, cpu_s=0.001, samples_per_s=53333.0,
                  samples_per_s_all=106667.0, first_s=0.0048),
            Stage(name='decode photo', side='host', seconds=0.062, cpu_s=0.06, samples_per_s=1032.0,
                  samples_per_s_all=2064.0),
            Stage(name='transfer', side='bus', seconds=0.0, cpu_s=0.0),
            Stage(name='compute', side='device', seconds=0.015, cpu_s=0.015, samples_per_s=4267.0),
        ),
        bottleneck='decode photo', share=0.79, gain_without=2.1, loading_s=0.0316, step_s=0.015, advice=(advice,),
        dropped=(replace(advice, setting='prefetch_factor', value=4, checked_gain=1.01),),
        notes=('all 6.2 GB fit into memory.',), took_s=9.6,
    )  # fmt: skip
    assert str(diagnosis) == PRINTED


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
def test_on_cuda_the_transfer_is_a_stage_and_pinning_is_advised_where_it_is_off(rows):
    loader = DataLoader(rows, batch_size=8, device='cuda', fields=['price', 'kind'], pin_memory=False)
    found = doctor(loader, Counted().cuda(), seconds=2.0)
    times = {stage.name: stage.seconds for stage in found.stages}
    assert times['transfer'] > 0 < times['compute']
    assert any(advice.setting == 'pin_memory' for advice in (*found.advice, *found.dropped))
