"""Who draws the maps: a deconvolution, the network that ships with the package, or a model of the perfusion arm."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from reperfuse.errors import InputError
from reperfuse.imaging.volume import Volume
from reperfuse.params import PerfusionMaps, PerfusionPreprocess
from reperfuse.perfusion.deconvolution import METHODS
from reperfuse.perfusion.maps import image_of
from reperfuse.stages import maps_chain as chain

if TYPE_CHECKING:
    from reperfuse.stages.learned import Learned
    from reperfuse.stages.trained import TrainedModel

ARM, LEARNED, CHAMPION = "perfusion", "learned", "champion"

MODEL_URIS = ("models:/", "runs:/")
"""How the name of a model begins that is not a folder."""

BESIDE = chain.FLOW_METHODS[0]
"""The deconvolution behind what a network does not give: flow, volume, transit, and all where it may not be used."""

DELAYS = ("delay", "delay_sd")
"""What stays of a posterior where another network gives Tmax: a spread belongs to the map it was made with."""

OF_THE_SAME_FEATURES = "tmax_matched"
"""The network of the arm that reads what the one that ships reads, so that delay and spread of that one go with it."""


@dataclass(frozen=True)
class Method:
    """A method that was asked for and is there."""

    asked: str
    """What the summary calls it: a deconvolution, learned, champion, a URI, or the name of a model's folder."""
    deconvolution: str
    """Behind every map that no network gives."""
    learned: "Learned | None" = None
    """The network that ships, or another made by the same recipe, where it takes part."""
    trained: "TrainedModel[PerfusionPreprocess] | None" = None
    """The model that gives Tmax."""
    model: dict[str, Any] | None = None
    """Its network, uri and weights_sha256, for the summary."""

    @property
    def needs_artery(self) -> bool:
        """Whether its Tmax hangs on an artery; that of a network that sees the signal alone does not."""
        return self.trained is None or any(name != "signal" for name in self.trained.inputs)

    @property
    def facts(self) -> dict[str, Any]:
        """What the summary says of the method before there are maps."""
        return {
            "method": self.asked,
            "method_asked": self.asked,
            "cbf_method": self.deconvolution,
            "learned": None,
            "model": self.model,
        }


def chosen_method(name: str, said_by: str = "--method") -> Method:
    """The method of that name, its network loaded.

    Raises
    ------
    InputError
        If there is no such method, no champion, or the model is not one of this arm.
    """
    if name in METHODS:
        return Method(name, name)
    if name == LEARNED:
        return Method(name, BESIDE, learned=_posterior())
    if name == CHAMPION:
        from reperfuse.stages.trained import champion_uri

        return _with_model(name, champion_uri(ARM, f"take --method {LEARNED}"))
    if name.startswith(MODEL_URIS):
        return _with_model(name, name)
    if name and Path(name).is_dir():
        return _with_model(Path(name).resolve().name, name)
    raise InputError(
        f"{said_by} is {name!r}: name one of {', '.join(METHODS)}, {LEARNED} or {CHAMPION}, or a model "
        "(such as models:/perfusion/3, or its folder)."
    )


def _with_model(asked: str, uri: str) -> Method:
    from reperfuse import tracking
    from reperfuse.files import read_json
    from reperfuse.networks import DESCRIPTION, POSTERIORS
    from reperfuse.stages.trained import load_model

    folder = tracking.fetch_model(uri)
    described = read_json(folder / DESCRIPTION)
    model = {
        "network": described["network"],
        # Of a folder its name alone: paths may name people.
        "uri": uri if uri.startswith(MODEL_URIS) else asked,
        "weights_sha256": described["weights_sha256"],
    }
    if described["network"] in POSTERIORS:
        return Method(asked, BESIDE, learned=_posterior(folder), model=model)
    trained = load_model(ARM, str(folder), PerfusionPreprocess)
    beside = _posterior() if described["network"] == OF_THE_SAME_FEATURES else None
    return Method(asked, BESIDE, learned=beside, trained=trained, model=model)


def _posterior(folder: Path | None = None) -> "Learned":
    from reperfuse.stages.learned import load_learned

    return load_learned(folder)


def maps_by(
    method: Method, series: Volume, bolus: chain.Bolus, arteries: chain.Arteries, settings: PerfusionMaps
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Name to map, shape (I, J, K), and what the summary says of how they came about.

    A network gives `tmax`; the one that ships gives `delay` and `delay_sd`, and `tmax_sd` where `tmax` is its own,
    unless the scan is unlike those it was trained on. All else is deconvolution's, and so is everything where no
    network may be used; `notes` says why.
    """
    found = chain.maps_of(bolus, arteries, settings, method.deconvolution)
    facts: dict[str, Any] = method.facts | {"notes": []}
    if method.learned is None and method.trained is None:
        return found, facts
    aif = arteries.used
    if aif is None and method.trained is not None and not method.needs_artery:
        found["tmax"] = _model_tmax(method, series, bolus, arteries)
        facts["notes"] = [f"No artery was found, which {method.asked} does not need: Tmax is its, flow is not known."]
        return found, facts
    if aif is None:
        facts["method"] = method.deconvolution
        facts["notes"] = [f"Tmax by {method.asked} needs an artery, and none was found: relative TTP stands in."]
        return found, facts
    if method.learned is not None:
        given = _posterior_maps(method.learned, series, bolus, aif.curve, facts, keep_tmax=method.trained is None)
        if not given and method.trained is None:
            facts["method"] = method.deconvolution
        found |= given
    if method.trained is not None:
        found["tmax"] = _model_tmax(method, series, bolus, arteries)
    return found, facts


def _posterior_maps(
    learned: "Learned",
    series: Volume,
    bolus: chain.Bolus,
    aif: np.ndarray,
    facts: dict[str, Any],
    *,
    keep_tmax: bool,
) -> dict[str, np.ndarray]:
    """Maps of the network that ships, none where the scan is unlike its training; adds to `facts` what was done."""
    from reperfuse.stages.learned import alive, at_edge_fraction, learned_maps, outside_range

    assert series.te_s is not None
    curves, noise, trained = bolus.curves, bolus.brain_noise, learned.trained
    sentences = outside_range(
        aif,
        bolus.dt,
        curves,
        noise,
        te_s=series.te_s,
        trained=trained,
        unsteady_frames=bolus.baseline.start,
    )
    if sentences:
        what = "Tmax and delay are" if keep_tmax else "Delay is"
        facts["notes"] += [*sentences, f"{what} {facts['cbf_method']}'s therefore, not the learned network's."]
        if not keep_tmax:
            facts["notes"].append(f"Tmax stays that of {facts['method_asked']}, which reads the same features.")
        return {}
    values, notes = learned_maps(curves, aif, bolus.dt, noise, learned)
    given = {name: image_of(value, bolus.brain) for name, value in values.items() if keep_tmax or name in DELAYS}
    facts["notes"] += notes
    facts["learned"] = {
        "network": learned.described["network"],
        "weights_sha256": learned.described["weights_sha256"],
        "maps": sorted(given),
        "at_edge_fraction": round(at_edge_fraction(values["delay"][alive(curves)], trained), 6),
    }
    return given


def _model_tmax(method: Method, series: Volume, bolus: chain.Bolus, arteries: chain.Arteries) -> np.ndarray:
    """Tmax by the model [s], shape (I, J, K), 0 where nothing was measured.

    It sees what the other maps are made of: the series at rest, without spoilt frames and at even times, the same brain
    and the same artery.

    Raises
    ------
    InputError
        If the model gives what is no time, or another map than Tmax.
    """
    from reperfuse.stages.learned import alive
    from reperfuse.stages.perfusion_inputs import Examination, Passage, predicted_tmax

    assert method.trained is not None and method.model is not None
    steady = chain.steady_series(series, bolus)
    scan = Examination(steady, bolus.brain, Passage(bolus, arteries))
    tmax = predicted_tmax(steady, method.trained, scan=scan)
    tmax = np.where(bolus.brain & alive(bolus.image), tmax, np.float32(0))
    if not np.isfinite(tmax).all():
        raise InputError(f"The model {method.model['uri']} gives values that are not finite: train it again.")
    return np.asarray(tmax, dtype=np.float32)
