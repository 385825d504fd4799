"""What the doctor says, as frozen values that print well."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from mmpipe.wording import how_many

GAIN = 1.05  # below it, two settings count as equally fast


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage, measured by itself.

    Args:
        name: 'read', 'decode photo', 'transform photo', 'collate', 'transfer', 'device transforms' or 'compute'.
        side: 'host' is done by the workers, 'bus' is the way to the device, 'device' comes after it.
        seconds: per batch, by one worker; of 'read' on rows that were read before.
        cpu_s: seconds per batch in which a core works for it; on an accelerator, those that it takes to start the work.
        samples_per_s: by one worker; None where it takes no time.
        samples_per_s_all: by all workers together.
        first_s: of 'read', seconds per batch when its rows were read for the first time here.
    """

    name: str
    side: Literal['host', 'bus', 'device']
    seconds: float
    cpu_s: float
    samples_per_s: float | None = None
    samples_per_s_all: float | None = None
    first_s: float | None = None

    def scaled(self, factor: float) -> Stage:
        """The same, taking so many times as long.

        >>> Stage(name='read', side='host', seconds=0.5, cpu_s=0.25).scaled(2).cpu_s
        0.5
        """
        return replace(self, seconds=self.seconds * factor, cpu_s=self.cpu_s * factor)


@dataclass(frozen=True, kw_only=True)
class Advice:
    """One thing to set.

    Args:
        setting: argument of `mm.DataLoader`, or what else to do.
        value: what to set it to.
        why: one sentence.
        expected_gain: samples per second with it, over those without, as the measured stages let expect.
        checked_gain: the same, measured by running the loader with and without it in turns; None where it was not.
    """

    setting: str
    value: Any
    why: str
    expected_gain: float
    checked_gain: float | None = None

    def __str__(self) -> str:
        checked = 'not tried' if self.checked_gain is None else f'tried {self.checked_gain:.2f}x'
        return f'{self.setting}={self.value}: expected {self.expected_gain:.2f}x, {checked}. {self.why}'


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What `doctor` found; every gain is a factor of samples per second.

    Args:
        device: where batches go.
        batch: mean samples per batch on this rank.
        num_workers: of the loader.
        cores: that this process may use.
        stages: each measured by itself.
        expected: samples per second that the stages come to together.
        measured: samples per second of the loader as it is, with the training step where a model was given.
        waiting: share of the time in which the step waits for data; None without a model.
        bottleneck: name of the stage that limits.
        share: its part of the work on a batch, in seconds of all stages.
        gain_without: what the whole would gain if that stage took no time.
        loading_s: seconds per batch that the workers need, all together.
        step_s: seconds per batch that the device and the thread that iterates need.
        advice: what to set, the largest gain first.
        dropped: what was tried and gained less than 5 %.
        notes: what else to know.
        took_s: seconds the examination took.

    >>> read = Stage(name='read', side='host', seconds=0.002, cpu_s=0.002, samples_per_s=4000.0)
    >>> print(Diagnosis(device='cpu', batch=8.0, num_workers=0, cores=2, stages=(read,), expected=4000.0,
    ...     measured=3950.0, waiting=None, bottleneck='read', share=1.0, gain_without=None, loading_s=0.002, step_s=0.0,
    ...     advice=(), dropped=(), notes=(), took_s=1.0))
    batches of 8 to cpu, read by the thread that iterates; 2 cores; examined in 1.0 s
    <BLANKLINE>
      stage                  ms/batch    samples/s
      read                       2.00        4,000
    <BLANKLINE>
      measured 3,950 samples/s; the stages come to 4,000
      bottleneck: read, 100 % of the work on a batch
    """

    device: str
    batch: float
    num_workers: int
    cores: int
    stages: tuple[Stage, ...]
    expected: float
    measured: float
    waiting: float | None
    bottleneck: str
    share: float
    gain_without: float | None
    loading_s: float
    step_s: float
    advice: tuple[Advice, ...]
    dropped: tuple[Advice, ...]
    notes: tuple[str, ...]
    took_s: float

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values; `from_json` gives it back."""
        return {name: _listed(value) for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Diagnosis:
        """What `to_json` described."""
        parts = {
            'stages': tuple(Stage(**each) for each in value['stages']),
            'advice': tuple(Advice(**each) for each in value['advice']),
            'dropped': tuple(Advice(**each) for each in value['dropped']),
            'notes': tuple(value['notes']),
        }
        return cls(**{**value, **parts})

    def __str__(self) -> str:
        lines = [f'{self._head()}; {how_many(self.cores, "core")}; examined in {self.took_s:.1f} s', '']
        lines += [*self._table(), '', *self._found(), *self._settings()]
        return '\n'.join(lines)

    def _head(self) -> str:
        workers = 'read by the thread that iterates'
        if self.num_workers:
            workers = f'made by {how_many(self.num_workers, "worker")}'
        return f'batches of {self.batch:.4g} to {self.device}, {workers}'

    def _table(self) -> list[str]:
        several = self.num_workers > 1
        lines = [
            f'  {"stage":<20} {"ms/batch":>10} {"samples/s":>12}'
            + (f' {f"of {self.num_workers} workers":>14}' if several else '')
        ]
        for stage in self.stages:
            line = f'  {stage.name:<20} {_short(1000 * stage.seconds):>10} {_rate(stage.samples_per_s):>12}'
            if several:
                line += f' {_rate(stage.samples_per_s_all) if stage.side == "host" else "":>14}'
            if stage.first_s is not None and stage.first_s > 1.5 * stage.seconds:
                line += f'   first time {_short(1000 * stage.first_s)} ms'
            lines.append(line.rstrip())
        return lines

    def _found(self) -> list[str]:
        waiting = '' if self.waiting is None else f'; {100 * self.waiting:.0f} % of the time waits for data'
        lines = [f'  measured {self.measured:,.0f} samples/s{waiting}; the stages come to {self.expected:,.0f}']
        line = f'  bottleneck: {self.bottleneck}, {100 * self.share:.0f} % of the work on a batch'
        if self.gain_without is not None:
            line += f'; without it {_factor(self.gain_without)} as fast'
        lines.append(line)
        if self.waiting is not None:
            lines.append(f'  {self._compared()}')
        return lines

    def _compared(self) -> str:
        """Loading and step beside each other."""
        if self.waiting is not None and self.waiting < GAIN - 1:
            return f'loading is not the bottleneck: {100 * self.waiting:.0f} % waiting'
        if self.loading_s >= self.step_s > 0:
            return f'loading a batch takes {_factor(self.loading_s / self.step_s)} as long as the step'
        part = f'{100 * self.loading_s / self.step_s:.0f} % of' if self.step_s else 'as long as'
        return f'loading a batch takes {part} the time of the step'

    def _settings(self) -> list[str]:
        lines = [''] if self.advice or self.dropped or self.notes else []
        lines += [f'  set {advice}' for advice in self.advice]
        if self.dropped:
            tried = ', '.join(f'{each.setting}={each.value} ({each.checked_gain or 0:.2f}x)' for each in self.dropped)
            lines.append(f'  tried, gains less than 5 %: {tried}')
        return lines + [f'  note: {note}' for note in self.notes]


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _short(value: float) -> str:
    """Three digits or so of a number of milliseconds.

    >>> _short(1234.5), _short(12.345), _short(0.0123), _short(0)
    ('1,234', '12.3', '0.012', '0')
    """
    if not value:
        return '0'
    return (
        f'{value:,.0f}'
        if value >= 100
        else f'{value:.1f}'
        if value >= 10
        else f'{value:.2g}'
        if value < 0.1
        else f'{value:.2f}'
    )


def _rate(value: float | None) -> str:
    return '-' if value is None else f'{value:,.0f}' if value >= 10 else f'{value:.1f}'


def _factor(value: float) -> str:
    """Words for a factor.

    >>> _factor(2.04), _factor(250.0)
    ('2.0 times', 'over 10 times')
    """
    return f'{value:.1f} times' if value <= 10 else 'over 10 times'
