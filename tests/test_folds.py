"""Sides never move, folds are balanced, nobody is on two sides."""

from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from reperfuse.cohort.folds import ENOUGH_CENTRES, choose_group, first_by_hash, folds_table, side_of
from reperfuse.errors import InputError
from reperfuse.params import Folds, Params
from reperfuse.stages import layout
from reperfuse.stages.processed import write_folds

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
        (9, {"group_by": "auto"}, "choose participant_id or centre"),
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


def at_centres(sizes, first=0):
    """`sizes[i]` subjects at centre `first + i`."""
    rows = [(f"sub-{i:03d}x{n:04d}", f"C{i:03d}") for i, size in enumerate(sizes, start=first) for n in range(size)]
    return pd.DataFrame(rows, columns=["participant_id", "centre"])


centre_sizes = st.lists(st.integers(1, 9), min_size=1, max_size=30)


def auto_table(cohort, **choice):
    """As the stage does it: what `auto` chose, and the table."""
    group_by, _ = choose_group(cohort, "auto")
    return group_by, table_or_refusal(cohort, group_by=group_by, **choice)


@quick
@given(centre_sizes, salts, fractions, st.integers(2, 5))
def test_by_default_no_centre_is_on_two_sides_or_in_two_folds_where_centres_are_enough(sizes, salt, fraction, n_folds):
    group_by, table = auto_table(at_centres(sizes), n_folds=n_folds, holdout_fraction=fraction, salt=salt)
    assert table.participant_id.is_unique and len(table) == sum(sizes)
    assert (group_by == "centre") == (len(sizes) >= ENOUGH_CENTRES)
    if len(sizes) >= ENOUGH_CENTRES:
        assert (table.groupby("centre")["side"].nunique() == 1).all()
        train = table[table.side == "train"]
        assert (train.groupby("centre")["fold"].nunique() == 1).all()
        assert set(train.fold) == set(range(n_folds))


@quick
@given(centre_sizes, st.integers(0, 9), centre_sizes, salts, fractions)
def test_by_default_new_subjects_and_centres_move_nobody_until_centres_are_enough(sizes, grown, more, salt, fraction):
    choice = {"n_folds": 2, "holdout_fraction": fraction, "salt": salt}
    old = at_centres(sizes)
    bigger = pd.concat([at_centres([size + grown for size in sizes]), at_centres(more, first=len(sizes))])
    (group_then, before), (group_now, after) = auto_table(old, **choice), auto_table(bigger, **choice)
    if group_then == group_now:
        sides = after.set_index("participant_id")["side"]
        assert (sides[before["participant_id"]].to_numpy() == before["side"].to_numpy()).all()
    else:
        assert len(sizes) < ENOUGH_CENTRES <= len(sizes) + len(more)


@quick
@given(centre_sizes, salts, fractions, st.integers(2, 5), st.integers(0, 2**32 - 1))
def test_the_default_split_is_blind_to_the_order_of_rows_and_the_same_twice(sizes, salt, fraction, n_folds, seed):
    choice = {"n_folds": n_folds, "holdout_fraction": fraction, "salt": salt}
    group_by, table = auto_table(at_centres(sizes), **choice)
    again, shuffled = auto_table(at_centres(sizes).sample(frac=1, random_state=seed), **choice)
    assert again == group_by and shuffled.equals(table)


@quick
@given(st.lists(st.integers(1, 9), min_size=ENOUGH_CENTRES, max_size=30), salts, st.integers(2, 5))
def test_folds_of_centres_differ_by_no_more_than_the_largest_centre(sizes, salt, n_folds):
    table = table_or_refusal(
        at_centres(sizes), n_folds=n_folds, holdout_fraction=0.2, salt=salt, group_by="centre"
    ).dropna(subset="fold")
    loads = table.fold.value_counts()
    assert loads.max() - loads.min() <= table.centre.value_counts().max()


def test_auto_goes_by_subject_where_no_centre_is_known_or_only_one():
    unknown = pd.DataFrame({"participant_id": [f"sub-{n}" for n in range(12)]})
    for cohort in (unknown, unknown.assign(centre="n/a"), unknown.assign(centre="R001")):
        group_by, why = choose_group(cohort, "auto")
        assert group_by == "participant_id"
        assert f"here {int('R001' in cohort.to_numpy())}" in why
        plain = folds_table(cohort, n_folds=3, holdout_fraction=0.25, salt="reperfuse")
        assert folds_table(cohort, n_folds=3, holdout_fraction=0.25, salt="reperfuse", group_by=group_by).equals(plain)


def test_auto_goes_by_centre_from_ten_centres_on_however_many_subjects_they_have():
    assert ENOUGH_CENTRES == 10
    assert choose_group(at_centres([50] * 9), "auto")[0] == "participant_id"
    assert choose_group(at_centres([1] * 10), "auto") == (
        "centre",
        "by centre: folds.group_by is auto, and all 10 centres are known",
    )


@pytest.mark.parametrize("asked", ["participant_id", "centre"])
@pytest.mark.parametrize("n_centres", [1, 30])
def test_what_is_asked_for_is_taken(asked, n_centres):
    assert choose_group(at_centres([2] * n_centres), asked)[0] == asked


@pytest.mark.parametrize("mark", [None, "", "n/a", "unknown"])
def test_a_subject_of_unknown_centre_among_enough_known_ones_is_refused_not_split_by_subject(mark):
    cohort = at_centres([2] * ENOUGH_CENTRES)
    cohort.loc[5, "centre"] = mark
    with pytest.raises(InputError, match=f"centre of {cohort.participant_id[5]} is unknown: fill in participants.tsv"):
        choose_group(cohort, "auto")
    few = at_centres([2] * (ENOUGH_CENTRES - 1))
    few.loc[5, "centre"] = mark
    assert choose_group(few, "auto")[0] == "participant_id"


def test_centres_that_cannot_fill_the_folds_are_told_the_way_out():
    with pytest.raises(InputError, match=r"bring more centres, or set folds\.group_by to participant_id"):
        folds_table(at_centres([3] * 10), n_folds=20, holdout_fraction=0.25, salt="s", group_by="centre")


def test_the_split_of_500_and_154():
    cohort = at_centres([20] * 30 + [18] * 3)
    assert len(cohort) == 654
    table = folds_table(cohort, n_folds=5, holdout_fraction=0.25, salt="reperfuse", holdout_count=154)
    assert table.side.value_counts().to_dict() == {"train": 500, "holdout": 154}
    assert table.fold.value_counts().to_dict() == dict.fromkeys(range(5), 100)


@pytest.mark.parametrize("group_by", ["participant_id", "centre"])
@pytest.mark.parametrize(("n_folds", "shares"), [(4, (0.6, 0.2, 0.2)), (5, (0.64, 0.16, 0.2))])
def test_a_holdout_of_20_percent_and_4_folds_is_60_20_20(n_folds, shares, group_by):
    """And 80/20 whatever the folds are; of centres too, though they differ in size ninefold."""
    cohort = at_centres([1 + i % 9 for i in range(1000)])
    table = folds_table(cohort, n_folds=n_folds, holdout_fraction=0.2, salt="s", group_by=group_by)
    held_out = (table.side == "holdout").mean()
    for fold in range(n_folds):
        validates = (table.fold == fold).sum() / len(table)
        assert (1 - held_out - validates, validates, held_out) == pytest.approx(shares, abs=0.03)


def test_one_centre_is_left_out_whole():
    table = folds_table(
        at_centres([5, 7, 3, 9]), n_folds=3, holdout_fraction=0.25, salt="s", group_by="centre", holdout_count=1
    )
    assert table.groupby("side")["centre"].nunique().to_dict() == {"holdout": 1, "train": 3}


def demo_cohort():
    return pd.DataFrame(
        [(f"sub-r{i % 4 + 1:03d}s{i // 4 + 1:03d}", f"R{i % 4 + 1:03d}") for i in range(20)],
        columns=["participant_id", "centre"],
    )


DEMO_HOLDOUT = ["sub-r001s001", "sub-r001s005", "sub-r002s001", "sub-r002s002", "sub-r002s004", "sub-r004s003"]


def folds_of(cohort, settings, tmp_path, monkeypatch):
    """folds.csv as the stage writes it."""
    monkeypatch.chdir(tmp_path)
    path = Path(layout.cohort_csv("lesion"))
    path.parent.mkdir(parents=True, exist_ok=True)
    cohort.to_csv(path, index=False)
    write_folds("lesion", settings)
    return pd.read_csv(layout.folds_csv("lesion"), dtype={"centre": str})


def test_the_demo_with_its_four_centres_holds_out_whom_it_always_did(tmp_path, monkeypatch, capsys):
    settings = Params().lesion.folds
    assert settings.group_by == "auto" and Params().perfusion.folds.group_by == "auto"
    table = folds_of(demo_cohort(), settings, tmp_path, monkeypatch)
    assert list(table.loc[table.side == "holdout", "participant_id"]) == DEMO_HOLDOUT
    assert capsys.readouterr().out == (
        "14 subjects in 3 folds, 6 held out, by subject: folds.group_by auto goes by centre from 10 known centres on, "
        "here 4.\n"
    )


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ("auto", "by centre: folds.group_by is auto, and all 33 centres are known."),
        ("centre", "by centre, as folds.group_by says."),
        ("participant_id", "by subject, as folds.group_by says."),
    ],
)
def test_the_stage_says_what_stays_together_and_why(asked, sentence, tmp_path, monkeypatch, capsys):
    table = folds_of(at_centres([20] * 33), Folds(group_by=asked), tmp_path, monkeypatch)
    assert capsys.readouterr().out.endswith(f"held out, {sentence}\n")
    assert (table.groupby("centre")["side"].nunique() == 1).all() == (asked != "participant_id")


def test_centres_named_by_numbers_keep_their_sides_when_one_of_another_name_joins(tmp_path, monkeypatch):
    """A column of 01, 02, ... is read as text also while nothing in it but numbers stands."""
    cohort = at_centres([3] * 20)
    cohort["centre"] = cohort["centre"].str[2:]
    settings = Folds(group_by="centre")
    before = folds_of(cohort, settings, tmp_path, monkeypatch)
    after = folds_of(pd.concat([cohort, at_centres([3], first=20)]), settings, tmp_path, monkeypatch)
    assert after[after.participant_id.isin(before.participant_id)].side.tolist() == before.side.tolist()
    assert before.centre.tolist() == cohort.centre.tolist()
