"""Who is held out, and who validates whom: sides by a salted hash, folds by a balanced deal."""

from collections.abc import Iterable
from hashlib import blake2b
from typing import Literal

import numpy as np
import pandas as pd

from reperfuse.errors import InputError

UNKNOWN_CENTRE = "unknown"
"""Centre of a subject whose tree does not tell it."""

N_STRATA = 3
"""Lesion-volume terciles: enough to keep small lesions in every fold, few enough for a dozen subjects."""

ENOUGH_CENTRES = 10
"""From so many on, whole centres are held out unless told otherwise: at a share of 0.25 a draw of k centres holds out
none with probability 0.75^k, which is 32 % of 4 and 6 % of 10."""

Group = Literal["participant_id", "centre"]
"""What stays together: a subject's scans, or a centre's subjects."""


def _hash(salt: str, name: str) -> int:
    """64 bits that depend on `salt` and `name` alone; the separator keeps ("a", "bc") and ("ab", "c") apart."""
    return int.from_bytes(blake2b(f"{salt}\0{name}".encode(), digest_size=8).digest(), "big")


def side_of(ids: Iterable[str], *, salt: str, holdout_fraction: float) -> list[str]:
    """`"train"` or `"holdout"` for every id, from that id and the salt alone.

    An id is held out when ``u(id) < holdout_fraction``, where ``u = blake2b(salt, id) / 2**64`` is uniform
    on [0, 1). No other id enters, so that new subjects never move an old one across the line, and a larger
    fraction only ever adds to the hold-out. The price: `holdout_fraction` is an expected share; a handful of
    subjects may miss it.

    Parameters
    ----------
    ids
        Subjects, or centres when whole centres are held out.
    salt
        Fixes the draw. Choose it before a study starts.
    holdout_fraction
        Expected share of ids that are held out, in (0, 1).

    Examples
    --------
    >>> few = side_of(["sub-01", "sub-02", "sub-03"], salt="s", holdout_fraction=0.5)
    >>> side_of(["sub-00", "sub-01", "sub-02", "sub-03"], salt="s", holdout_fraction=0.5)[1:] == few
    True
    """
    if not 0 < holdout_fraction < 1:
        raise InputError(f"folds.holdout_fraction is {holdout_fraction}: choose a share between 0 and 1.")
    return ["holdout" if _hash(salt, name) / 2**64 < holdout_fraction else "train" for name in ids]


def first_by_hash(ids: Iterable[str], *, salt: str, count: int) -> list[str]:
    """`"holdout"` for the `count` ids of the smallest salted hash, `"train"` for the others.

    The order of `ids` does not matter, and a larger count only ever adds to the hold-out. Unlike with `side_of`, an id
    that joins with a smaller hash takes another one's place: for cohorts that are closed.

    Parameters
    ----------
    ids
        Subjects, or centres when whole centres are held out.
    salt
        Fixes the draw. Choose it before a study starts.
    count
        How many ids are held out, of those there are.

    Examples
    --------
    >>> first_by_hash(["sub-01", "sub-02", "sub-03"], salt="s", count=1).count("holdout")
    1
    """
    names = list(ids)
    held_out = set(sorted(names, key=lambda name: (_hash(salt, name), name))[:count])
    return ["holdout" if name in held_out else "train" for name in names]


def choose_group(cohort: pd.DataFrame, group_by: Literal["auto", "participant_id", "centre"]) -> tuple[Group, str]:
    """What stays on one side, and why, in words.

    `auto` is the centre where every subject's is known and there are `ENOUGH_CENTRES`; with fewer it is the subject. A
    cohort with enough centres and some subject without one is refused: going by subject would tear apart centres that
    were whole before that subject joined. So what `auto` stands for, and sides with it, changes only where a cohort
    grows to `ENOUGH_CENTRES` centres (or shrinks below): whoever expects that writes the choice down.

    Parameters
    ----------
    cohort
        As for `folds_table`.
    group_by
        What is asked for; anything but `auto` is taken as it is.

    Raises
    ------
    InputError
        If `auto` meets enough centres and a subject without one.

    Examples
    --------
    >>> cohort = pd.DataFrame({"participant_id": ["sub-a", "sub-b"], "centre": ["R001", "R002"]})
    >>> choose_group(cohort, "auto")
    ('participant_id', 'by subject: folds.group_by auto goes by centre from 10 known centres on, here 2')
    """
    if group_by != "auto":
        return group_by, f"by {'subject' if group_by == 'participant_id' else 'centre'}, as folds.group_by says"
    subjects = _one_row_per_subject(cohort)
    known = subjects["centre"] != UNKNOWN_CENTRE
    n_centres = subjects.loc[known, "centre"].nunique()
    if n_centres < ENOUGH_CENTRES:
        return "participant_id", (
            f"by subject: folds.group_by auto goes by centre from {ENOUGH_CENTRES} known centres on, here {n_centres}"
        )
    if not known.all():
        who = ", ".join(subjects.loc[~known, "participant_id"][:3])
        raise InputError(
            f"folds.group_by is auto and {n_centres} centres are known, but the centre of {who} is unknown: fill in "
            "participants.tsv or set folds.group_by to participant_id."
        )
    return "centre", f"by centre: folds.group_by is auto, and all {n_centres} centres are known"


def folds_table(
    cohort: pd.DataFrame,
    *,
    n_folds: int,
    holdout_fraction: float,
    salt: str,
    group_by: Group = "participant_id",
    holdout_count: int | None = None,
) -> pd.DataFrame:
    """One row per subject: `participant_id`, `side` (train | holdout), `fold` (0 … n_folds − 1), `centre`.

    The side comes from `side_of` on the group (the subject, or its centre) and never changes when others
    join; with `holdout_count` it comes from `first_by_hash`, and may. The fold of the training groups is
    dealt instead of hashed, because with a dozen subjects a hash leaves folds unbalanced or empty: in order
    of lesion-volume tercile (when there is a column `lesion_volume_ml`) and of hash within it, each group
    goes to the fold with the fewest subjects so far. A new subject can therefore change *folds*, which only
    rank trials, but never *sides*, which carry the reported figure. Centres are dealt largest first. `fold`
    is missing (`<NA>`) in the hold-out.

    Shares follow: a hold-out of 0.2 and 5 folds is the usual 80/20; a hold-out of 0.2 and 4 folds trains each fold on
    60 %, validates on 20 % and tests on 20 %.

    Parameters
    ----------
    cohort
        Columns `participant_id` and, where known, `centre` and `lesion_volume_ml` [mL]; several rows of a
        subject (sessions) count as one subject with the sum of their volumes.
    holdout_count
        Exactly so many groups are held out, and `holdout_fraction` is not used: 154 of 654 subjects leave 500.

    Raises
    ------
    InputError
        If a side is empty, there are fewer training groups than folds, or centres are asked for but unknown.

    Examples
    --------
    >>> cohort = pd.DataFrame({"participant_id": [f"sub-{n:02d}" for n in range(12)]})
    >>> table = folds_table(cohort, n_folds=3, holdout_fraction=0.25, salt="s")
    >>> sorted(table.loc[table.side == "train", "fold"].unique()) == [0, 1, 2]
    True
    """
    if n_folds < 2:
        raise InputError(f"folds.n_folds is {n_folds}: cross-validation needs at least 2.")
    if group_by not in ("participant_id", "centre"):
        raise InputError(f"folds.group_by is {group_by!r}: choose participant_id or centre.")
    subjects = _one_row_per_subject(cohort)
    if group_by == "centre" and (subjects["centre"] == UNKNOWN_CENTRE).any():
        who = ", ".join(subjects.loc[subjects["centre"] == UNKNOWN_CENTRE, "participant_id"][:3])
        raise InputError(
            f"folds.group_by is centre, but the centre of {who} is unknown: fill in participants.tsv "
            "or set folds.group_by to participant_id."
        )
    unit = "subjects" if group_by == "participant_id" else "centres"
    remedy = f"bring more {unit}" + (", or set folds.group_by to participant_id" if group_by == "centre" else "")
    groups = sorted(subjects[group_by].unique())
    if holdout_count is None:
        sides = side_of(groups, salt=salt, holdout_fraction=holdout_fraction)
    elif holdout_count < 1:
        raise InputError(f"folds.holdout_count is {holdout_count}: hold out at least 1, or set it to null.")
    else:
        sides = first_by_hash(groups, salt=salt, count=holdout_count)
    side = dict(zip(groups, sides, strict=True))
    subjects["side"] = subjects[group_by].map(side)
    train = [group for group in groups if side[group] == "train"]
    if holdout_count is not None and len(train) < n_folds:
        raise InputError(
            f"With folds.holdout_count = {holdout_count}, {len(train)} of {len(groups)} {unit} are left for training, "
            f"which cannot fill {n_folds} folds: lower it or folds.n_folds, or {remedy}."
        )
    for name, count in (("held out", len(groups) - len(train)), ("for training", len(train))):
        if count == 0:
            raise InputError(
                f"None of {len(groups)} {unit} is {name}: change folds.holdout_fraction (now {holdout_fraction}) "
                f"or folds.salt (now {salt!r}), or {remedy}."
            )
    if len(train) < n_folds:
        raise InputError(
            f"{len(train)} training {unit} cannot fill {n_folds} folds: lower folds.n_folds or "
            f"folds.holdout_fraction, or {remedy}."
        )
    fold = _deal(subjects[subjects["side"] == "train"], group_by, n_folds=n_folds, salt=salt)
    subjects["fold"] = subjects[group_by].map(fold).astype("Int64")
    return subjects[["participant_id", "side", "fold", "centre"]].reset_index(drop=True)


def _one_row_per_subject(cohort: pd.DataFrame) -> pd.DataFrame:
    if cohort.empty:
        raise InputError("The cohort has no subjects: run `reperfuse ingest` and the cohort stage first.")
    table = pd.DataFrame({"participant_id": cohort["participant_id"].astype(str)})
    centre = cohort["centre"] if "centre" in cohort else pd.Series(UNKNOWN_CENTRE, index=cohort.index)
    table["centre"] = (
        centre.astype("string").fillna(UNKNOWN_CENTRE).replace({"n/a": UNKNOWN_CENTRE, "": UNKNOWN_CENTRE})
    )
    if "lesion_volume_ml" in cohort:
        table["lesion_volume_ml"] = cohort["lesion_volume_ml"].astype(float).fillna(0.0)
    else:
        table["lesion_volume_ml"] = 0.0
    n_centres = table.groupby("participant_id")["centre"].nunique()
    if (n_centres > 1).any():
        raise InputError(f"{n_centres.idxmax()} is listed under several centres: mend participants.tsv.")
    return (
        table.groupby("participant_id", sort=True)
        .agg(centre=("centre", "first"), lesion_volume_ml=("lesion_volume_ml", "sum"))
        .reset_index()
    )


def _deal(train: pd.DataFrame, group_by: str, *, n_folds: int, salt: str) -> dict[str, int]:
    """Fold of every training group: balanced in subjects, spread over lesion volumes, all folds non-empty."""
    size = train[group_by].value_counts()
    if group_by == "participant_id":
        # Ranks, not values: lesion volumes span five decades. Equal volumes (no lesions) share a stratum by hash.
        order = train.assign(hash=[_hash(salt, name) for name in train["participant_id"]])
        order = order.sort_values(["lesion_volume_ml", "hash"])
        order["stratum"] = np.arange(len(order)) * N_STRATA // len(order)
        names = list(order.sort_values(["stratum", "hash"])[group_by])
    else:
        names = sorted(size.index, key=lambda name: (-size[name], _hash(salt, name)))
    load = [0] * n_folds
    fold = {}
    for name in names:
        fold[name] = int(np.argmin(load))
        load[fold[name]] += int(size[name])
    return fold
