"""The record of `loaders.py` as a picture: a bar for each loader, with the quartiles of its rounds.

python loaders_plot.py results/loaders.json results/loaders.png
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

OURS, OTHERS, LIMIT, INK = '#1b6ca8', '#b9c0c7', '#e0a030', '#333333'
PANELS = (
    ('Decoded rows, batch 64', 64, 'decoded'),
    ('Decoded rows, batch 256', 256, 'decoded'),
    ('JPEG 500 x 375 to random crops, batch 64', 64, 'photos'),
)
LEFT_OUT = ('fragmented', 'compacted')


def bars(record: dict[str, Any], batch: int, data: str) -> list[tuple[str, str, dict[str, float]]]:
    """(title, colour, figure) of a panel, the fastest last."""
    figures, found = record['figures'], []
    for name, peer in record['notes']['peers'].items():
        figure = figures.get(f'{name}_b{batch}')
        if figure is not None and peer['data'] == data and name not in LEFT_OUT:
            found.append((peer['title'], OURS if name.startswith('mmpipe') else OTHERS, figure))
    if data == 'decoded' and 'memcpy' in figures:
        found.append(('copying memory, 2 threads', LIMIT, figures['memcpy']))
    return sorted(found, key=lambda bar: bar[2]['median'])


def table(record: dict[str, Any]) -> list[str]:
    """The figures that something is wanted of, a row of Markdown each: name, median and quartiles, what is wanted.

    >>> figure = {'median': 2.0, 'q1': 1.9, 'q3': 2.125}
    >>> table({'notes': {'wanted': {'x_over_y': 'at least 1.8'}}, 'figures': {'x_over_y': figure}})
    ['| `x_over_y` | 2 (1.9 to 2.12) | at least 1.8 |']
    """
    rows = []
    for name, wanted in record['notes']['wanted'].items():
        figure = record['figures'].get(name)
        said = 'not measured' if figure is None else '{median:.3g} ({q1:.3g} to {q3:.3g})'.format(**figure)
        rows.append(f'| `{name}` | {said} | {wanted} |')
    return rows


def plot(record: dict[str, Any], path: Path) -> None:
    """Draw the record."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot

    panels = [(title, bars(record, batch, data)) for title, batch, data in PANELS]
    panels = [(title, found) for title, found in panels if found]
    heights = [len(found) + 1.2 for _, found in panels]
    figure, axes = pyplot.subplots(
        len(panels), 1, figsize=(9, 0.36 * sum(heights) + 1), squeeze=False, height_ratios=heights, layout='constrained'
    )
    for axis, (title, found) in zip(axes[:, 0], panels, strict=True):
        draw(axis, title, found)
    machine = record['machine']
    where = f'{machine["cores"]} cores, {machine["cpu"]}; {record["started"][:10]}'
    below = f'median and quartiles of interleaved rounds; {where}'
    figure.supxlabel(f'images per second\n{below}', fontsize=8, color=INK)
    figure.savefig(path, dpi=150)


def draw(axis: Any, title: str, found: list[tuple[str, str, dict[str, float]]]) -> None:
    """One panel."""
    medians = [figure['median'] for _, _, figure in found]
    spread = [
        [figure['median'] - figure['q1'] for _, _, figure in found],
        [figure['q3'] - figure['median'] for _, _, figure in found],
    ]
    colours = [colour for _, colour, _ in found]
    errors = {'ecolor': INK, 'elinewidth': 1, 'capsize': 2}
    axis.barh(range(len(found)), medians, xerr=spread, color=colours, error_kw=errors)
    axis.set_yticks(range(len(found)), [name for name, _, _ in found], fontsize=9)
    axis.set_title(title, loc='left', fontsize=10, color=INK)
    axis.set_xlim(0, max(figure['q3'] for _, _, figure in found) * 1.15)
    for row, (_, _, figure) in enumerate(found):
        at, text = (figure['q3'], row), f'{figure["median"]:,.0f}'
        axis.annotate(text, at, xytext=(6, 0), textcoords='offset points', va='center', fontsize=8)
    axis.xaxis.set_major_formatter('{x:,.0f}')
    axis.tick_params(axis='x', labelsize=8)
    axis.spines[['top', 'right']].set_visible(False)


if __name__ == '__main__':
    found = json.loads(Path(sys.argv[1]).read_text(encoding='utf-8'))
    if len(sys.argv) > 2:
        plot(found, Path(sys.argv[2]))
    else:
        print('\n'.join(table(found)))
