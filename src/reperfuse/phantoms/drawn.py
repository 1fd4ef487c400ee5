"""A stroke patient of whom everything is drawn from its full range, and all of the truth."""

from typing import Any

import numpy as np

from reperfuse.imaging.volume import Volume
from reperfuse.phantoms.artery import ArterialInput
from reperfuse.phantoms.fields import smooth_field
from reperfuse.phantoms.head import baseline_signal, head_affine, head_anatomy, sinus_purity, tissue_labels
from reperfuse.phantoms.kinetics import residue_of_shape, venous_concentration
from reperfuse.phantoms.motion import head_displacement_mm, head_trajectory
from reperfuse.phantoms.ranges import SITUATIONS, drawn_values, stream
from reperfuse.phantoms.reference import DscPhantom, solid_tissue, volumes_ml
from reperfuse.phantoms.series import K_ARTERY, Contents, Physiology, Scan, acquired_signal, leaked
from reperfuse.phantoms.stroke import drawn_perfusion, lesion_depth

VENOUS_LAG_S = (3.0, 6.0)
"""Least and greatest mean transit from artery to sinus [s]. The sinus drains the whole head: where the drawn tissue
alone would be faster or slower than this, other paths even it out."""

SUPPLY = ("grey_cbv", "grey_mtt", "delay_s", "late_delay_s", "late_mtt_s", "core_cbv")
"""Drawn values that `drawn_perfusion` takes."""


def drawn_phantom(
    seed: int, shape: tuple[int, int, int] = (48, 48, 8), situation: str | None = None, **fixed: Any
) -> DscPhantom:
    """DSC series of a patient of whom everything is drawn from its full range, and all of the truth.

    The arterial input (family, width, recirculation, washout, dose), the residue function, blood volume, transit time,
    delay, dispersion, TE, TR, duration, SNR, partial volume, leakage and motion follow from the seed; `facts` says what
    they are. Arteries are mixed with tissue, some voxels more than others; the sinus has pure voxels inside.

    Parameters
    ----------
    seed
        Everything random follows from it, and each quantity from a stream of its own: to fix one leaves the others.
    shape
        Grid (I, J, K) of a `FIELD_OF_VIEW_MM`.
    situation
        Key of `SITUATIONS`: something that goes wrong, such as "no_bolus" or "saturated_aif".
    **fixed
        Quantities of `drawn_values` that shall not be drawn, such as `tr_s=1.5`, `snr_range=(20, 200)`, `k2=0.0`;
        `**PLAIN` switches every disturbance off.

    Raises
    ------
    ValueError
        If there is no such quantity.
    KeyError
        If there is no such situation.

    Examples
    --------
    >>> phantom = drawn_phantom(4, (32, 32, 6), tr_s=1.5, residue="box")
    >>> phantom.facts["residue"], phantom.signal.tr_s, bool(phantom.truth["artery_fraction"].max() <= 1)
    ('box', 1.5, True)
    """
    values = drawn_values(seed, {**(SITUATIONS[situation] if situation else {}), **fixed})
    head, lesion = stream(seed, "head"), stream(seed, "territory")
    affine, spacing_mm = head_affine(shape)
    anatomy = head_anatomy(shape, affine, head)
    tissue = tissue_labels(anatomy)
    side = int(lesion.choice((-1, 1)))
    depth, _ = lesion_depth(anatomy, spacing_mm, side, lesion)
    aif = _arterial_input(values)
    physiology, normal_cbf = _physiology(anatomy, spacing_mm, depth, values, aif, seed)
    in_lesion = solid_tissue(tissue) & (depth < 1) & bool(values["lesion"])

    times = _frame_times(values, stream(seed, "times"))
    relaxation, tmax = physiology.relaxation(times)
    leaky = physiology.perfused & (depth < 1) & bool(values["k2"])
    uneven = np.exp(0.2 * smooth_field(shape, spacing_mm, 10.0, stream(seed, "leakage")))
    k2 = np.where(leaky, values["k2"] * uneven, 0).astype(np.float32)
    if leaky.any():
        normal = relaxation[physiology.perfused & ~leaky].mean(0)
        relaxation[leaky] = leaked(relaxation[leaky], k2[leaky], times, normal)
    lag_s = _venous_lag_s(physiology, solid_tissue(tissue) & ~in_lesion)
    values["vof_lag_s"] = lag_s if values["vof_lag_s"] is None else values["vof_lag_s"]
    spread_s = values["vof_spread"] * values["vof_lag_s"]
    vof = venous_concentration(times, aif, lag_s=values["vof_lag_s"], spread_s=spread_s)

    contents = _contents(anatomy, tissue, spacing_mm, values, head)
    sigma = float(contents.s0[solid_tissue(tissue)].mean() / values["snr"])
    move = {name: values[name] for name in ("drift_mm", "jump_mm", "jumps")}
    trajectory = head_trajectory(len(times), stream(seed, "motion"), **move)
    missing = tuple(lost for lost in values["missing"] if (lost[0] if isinstance(lost, tuple) else lost) < len(times))
    scan = Scan(times, values["te_s"], sigma, trajectory, values["unsteady_frames"], missing)
    ca = aif(times)
    signal = acquired_signal(contents, relaxation, K_ARTERY * ca, K_ARTERY * vof, scan, affine, stream(seed, "noise"))

    truth = _truth(physiology, contents, anatomy["artery"]) | {"k2": k2}
    truth["tmax"] = np.where(truth["cbf"] > 0, tmax, 0).astype(np.float32)
    core = in_lesion & (physiology.cbf < 0.3 * normal_cbf)
    masks = {"tissue": tissue, "brain": anatomy["brain"], "lesion": in_lesion, "core": core}
    truth |= {name: data.astype(np.uint8) for name, data in masks.items()}
    facts = {
        **values,
        "missing": missing,
        "situation": situation or "none",
        "hemisphere": ("left" if side < 0 else "right") if values["lesion"] else "none",
        "motion_mm_max": float(head_displacement_mm(trajectory).max()),
        **volumes_ml(truth, spacing_mm),
    }
    volume = Volume(data=signal, affine=affine, frame_times_s=times, te_s=values["te_s"], tr_s=values["tr_s"])
    return DscPhantom(volume, truth, ca, sigma, values["residue"], facts, vof, trajectory, aif)


def _arterial_input(values: dict[str, Any]) -> ArterialInput:
    """Ca of the patient."""
    same = ("arrival_s", "injection_s", "recirculation", "washout", "recirculation_delay_s", "dose", "family")
    shape = {"width_s": values["aif_width_s"], "shape": values["aif_shape"]}
    return ArterialInput(**{name: values[name] for name in same}, **shape)


def _frame_times(values: dict[str, Any], rng: np.random.Generator) -> np.ndarray:
    """Frame times [s] from 0, uneven by up to `time_jitter` of an interval either way."""
    times = np.arange(values["n_frames"]) * values["tr_s"]
    times[1:] += values["time_jitter"] * values["tr_s"] * rng.uniform(-1, 1, len(times) - 1)
    return times


def _physiology(
    anatomy: dict[str, np.ndarray],
    spacing_mm: tuple[float, ...],
    depth: np.ndarray,
    values: dict[str, Any],
    aif: ArterialInput,
    seed: int,
) -> tuple[Physiology, np.ndarray]:
    """What happens to the bolus in each voxel, and CBF as it would be without the late territory."""
    supply = {name: values[name] for name in SUPPLY}
    nowhere = np.full_like(depth, 9.0)
    # The same variation twice, so that the two differ by the lesion alone.
    healthy, maps = (
        drawn_perfusion(anatomy, spacing_mm, where, stream(seed, "perfusion"), **supply)
        for where in (nowhere, depth if values["lesion"] else nowhere)
    )
    cbf, _, mtt, delay = maps
    perfused = anatomy["brain"] & (anatomy["grey"] + anatomy["white"] > 0.1)
    residue = residue_of_shape(values["residue"], values["residue_alpha"])
    dispersion_s = values["dispersion_s"]
    dispersed = np.full(depth.shape, dispersion_s > 0)
    return Physiology(cbf, mtt, delay, perfused, dispersed, dispersion_s, residue, aif), healthy[0]


def _venous_lag_s(physiology: Physiology, normal: np.ndarray) -> float:
    """Mean transit from artery to sinus [s]: flow-weighted delay, dispersion and MTT, within `VENOUS_LAG_S`."""
    transit = (physiology.delay + physiology.dispersion_s + physiology.mtt)[normal]
    return float(np.clip(np.average(transit, weights=physiology.cbf[normal]), *VENOUS_LAG_S))


def _contents(
    anatomy: dict[str, np.ndarray],
    tissue: np.ndarray,
    spacing_mm: tuple[float, ...],
    values: dict[str, Any],
    rng: np.random.Generator,
) -> Contents:
    """Signal before the bolus, arteries that are blood in part, and a sinus that is pure inside."""
    tissue_s0, blood_s0 = baseline_signal(anatomy, tissue, spacing_mm, rng)
    purity = rng.uniform(0, 1, tissue.shape) * (values["purity_high"] - values["purity_low"]) + values["purity_low"]
    artery = np.where(anatomy["artery"], purity, 0).astype(np.float32)
    return Contents(tissue_s0, blood_s0, artery, sinus_purity(anatomy["vein"], rng))


def _truth(physiology: Physiology, contents: Contents, artery: np.ndarray) -> dict[str, np.ndarray]:
    """Maps of what is true of tissue and blood, float32."""
    shown = physiology.perfused & ~artery
    blood = contents.artery + contents.vein
    cbv = physiology.cbf * physiology.mtt / 60
    maps = {
        "cbf": np.where(shown, physiology.cbf, 0),
        "cbv": np.where(blood > 0, 100 * blood, np.where(shown, cbv, 0)),
        "mtt": np.where(shown, physiology.mtt, 0),
        "delay": np.where(shown, physiology.delay, 0),
        "dispersion": np.where(shown & physiology.dispersed, physiology.dispersion_s, 0),
        "s0": contents.s0,
        "artery_fraction": contents.artery,
        "vein_fraction": contents.vein,
    }
    return {name: np.asarray(data, np.float32) for name, data in maps.items()}
