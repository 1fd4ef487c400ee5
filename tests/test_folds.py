"""Sides never move, folds are balanced, nobody is on two sides."""

import pandas as pd
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from reperfuse.cohort.folds import first_by_hash, folds_table, side_of
from reperfuse.errors import InputError

ids = st.lists(st.text("abcdef0123456789", min_size=1, max_size=8), unique=True, min_size=1, max_size=40)
salts = st.text(max_size=6)
fractions = st.floats(0.05, 0.95)
# Many draws are too few subjects to split, which is refused: no reason to call the test unhealthy.
quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])


def cohort_of(names, n_centres=5):
    return pd.DataFrame(
        {
            "participant_id": [f"sub-{name}" for name in names],
            "centre": [f"R{sum(map(ord, name)) % n_centres:03d}" for name in names],
            "lesion_volume_ml": [float(sum(map(ord, name)) % 97) for name in names],
        }
    )


def table_or_refusal(cohort, **choice):
    try:
        return folds_table(cohort, **choice)
    except InputError as error:
        assert "folds." in str(error)
        assume(False)


@quick
@given(ids, ids, salts, fractions)
def test_adding_subjects_moves_nobody_between_train_and_holdout(old, new, salt, fraction):
    both = sorted({*old, *new})
    before = dict(zip(old, side_of(old, salt=salt, holdout_fraction=fraction), strict=True))
    after = dict(zip(both, side_of(both, salt=salt, holdout_fraction=fraction), strict=True))
    assert {name: after[name] for name in old} == before


@quick
@given(ids, salts, fractions, fractions)
def test_a_larger_holdout_contains_the_smaller_one(names, salt, one, other):
    held = [
        {
            name
            for name, side in zip(names, side_of(names, salt=salt, holdout_fraction=f), strict=True)
            if side != "train"
        }
        for f in sorted((one, other))
    ]
    assert held[0] <= held[1]


@quick
@given(ids, salts, fractions, st.integers(2, 5), st.sampled_from(["participant_id", "centre"]))
def test_no_group_is_on_two_sides_and_every_fold_has_somebody(names, salt, fraction, n_folds, group_by):
    table = table_or_refusal(
        cohort_of(names, n_centres=9), n_folds=n_folds, holdout_fraction=fraction, salt=salt, group_by=group_by
    )
    assert sorted(table.participant_id) == sorted(f"sub-{name}" for name in names)
    assert (table.groupby(group_by)["side"].nunique() == 1).all()
    train = table[table.side == "train"]
    assert (train.groupby(group_by)["fold"].nunique() == 1).all()
    assert set(train.fold) == set(range(n_folds))
    assert table.loc[table.side == "holdout", "fold"].isna().all()


@quick
@given(ids, ids, salts, st.sampled_from(["participant_id", "centre"]))
def test_the_table_keeps_sides_when_subjects_join(old, new, salt, group_by):
    choice = {"n_folds": 2, "holdout_fraction": 0.3, "salt": salt, "group_by": group_by}
    before = table_or_refusal(cohort_of(old), **choice).set_index("participant_id")["side"]
    after = table_or_refusal(cohort_of(sorted({*old, *new})), **choice).set_index("participant_id")["side"]
    assert (after[before.index] == before).all()


@quick
@given(ids, salts, st.integers(2, 5), st.randoms())
def test_folds_are_balanced_and_blind_to_the_order_of_rows(names, salt, n_folds, random):
    choice = {"n_folds": n_folds, "holdout_fraction": 0.2, "salt": salt}
    table = table_or_refusal(cohort_of(names), **choice)
    sizes = table.fold.value_counts()
    assert sizes.max() - sizes.min() <= 1
    random.shuffle(names)
    assert folds_table(cohort_of(names), **choice).equals(table)


@quick
@given(ids, salts, st.integers(1, 6), st.sampled_from(["participant_id", "centre"]), st.randoms())
def test_a_count_holds_out_exactly_so_many_groups_whatever_the_order_of_rows(names, salt, count, group_by, random):
    choice = {"n_folds": 2, "holdout_fraction": 0.3, "salt": salt, "group_by": group_by, "holdout_count": count}
    table = table_or_refusal(cohort_of(names, n_centres=9), **choice)
    assert table.loc[table.side == "holdout", group_by].nunique() == count
    assert (table.groupby(group_by)["side"].nunique() == 1).all()
    assert set(table.fold.dropna()) == {0, 1}
    random.shuffle(names)
    assert folds_table(cohort_of(names, n_centres=9), **choice).equals(table)


@quick
@given(ids, salts, st.integers(1, 20), st.integers(1, 20))
def test_a_larger_count_contains_the_smaller_one(names, salt, one, other):
    few, many = (set(held_out(first_by_hash(names, salt=salt, count=n), names)) for n in sorted((one, other)))
    assert few <= many
    assert len(many) == min(max(one, other), len(names))


@quick
@given(ids, salts, st.floats(0.05, 0.95))
def test_a_count_and_a_share_draw_in_the_same_order(names, salt, fraction):
    by_share = held_out(side_of(names, salt=salt, holdout_fraction=fraction), names)
    assert held_out(first_by_hash(names, salt=salt, count=len(by_share)), names) == by_share


def held_out(sides, names):
    return [name for name, side in zip(names, sides, strict=True) if side == "holdout"]


def test_the_first_by_hash_is_fixed_for_ever():
    names = [f"sub-{n}" for n in range(8)]
    assert held_out(first_by_hash(names, salt="reperfuse", count=2), names) == ["sub-3", "sub-4"]


def test_every_fold_gets_small_and_large_lesions():
    cohort = pd.DataFrame(
        {"participant_id": [f"sub-{n:03d}" for n in range(90)], "lesion_volume_ml": [1.5**n for n in range(90)]}
    )
    table = folds_table(cohort, n_folds=3, holdout_fraction=0.2, salt="s").merge(cohort)
    train = table[table.side == "train"]
    large = train.lesion_volume_ml > train.lesion_volume_ml.median()
    share = large.groupby(train.fold).mean()
    assert share.min() > 0.35
    assert share.max() < 0.65


def test_the_share_held_out_is_the_one_asked_for():
    sides = side_of([f"sub-{n:05d}" for n in range(20_000)], salt="s", holdout_fraction=0.25)
    assert abs(sides.count("holdout") / len(sides) - 0.25) < 0.01


def test_another_salt_draws_another_holdout():
    names = [f"sub-{n}" for n in range(50)]
    assert side_of(names, salt="a", holdout_fraction=0.5) != side_of(names, salt="b", holdout_fraction=0.5)


def test_the_draw_is_fixed_for_ever():
    """A published hold-out must survive every later version: these sides are written down."""
    sides = side_of([f"sub-{n}" for n in range(8)], salt="reperfuse", holdout_fraction=0.5)
    assert sides == ["holdout", "train", "train", "holdout", "holdout", "train", "train", "train"]


def test_two_sessions_are_one_subject():
    cohort = pd.DataFrame({"participant_id": ["sub-a", "sub-a", *[f"sub-{n}" for n in range(20)]]})
    table = folds_table(cohort, n_folds=2, holdout_fraction=0.3, salt="s")
    assert table.participant_id.is_unique
    assert len(table) == 21


@pytest.mark.parametrize(
    ("rows", "change", "sentence"),
    [
        (0, {}, "run `reperfuse ingest`"),
        (1, {}, "folds.holdout_fraction"),
        (9, {"n_folds": 20}, "lower folds.n_folds"),
        (9, {"holdout_fraction": 1e-9}, "folds.salt"),
        (9, {"holdout_fraction": 1 - 1e-9}, "None of 9 subjects is for training"),
        (9, {"holdout_fraction": 1.5}, "between 0 and 1"),
        (9, {"holdout_count": 7}, "folds.holdout_count = 7, 2 of 9 subjects are left for training"),
        (9, {"holdout_count": 40}, "0 of 9 subjects are left"),
        (9, {"holdout_count": 0}, "hold out at least 1"),
        (9, {"group_by": "centre"}, "centre of sub-0, sub-1, sub-2 is unknown"),
    ],
)
def test_what_cannot_be_split_is_refused_with_what_to_change(rows, change, sentence):
    cohort = pd.DataFrame({"participant_id": [f"sub-{n}" for n in range(rows)], "centre": ["n/a"] * rows})
    with pytest.raises(InputError, match=sentence):
        folds_table(cohort, **{"n_folds": 3, "holdout_fraction": 0.25, "salt": "s", **change})


def test_a_subject_in_two_centres_is_refused():
    cohort = pd.DataFrame({"participant_id": ["sub-a", "sub-a"], "centre": ["R001", "R002"]})
    with pytest.raises(InputError, match="several centres"):
        folds_table(cohort, n_folds=2, holdout_fraction=0.5, salt="s")
