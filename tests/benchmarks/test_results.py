"""Committed results name a script, a commit and a machine, and were measured whole from a clean tree."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / 'benchmarks'
RESULTS = sorted((BENCHMARKS / 'results').glob('*.json'))


def test_the_demo_and_what_a_change_costs_have_been_measured() -> None:
    assert {'demo_stages', 'demo_quality', 'incremental'} <= {path.stem for path in RESULTS}


@pytest.mark.parametrize('path', RESULTS, ids=[path.stem for path in RESULTS])
def test_a_result_says_what_was_measured_where(path: Path) -> None:
    record = json.loads(path.read_text(encoding='utf-8'))
    assert record['benchmark'] == path.stem
    assert (BENCHMARKS / f'{path.stem}.py').is_file()
    assert re.fullmatch('[0-9a-f]{40}', record['commit'])
    assert (record['dirty'], record['quick']) == (False, False)
    assert record['machine']['cores'] >= 1
    assert {'python', 'mmpipe', 'pixeltable', 'torch'} <= record['versions'].keys()
    for figure in record['figures'].values():
        assert figure['values']
        assert figure['q1'] <= figure['median'] <= figure['q3']


def test_the_readme_says_what_was_measured() -> None:
    readme = ' '.join((BENCHMARKS.parent / 'README.md').read_text(encoding='utf-8').split())
    figures = json.loads((BENCHMARKS / 'results' / 'demo_stages.json').read_text(encoding='utf-8'))['figures']

    def median(name: str) -> str:
        return f'{figures[name]["median"]:.1f} s'

    ingest = [median(f'ingest, {what}') for what in ('all columns', 'nothing new', 'held-back rows')]
    assert f'took {ingest[0]}, the same again {ingest[1]}, 34 rows more {ingest[2]}' in readme
    frozen = [median(name) for name in ('snapshot', 'snapshot, nothing new', 'snapshot, held-back rows')]
    assert f'freezing them took {frozen[0]}, nothing new {frozen[1]}, the 34 rows {frozen[2]}' in readme
    share = figures['ingest photo, rate']['median'] / figures['photo, bare loop, rate']['median']
    assert f'The photo column reached {100 * share:.0f} % of the' in readme


def test_the_readme_says_what_a_change_was_measured_to_cost() -> None:
    readme = ' '.join((BENCHMARKS.parent / 'README.md').read_text(encoding='utf-8').split())
    figures = json.loads((BENCHMARKS / 'results' / 'incremental.json').read_text(encoding='utf-8'))['figures']
    at = {name: figure['median'] for name, figure in figures.items()}
    for text in (
        f'before in {at["large_s"]:.0f} s,',
        f'took {at["large_delta_without_ingest_s"]:.1f} s for plan, apply and snapshot',
        f'and {at["large_delta_ingest_s"]:.1f} s for an ingest that looks at all 101,000 files',
        f'a plan of nothing changed took {at["no_change_plan_s"]:.2f} s',
        f'1,000,000 rows with 100 changed {at["feed_1m_100_s"]:.3f} s',
        f'the delta took {at["delta_over_export"]:.2f} of the time',
        f'({at["delta_over_export_resized"]:.2f} where it resizes)',
        f'reached {at["model_udf_over_bare_loop"]:.2f} of the photos/s',
        f'a CPU function {at["cpu_udf_scaling"]:.2f} times',
        f'peak memory grew by {at["peak_memory_growth"]:.2f}',
    ):
        assert text in readme


def test_the_readme_says_how_the_loader_was_measured_beside_others() -> None:
    readme = ' '.join((BENCHMARKS.parent / 'README.md').read_text(encoding='utf-8').split())
    figures = json.loads((BENCHMARKS / 'results' / 'loaders.json').read_text(encoding='utf-8'))['figures']
    at = {name: figure['median'] for name, figure in figures.items()}
    for text in (
        f'batches of 256 came {at["decoded_b256_over_ffcv"]:.1f} times as fast,',
        f'of 64 {at["decoded_b64_over_ffcv"]:.1f} times',
        f'JPEG crops {at["encoded_over_best_peer"]:.1f} times as fast as the best',
        f'{at["encoded_over_imagefolder"]:.1f} times as ImageFolder',
        f'reached {at["decoded_b64_of_memcpy"]:.2f} to {at["decoded_b256_of_memcpy"]:.2f} of the rate of copying',
        f'and {at["decoded_over_best_streaming"]:.1f} times the best streaming format',
    ):
        assert text in readme


def test_the_table_of_searches_is_that_of_the_record() -> None:
    text = (BENCHMARKS / 'README.md').read_text(encoding='utf-8')
    figures = json.loads((BENCHMARKS / 'results' / 'tuning_search.json').read_text(encoding='utf-8'))['figures']
    for name, label in (('random', 'random'), ('tpe', 'TPE'), ('gp', 'GP')):
        cells = []
        for problem in ('digits', 'diabetes'):
            for what, digits in (('trials', 0), ('s', 1)):
                figure = figures[f'{problem}_{name}_{what}']
                median, low, high = (f'{figure[key]:.{digits}f}' for key in ('median', 'q1', 'q3'))
                cells.append(f'{median} ({low} to {high})')
        assert f'| {label} | {" | ".join(cells)} |' in text, name


def test_what_lies_past_one_process_is_told_as_it_was_recorded() -> None:
    table = (BENCHMARKS / 'README.md').read_text(encoding='utf-8')
    readme = ' '.join((BENCHMARKS.parent / 'README.md').read_text(encoding='utf-8').split())
    record = json.loads((BENCHMARKS / 'results' / 'scale.json').read_text(encoding='utf-8'))
    assert 'failed' not in record['notes']
    for name, wanted in record['notes']['wanted'].items():
        figure = record['figures'][name]
        median, low, high = (f'{figure[key]:.3g}' for key in ('median', 'q1', 'q3'))
        assert f'| `{name}` | {median} ({low} to {high}) | {wanted} |' in table, name
    at = {name: figure['median'] for name, figure in record['figures'].items()}
    for text in (
        f'{at["parity_tensor_bf16"]:.4f} to {at["parity_data_x_tensor_bf16"]:.4f}, where DDP and FSDP2 are at '
        f'{at["parity_ddp_bf16"]:.4f}',
        f'(`parity_halves_bf16`) is {at["parity_halves_bf16"]:.4f}',
        f'bf16 {at["parity_noise_bf16"]:.4f} beside float32',
        f'take {at["tune_start_s"]:.1f} s to start',
        f'was {at["federated_round_s"]:.1f} s, of which {at["federated_own_s"]:.2f} s are not training',
        f'all {at["rank_kills_ok"]:.0f} of ranks, {at["ray_kills_ok"]:.0f} of Ray',
    ):
        assert text in ' '.join(table.split())
    for text in (
        f'all {at["random_kills_ok"]:.0f} were survived',
        f'by {100 * at["parity_max_rel_bf16"]:.1f} % after five steps',
        f'run {at["tune_scaling"]:.2f} times the trials',
    ):
        assert text in readme


def test_the_tables_of_real_data_are_those_of_the_record() -> None:
    text = (BENCHMARKS / 'README.md').read_text(encoding='utf-8')
    figures = json.loads((BENCHMARKS / 'results' / 'real_data.json').read_text(encoding='utf-8'))['figures']
    for name, figure in figures.items():
        if name.rpartition('_')[2] not in ('parameters', 's'):
            digits = 0 if figure['unit'] == 'g' else 3
            assert f'{np.mean(figure["values"]):.{digits}f} ± {np.std(figure["values"]):.{digits}f}' in text, name
