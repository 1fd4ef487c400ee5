"""The verb `drift`: what the data hold that the champion was not trained on, and whether it is like what it knows."""

import json
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from reperfuse import tracking
from reperfuse.errors import InputError
from reperfuse.evaluation.drift import drift_sentences, drift_table
from reperfuse.params import Arm
from reperfuse.stages import layout
from reperfuse.stages.dataset import SUBJECTS_TABLE, subjects_table


@dataclass(frozen=True)
class Drift:
    """The data of a workspace beside those of a champion."""

    version: str
    """Of the champion."""
    revision: str
    """Of data/bids/<arm>, now."""
    champion_revision: str
    """When the champion was trained."""
    new: tuple[str, ...] = ()
    """Subjects the champion's training did not have."""
    changed: tuple[str, ...] = ()
    """Subjects it had with other files."""
    gone: tuple[str, ...] = ()
    """Subjects it had and that are no more."""
    table: pd.DataFrame | None = None
    """`drift_table` of new and changed subjects against the champion's training subjects; None without such."""

    @property
    def news(self) -> bool:
        """Whether the data have another revision than when the champion was trained."""
        return self.revision != self.champion_revision


def drift_of(arm: Arm, champion: tracking.Version) -> Drift:
    """What the workspace's data are beside those that a version was trained on.

    Subjects are compared where the stages up to `folds` have processed them and the champion's are described in the
    store.
    """
    recorded = tracking.recorded(champion.run_id)
    found = Drift(
        champion.version,
        tracking.data_revision(Path.cwd(), arm),
        recorded["lineage"].get("data_revision", tracking.UNKNOWN),
    )
    known = tracking.find_table(champion.run_id, SUBJECTS_TABLE)
    if known is None or not (layout.processed(arm) / "index.csv").exists():
        return found
    now = subjects_table(arm)
    then = known.set_index("participant_id")["files_sha256"]
    seen = now["participant_id"].isin(then.index)
    other = seen & (now["files_sha256"] != now["participant_id"].map(then))
    fresh = now[~seen | other]
    return Drift(
        found.version,
        found.revision,
        found.champion_revision,
        new=tuple(now.loc[~seen, "participant_id"]),
        changed=tuple(now.loc[other, "participant_id"]),
        gone=tuple(sorted(set(then.index) - set(now["participant_id"]))),
        table=drift_table(known[known["side"] == "train"], fresh) if len(fresh) else None,
    )


def drift_page(found: Drift) -> str:
    """The drift in words, Markdown."""
    lines = [
        f"## Data, beside those of version {found.version}",
        "",
        f"Revision {found.revision[:8]}, the champion's was {found.champion_revision[:8]}: {len(found.new)} new "
        f"subjects, {len(found.changed)} with other files, {len(found.gone)} gone.",
        "",
    ]
    if found.table is None:
        return "\n".join(lines)
    lines += [*(f"- {sentence}" for sentence in drift_sentences(found.table)), ""]
    lines += ["| feature | champion's training set | new | D | p | beyond |", "|---|---|---|---:|---:|---:|"]
    lines += [
        f"| {row['feature']} | {row['known']} | {row['new']} | {_number(row['statistic'])} | "
        f"{_number(row['p_adjusted'])} | {row['outside']:.0%} |"
        for row in found.table.to_dict("records")
    ]
    return "\n".join(lines) + "\n"


def _number(value: float) -> str:
    return "" if pd.isna(value) else f"{value:.3f}"


def drift(arm: Arm, *, as_json: bool = False) -> str:
    """What the verb prints: the page, or the same as JSON for scripts.

    Raises
    ------
    InputError
        If the data are not under DVC, or, without `as_json`, if there is no champion to compare with.
    """
    revision = tracking.data_revision(Path.cwd(), arm)
    if revision == tracking.UNKNOWN:
        raise InputError(f"{layout.bids(arm)}.dvc is missing: bring data in with `reperfuse ingest INBOX --arm {arm}`.")
    champion = tracking.champion(arm)
    if champion is None:
        if as_json:
            return json.dumps({"arm": arm, "champion": None, "revision": revision, "news": True})
        raise InputError(
            f"The {arm} arm has no champion to compare with: train one with `dvc repro {arm}-report`; "
            f"`reperfuse promote {arm}` promotes it, or says why not."
        )
    found = drift_of(arm, champion)
    if not as_json:
        return drift_page(found)
    features = [] if found.table is None else json.loads(found.table.to_json(orient="records"))
    return json.dumps(
        {
            "arm": arm,
            "champion": found.version,
            "champion_revision": found.champion_revision,
            "revision": found.revision,
            "news": found.news,
            "new": found.new,
            "changed": found.changed,
            "gone": found.gone,
            "features": features,
        }
    )
