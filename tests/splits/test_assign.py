"""Groups stay whole and where they are, and labels are spread as the shares say."""

from __future__ import annotations

from collections import Counter

from drawings import read_rows
from hypothesis import given, settings
from hypothesis import strategies as st

from mmpipe.functions import split_of
from mmpipe.splits.assign import assign

SHARES = {'train': 0.7, 'val': 0.15, 'test': 0.15}
counts = st.dictionaries(st.sampled_from('abc'), st.integers(1, 5), max_size=3).map(Counter)
groups = st.dictionaries(st.text(max_size=3), counts, max_size=12)


@given(groups, groups, st.integers(0, 3))
@settings(max_examples=100)
def test_new_groups_never_move_old_ones(first, more, seed):
    old = assign(first, {}, SHARES, seed=seed)
    assert old.keys() == first.keys()
    everything = {**more, **first}
    new = assign(everything, old, SHARES, seed=seed)
    assert new.keys() == everything.keys() - first.keys()
    assert assign(everything, old | new, SHARES, seed=seed) == {}


@given(groups, st.integers(0, 3))
def test_the_order_in_which_groups_come_does_not_matter(some, seed):
    assert assign(dict(reversed(some.items())), {}, SHARES, seed=seed) == assign(some, {}, SHARES, seed=seed)


def errors(labels, made):
    """How far the share of each label in each split is from what it should be, as a share of the label's rows."""
    total = sum(labels.values(), Counter())
    have = {split: Counter() for split in SHARES}
    for group, split in made.items():
        have[split].update(labels[group])
    return {
        (label, split): abs(have[split][label] / total[label] - share)
        for label in total
        for split, share in SHARES.items()
    }


def test_labels_of_the_drawings_are_spread_nearer_to_their_shares_than_by_a_hash(capsys):
    labels = {}
    for row in read_rows():
        labels.setdefault(row['group'], Counter())[row['category'] or 'unlabelled'] += 1
    first = assign(dict(list(labels.items())[::2]), {}, SHARES)
    ways = {
        'at once': assign(labels, {}, SHARES),
        'in two parts': {**first, **assign(labels, first, SHARES)},
        'by a hash': {group: split_of.py_fn(group, val=0.15, test=0.15) for group in labels},
    }
    found = {way: errors(labels, made) for way, made in ways.items()}
    mean = {way: sum(each.values()) / len(each) for way, each in found.items()}
    with capsys.disabled():
        print('\nerror of the label shares:', ', '.join(f'{way} {value:.3f}' for way, value in mean.items()))
    assert mean['at once'] < 0.025
    assert mean['in two parts'] < 0.03
    assert mean['by a hash'] > 2 * mean['in two parts']
    # Boats come in five groups, the largest of 10 of 26: no whole groups come nearer. Every other label is spread well.
    assert max(error for (label, _), error in found['at once'].items() if label != 'boat') < 0.05


def test_groups_that_come_one_by_one_fill_their_shares():
    labels, made = {}, {}
    for i in range(200):
        labels[f'g{i}'] = Counter('a' if i % 10 else 'rare')
        made |= assign(labels, made, SHARES)
    assert max(errors(labels, made).values()) <= 0.05


def test_a_split_of_share_zero_gets_nothing():
    made = assign({str(i): Counter(a=1) for i in range(9)}, {}, {'train': 0.5, 'val': 0.5, 'test': 0.0})
    assert set(made.values()) == {'train', 'val'}
