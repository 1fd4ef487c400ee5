"""The gate between a trained model and the alias `champion`.

Outside dvc.yaml and safe to repeat: it reads only models/<arm> and results/<arm>, so that outputs DVC brought
back from its cache, or a tracking store that was lost, still end in a champion.
"""

from dataclasses import dataclass

import pandas as pd

from reperfuse import tracking
from reperfuse.evaluation.metrics import METRICS
from reperfuse.evaluation.paired import paired_comparison
from reperfuse.evaluation.summary import MODEL
from reperfuse.files import read_json
from reperfuse.params import Arm, Params, Promote
from reperfuse.stages import layout
from reperfuse.stages.processed import read_table
from reperfuse.stages.scores import SCORES_TABLE, logged_names

METRIC = {"lesion": "dice", "perfusion": "mae_s"}
"""What the gate compares, per arm."""

BASELINE = "baseline_"
"""What the names of the methods begin with that a model must beat."""


@dataclass(frozen=True)
class Decision:
    """Whether the challenger becomes champion, and why."""

    promote: bool
    reason: str


def promote(arm: Arm, params: Params) -> str:
    """Register the trained model and let the gate decide; returns the sentence for the reader."""
    folder = layout.models(arm)
    scores = read_table(layout.results(arm) / "evaluate" / "scores.csv", arm)
    metrics = read_json(layout.results(arm) / "evaluate" / "metrics.json")
    digest = tracking.model_digest(folder)
    version, champion = tracking.find_registered(arm, digest), tracking.champion(arm)
    if version is not None and champion is not None and champion.version == version.version:
        return f"{arm}: version {version.version} is the champion already."
    with tracking.resume(folder / "run.json") as run:
        if version is None:
            from reperfuse.stages.learning import log_model_of  # loads PyTorch, which only a new model needs

            version = tracking.register(log_model_of(run, folder), arm)
        run.log_metrics(logged_names(metrics))
        run.log_table(scores, SCORES_TABLE)
    settings = params.lesion.promote if arm == "lesion" else params.perfusion.promote
    decision = decide(scores, None if champion is None else champion_scores(champion), METRIC[arm], settings)
    tracking.tag_version(
        arm, version.version, {"decision": "promoted" if decision.promote else "kept", "reason": decision.reason}
    )
    if not decision.promote:
        return f"{arm}: version {version.version} is registered and not promoted: {decision.reason}."
    tracking.promote(arm, version.version)
    return f"{arm}: version {version.version} is the champion: {decision.reason}."


def champion_scores(champion: tracking.Version) -> pd.DataFrame:
    """Hold-out scores of the champion, one row per participant and method."""
    return tracking.read_table(champion.run_id, SCORES_TABLE)


def decide(scores: pd.DataFrame, champion: pd.DataFrame | None, metric: str, gate: Promote) -> Decision:
    """The gate: beat every baseline, and do not lose to the champion on the subjects both were scored on.

    Baselines are the methods whose name starts with `baseline_`. Rivals, other networks that were trained beside the
    model for comparison, decide nothing: the search chose among them before the hold-out was opened, and choosing again
    by the hold-out would spend it. A baseline is compared on the subjects that both have a score for: deconvolution has
    none where no artery is found.

    Parameters
    ----------
    scores, champion
        `participant_id`, `method` and metric columns of the challenger and of the champion, if there is one.
    metric
        What is compared.
    gate
        Margin in the metric's unit, and the least number of shared subjects.
    """
    sign = 1 if METRICS[metric].better == "higher" else -1
    table = scores.pivot(index="participant_id", columns="method", values=metric)
    if table[MODEL].isna().all():
        return Decision(False, f"its {metric} is undefined for every hold-out subject")
    for method in (name for name in map(str, table) if name.startswith(BASELINE)):
        ours, theirs = table[[MODEL, method]].dropna().mean()  # both nan, and no obstacle, where they share nobody
        if sign * (ours - theirs) <= 0:
            return Decision(False, f"its mean {metric} of {ours:.3f} does not beat {method} with {theirs:.3f}")
    if champion is None:
        mean = table[MODEL].mean()
        return Decision(True, f"mean {metric} {mean:.3f} beats every baseline, and there was no champion")
    both = [table[table["method"] == MODEL].set_index("participant_id")[metric] for table in (scores, champion)]
    shared = sorted(set(both[0].dropna().index) & set(both[1].dropna().index))
    if len(shared) < gate.minimum_subjects:
        return Decision(False, f"too few to decide: {len(shared)} hold-out subjects shared with the champion")
    difference = paired_comparison(both[0][shared], both[1][shared])["mean_difference"]
    assert difference is not None
    said = f"mean {metric} differs from the champion's by {difference:+.3f} on {len(shared)} subjects"
    if sign * difference < -gate.non_inferiority_margin:
        return Decision(False, f"{said}, beyond the margin of {gate.non_inferiority_margin:g}")
    return Decision(True, f"{said}, within the margin of {gate.non_inferiority_margin:g}")


def rollback(arm: Arm) -> str:
    """Swap `champion` and `previous`; returns the sentence for the reader."""
    return f"{arm}: version {tracking.rollback(arm).version} is the champion again."
