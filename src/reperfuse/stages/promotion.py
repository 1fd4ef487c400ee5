"""From a trained model to the registry, and the aliases `champion` and `previous`.

Outside dvc.yaml and safe to repeat: it reads only models/<arm>, results/<arm> and the tables of the data, so that
outputs DVC brought back from its cache, or a tracking store that was lost, still end in a champion.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from reperfuse import tracking
from reperfuse.errors import InputError
from reperfuse.files import read_json, write_text
from reperfuse.params import Arm, Params, Promote
from reperfuse.stages import layout
from reperfuse.stages.dataset import SUBJECTS_TABLE
from reperfuse.stages.drift import drift_of, drift_page
from reperfuse.stages.gate import Decision, Evidence, decide
from reperfuse.stages.processed import read_table
from reperfuse.stages.scores import RESOLUTION_TABLE, SCORES_TABLE, logged_names

METRIC = {"lesion": "dice", "perfusion": "mae_s"}
"""What the gate compares, per arm."""

ROLLED_BACK = "rolled_back"
"""Tag of a version that a person took out of use: no gate puts it back."""


def promote(arm: Arm, params: Params, *, report: Path | None = None) -> str:
    """Register the trained model and let the gate decide; returns the sentence for the reader.

    The decision is kept as tags and artifacts (`decision/`) of the model's run and as tags of its version.

    Parameters
    ----------
    report
        File to write the decision to, as Markdown.
    """
    folder = layout.models(arm)
    challenger = evidence_of(arm)
    metrics = read_json(layout.results(arm) / "evaluate" / "metrics.json")
    digest = tracking.model_digest(folder)
    version, champion = tracking.find_registered(arm, digest), tracking.champion(arm)
    if version is not None and champion is not None and champion.version == version.version:
        if tracking.find_table(version.run_id, SCORES_TABLE) is None:  # a store that lost its files gets them back
            with tracking.resume(tracking.recorded(version.run_id)) as run:
                _keep_tables(run, challenger)
        already = f"{arm}: version {version.version} is the champion already."
        if report is not None:
            write_text(report, f"# {already}\n")
        return already
    record = read_json(folder / "run.json")
    # The same model trained again is known, and so is what the hold-out said of it: its first gate stays.
    before = {} if version is None else version.params
    gate = gate_of({"params": (record.get("params") or {}) | before}, params, arm)
    with tracking.resume(record) as run:
        if version is None:
            from reperfuse.stages.learning import log_model_of  # loads PyTorch, which only a new model needs

            version = tracking.register(log_model_of(run, folder), arm)
        run.log_metrics(logged_names(metrics))
        _keep_tables(run, challenger)
        if (patch := folder / tracking.CHANGES).exists() and patch.stat().st_size:
            run.log_artifact(patch)
        decision = _decision(arm, version, champion, challenger, gate)
        page = decision_page(arm, version, champion, decision)
        if champion is not None:
            shifted = drift_of(arm, champion)
            page += "\n" + drift_page(shifted)
            if shifted.table is not None:
                run.log_table(shifted.table, "decision/drift.csv")
        run.log_text(page, "decision/decision.md")
        verdict = "promoted" if decision.promote else "kept"
        against = "none" if champion is None else champion.version
        run.set_tags({"decision": verdict, "decision.reason": decision.reason, "decision.against": against})
    tracking.tag_version(arm, version.version, {"decision": verdict, "reason": decision.reason})
    if report is not None:
        write_text(report, page)
    if not decision.promote:
        return f"{arm}: version {version.version} is registered and not promoted: {decision.reason}."
    tracking.promote(arm, version.version, compared=True, against=None if champion is None else champion.version)
    return f"{arm}: version {version.version} is the champion: {decision.reason}."


def _keep_tables(run: tracking.Run, known: Evidence) -> None:
    """Keep with a run what `evidence_of_version` reads."""
    run.log_table(known.scores, SCORES_TABLE)
    if known.studied is not None:
        run.log_table(known.studied, RESOLUTION_TABLE)
    if known.subjects is not None:
        run.log_table(known.subjects, SUBJECTS_TABLE)


def _decision(
    arm: Arm, version: tracking.Version, champion: tracking.Version | None, challenger: Evidence, gate: Promote
) -> Decision:
    if version.tags.get(ROLLED_BACK) == "true":
        return Decision(False, "it was taken out of use by `reperfuse rollback`, and only another one brings it back")
    return decide(challenger, None if champion is None else evidence_of_version(champion), METRIC[arm], gate)


def evidence_of(arm: Arm) -> Evidence:
    """What models/<arm> and results/<arm> know of the trained model.

    Raises
    ------
    InputError
        If the hold-out scores are not there, or are those of a model before it.
    """
    subjects = layout.models(arm) / "subjects.csv"
    scores = read_table(layout.results(arm) / "evaluate" / "scores.csv", arm)
    if not _is_of_the_model(layout.results(arm) / "evaluate", arm):
        raise InputError(
            f"{layout.results(arm) / 'evaluate'} has the scores of another model than {layout.models(arm)}: "
            f"`dvc repro {arm}-evaluate` first."
        )
    return Evidence(
        scores,
        study_of(arm),
        read_table(subjects, arm) if subjects.exists() else None,
    )


def evidence_of_version(version: tracking.Version) -> Evidence:
    """What the store knows of a registered model.

    Raises
    ------
    InputError
        If it has lost the scores, which every model had: a store that lost its files is found out by them, and is not
        taken for one that never had the others.
    """
    return Evidence(
        tracking.read_table(version.run_id, SCORES_TABLE),
        tracking.find_table(version.run_id, RESOLUTION_TABLE),
        tracking.find_table(version.run_id, SUBJECTS_TABLE),
    )


def study_of(arm: Arm) -> pd.DataFrame | None:
    """Scores of the resolution study of the model in models/<arm>; None where that model was not studied.

    A study that was left behind by a model before it is none of this one's: run.json says whose it is.
    """
    folder = layout.results(arm) / "resolution"
    return read_table(folder / "scores.csv", arm) if _is_of_the_model(folder, arm) else None


def _is_of_the_model(folder: Path, arm: Arm) -> bool:
    """Whether a stage's results are those of the model in models/<arm>."""
    record = folder / "run.json"
    return record.exists() and read_json(record)["run_id"] == read_json(layout.models(arm) / "run.json")["run_id"]


def gate_of(record: Mapping[str, Any], params: Params, arm: Arm) -> Promote:
    """The gate that was recorded with the training; that of params.yaml for a model from before it was.

    Fixed before the hold-out was opened: a margin that is changed in params.yaml to let a known result pass is the
    gate of the next training only.
    """
    kept = {
        name.removeprefix("promote."): yaml.safe_load(text)
        for name, text in (record.get("params") or {}).items()
        if name.startswith("promote.")
    }
    if kept:
        return Promote.model_validate(kept)
    return params.lesion.promote if arm == "lesion" else params.perfusion.promote


def decision_page(arm: Arm, version: tracking.Version, champion: tracking.Version | None, decision: Decision) -> str:
    """The decision in words, Markdown: what was decided, and each condition of the gate."""
    verdict = "promoted" if decision.promote else "kept out"
    against = "" if champion is None else f", against version {champion.version}"
    lines = [f"# {arm}, version {version.version}: {verdict}", "", f"The gate decided{against}: {decision.reason}.", ""]
    met = {True: "met", False: "**not met**", None: "not asked"}
    # A list and not a table, whose sentences Prefect's page would cut.
    lines += [f"- *{one.name}*, {met[one.met]}: {one.said}." for one in decision.conditions]
    return "\n".join(lines) + "\n"


def rollback(arm: Arm) -> str:
    """Swap `champion` and `previous`; returns the sentence for the reader.

    The version that goes is marked, so that no later `promote` of the same model puts it back.
    """
    back = tracking.rollback(arm, mark=ROLLED_BACK)
    gone = tracking.get_alias(arm, tracking.PREVIOUS)
    assert gone is not None
    return f"{arm}: version {back.version} is the champion again, in the place of version {gone.version}."
