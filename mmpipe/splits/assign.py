"""Assign groups to splits so that each split gets its share of every label."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping

ROWS = ''  # counted beside the labels: how many rows a split has at all


def assign(
    groups: Mapping[str, Counter[str]], assigned: Mapping[str, str], shares: Mapping[str, float], *, seed: int = 0
) -> dict[str, str]:
    """Splits for the groups that have none yet, one after the other, the largest first.

    Each goes where it lowers the sum of (rows - wanted)**2 / wanted most: Pearson's chi-squared over splits and labels.
    The groups of before count, so that later ones make up for what they lack.

    Args:
        groups: group to number of its rows per label, assigned groups included.
        assigned: group to split, for those that have one; it is kept.
        shares: split to its share of the rows, adding up to 1; those of share 0 get nothing.
        seed: decides between groups of one size.

    Returns:
        Group to split, for the new ones alone.

    >>> labels = {'a': Counter(cat=2), 'b': Counter(cat=2), 'c': Counter(dog=2), 'd': Counter(dog=2)}
    >>> made = assign(labels, {}, {'train': 0.5, 'val': 0.5})
    >>> made['a'] != made['b'], made['c'] != made['d']
    (True, True)
    >>> assign({**labels, 'e': Counter(cat=9)}, made, {'train': 0.5, 'val': 0.5}).keys()
    dict_keys(['e'])
    """
    open_to = [split for split, share in shares.items() if share > 0]
    counted = {group: counts + Counter({ROWS: max(1, counts.total())}) for group, counts in groups.items()}
    total: Counter[str] = Counter()
    for counts in counted.values():
        total.update(counts)
    have = {split: Counter[str]() for split in open_to}
    for group, split in assigned.items():
        if split in have:
            have[split].update(counted.get(group, Counter()))

    def cost(split: str, counts: Counter[str]) -> float:
        wanted = {label: shares[split] * total[label] for label in counts}
        return sum(n * (2 * (have[split][label] - wanted[label]) + n) / wanted[label] for label, n in counts.items())

    new = sorted(groups.keys() - assigned.keys(), key=lambda group: (-counted[group][ROWS], _place(group, seed)))
    made = {}
    for group in new:
        made[group] = min(open_to, key=lambda split: cost(split, counted[group]))
        have[made[group]].update(counted[group])
    return made


def _place(group: str, seed: int) -> bytes:
    return hashlib.blake2b(f'{seed}:{group}'.encode(), digest_size=8).digest()
