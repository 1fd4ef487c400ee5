"""Learned arrival and Tmax against deconvolution at its best and against Bayes: the tables of docs/learned-maps.md.

    python benchmarks/learned_maps.py                     all sections, about a quarter of an hour
    python benchmarks/learned_maps.py arrival speed       some of them

arrival    held-out population (arteries and residue functions of other families than in training), TR × SNR: mean
           absolute error of arrival by oSVD with the oscillation limit and the line that are best on the training
           population (and, more than fair: on one with the held-out tissue, for all cells or for each), by the network,
           and by the posterior median from sampling the generator, which nothing can beat
tissue     the same without dispersion, and with blood volumes down to those of a core
tmax       Tmax > 6 s against its noise-free value: sensitivity and specificity with intervals
reference  the delay and dispersion reference (Chakwizira et al. 2022), which nothing was trained on
fails      where it fails: beyond the trained range of delays and at low flow, with the interval it gives
spatial    the signal smoothed in-plane before the network: what neighbours tell, and what they blur
speed      a (128,128,24,60) map after loading, all voxels

Intervals are 95 % bootstrap intervals over scans, not voxels: voxels of a scan share their artery.
"""

import argparse
import itertools
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from perfusion_references import FRAMES, KAPPA_TISSUE, TE_S, TR_S, arterial, measured_aif, times
from perfusion_references import measured as reference_signal
from perfusion_tables import table
from rich.progress import track
from scipy.ndimage import gaussian_filter

from reperfuse.evaluation.arrival import (
    CALIBRATION_SEED,
    LATE_S,
    SNRS,
    TRS_S,
    arrival_table,
    bayes_arrival,
    calibrated_osvd,
    calibrations,
    least_absolute_line,
    measured,
    noise_free_tmax,
    osvd_of,
    osvd_tmax,
    scans_of,
)
from reperfuse.networks import learned_folder, load_network
from reperfuse.perfusion.bolus import baseline_frames, mean_curve
from reperfuse.perfusion.concentration import delta_r2star, noise_sigma
from reperfuse.perfusion.maps import maps_of_curves
from reperfuse.perfusion.oscillation import OSCILLATION_LIMIT
from reperfuse.phantoms.curves import HELD_OUT, TRAINING, Curves, Population, drawn_curves
from reperfuse.phantoms.dsc import PLAIN, drawn_phantom
from reperfuse.phantoms.series import K_TISSUE
from reperfuse.stages.learned import learned_maps
from reperfuse.stages.pretrain import answers_of

NETWORK, _ = load_network(learned_folder())
ANSWERS = answers_of(NETWORK)

SCANS, VOXELS, FLOOR_SCANS = 40, 128, 12


def arrival_tables() -> None:
    """The comparison of the held-out population, per cell and on average, against oSVD that knows ever more."""
    print(f"Held out: {SCANS} scans of {VOXELS} voxels a cell; the floor on the first {FLOOR_SCANS} of them.\n")
    scores = judged(HELD_OUT, floor_scans=FLOOR_SCANS)
    told, in_cell = (judged(HELD_OUT, told_tissue(HELD_OUT), per_cell=per_cell) for per_cell in (False, True))
    scores = scores.assign(told_s=told["osvd_s"], in_cell_s=in_cell["osvd_s"], map_s=delay_map_errors())
    rows = []
    for row in [*scores.to_dict("records"), scores.mean().to_dict() | {"tr_s": "all", "snr": ""}]:
        rows.append(
            [f"{row['tr_s']}", f"{row['snr']}"]
            + [f"{row[name]:.2f}" for name in ("osvd_s", "told_s", "in_cell_s", "map_s", "method_s")]
            + [f"{row['method_s'] / row[name]:.2f}" for name in ("osvd_s", "map_s")]
            + [f"{row[name]:.2f}" for name in ("floor_s", "method_on_floor_s")]
            + [f"{row['method_on_floor_s'] / row['floor_s']:.2f}", f"{row['draws_that_speak']:.0f}"]
            + [f"{100 * row[name]:.0f} %" for name in ("covered_95", "covered_68")]
        )
    header = ["TR", "SNR", "oSVD", "told tissue", "told cell", "delay map", "network", "of oSVD", "of delay map"]
    print(table([*header, "floor", "network there", "of floor", "draws", "in 95 %", "in 68 %"], rows))
    best = scores.iloc[0]
    print(f"\noSVD: limit {best['limit']:g}, {best['offset_s']:+.2f} s + {best['slope']:.2f}·Tmax in all cells.")


def delay_map_errors() -> list[float]:
    """Mean absolute error of arrival by the `delay` map on its best line of the training population, per cell [s]."""
    cells = list(itertools.product(TRS_S, SNRS))
    found = {
        (population.name, cell): [
            (delay_map(measured(scan), scan.aif, scan.tr_s), scan.delay)
            for scan in scans_of(population, *cell, scans=SCANS, voxels=VOXELS, first=first)
        ]
        for population, first in ((TRAINING, CALIBRATION_SEED), (HELD_OUT, 0))
        for cell in cells
    }
    pairs = [pair for cell in cells for pair in found[TRAINING.name, cell]]
    line = least_absolute_line(*(np.concatenate(side) for side in zip(*pairs, strict=True)))
    return [
        float(np.mean([np.abs(line(said) - delay).mean() for said, delay in found[HELD_OUT.name, cell]]))
        for cell in cells
    ]


def judged(
    population: Population, known: Population = TRAINING, *, floor_scans: int = 0, per_cell: bool = False
) -> pd.DataFrame:
    """`arrival_table` of a population, oSVD calibrated on `known`."""
    return arrival_table(
        ANSWERS, population, known, scans=SCANS, voxels=VOXELS, floor_scans=floor_scans, per_cell=per_cell
    )


def told_tissue(judged: Population) -> Population:
    """The training population with the blood volumes and the dispersion of the one judged: more than oSVD is owed."""
    return replace(TRAINING, cbv=judged.cbv, dispersed_share=judged.dispersed_share)


def tissue_tables() -> None:
    """Other tissue: what part of the error is dispersion, and what low blood volume."""
    rows = []
    for words, population in {
        "held out": HELD_OUT,
        "without dispersion": replace(HELD_OUT, dispersed_share=0.0),
        "all dispersed": replace(HELD_OUT, dispersed_share=1.0),
        "CBV 0.7 to 8": replace(HELD_OUT, cbv=(0.7, 8.0)),
        "CBV 0.3 to 1.5": replace(HELD_OUT, cbv=(0.3, 1.5)),
        "CBV 4": replace(HELD_OUT, cbv=(4.0, 4.0)),
    }.items():
        mean = judged(population).mean()
        ratio = mean["method_s"] / mean["osvd_s"]
        rows.append(
            [words, f"{mean['osvd_s']:.2f}", f"{mean['method_s']:.2f}", f"{ratio:.2f}"]
            + [f"{mean['tmax_osvd_s']:.2f}", f"{mean['tmax_method_s']:.2f}"]
            + [f"{100 * mean[name]:.0f} %" for name in ("covered_95", "covered_68")]
        )
    header = ["tissue", "arrival: oSVD", "network", "ratio", "Tmax: oSVD", "network", "in 95 %", "in 68 %"]
    print(table(header, rows))


def tmax_tables() -> None:
    """Sensitivity and specificity at Tmax > 6 s, with intervals over scans."""
    cells = tuple(itertools.product(TRS_S, SNRS))
    rows = []
    for snr in SNRS:
        scans = [scan for tr_s in TRS_S for scan in scans_of(HELD_OUT, tr_s, snr, scans=SCANS // 2, voxels=VOXELS)]
        late = [noise_free_tmax(scan) > LATE_S for scan in scans]
        called = {"oSVD as it is": [osvd_tmax(scan, OSCILLATION_LIMIT) > LATE_S for scan in scans]}
        for words, known in {"oSVD calibrated": TRAINING, "oSVD told tissue": told_tissue(HELD_OUT)}.items():
            best = calibrations(known, cells, SCANS, VOXELS, False)[TRS_S[0], snr][1]
            words += f" (limit {best.limit:g}, {best.line.offset:+.2f} s + {best.line.slope:.2f}·Tmax)"
            called[words] = [best(scan) > LATE_S for scan in scans]
        called["network"] = [ANSWERS(measured(s), s.aif, s.tr_s, s.noise)["tmax"] > LATE_S for s in scans]
        for words, calls in called.items():
            sensitivity = shares([call[true] for call, true in zip(calls, late, strict=True)])
            specificity = shares([~call[~true] for call, true in zip(calls, late, strict=True)])
            rows.append([f"{snr:g}", words, sensitivity, specificity])
    print(f"All TR together, {SCANS // 2} scans each; truth: Tmax by oSVD without noise.\n")
    print(table(["SNR", "method", "sensitivity", "specificity"], rows))


def shares(right: list[NDArray[np.bool_]]) -> str:
    """Share of what is right, with its interval over scans."""
    counts = np.array([[part.sum(), part.size] for part in right], float)
    again = np.random.default_rng(0).integers(0, len(counts), (2000, len(counts)))
    sums = counts[again].sum(axis=1)
    low, high = np.quantile(sums[:, 0] / sums[:, 1], [0.025, 0.975])
    return f"{counts[:, 0].sum() / counts[:, 1].sum():.3f} ({low:.3f} to {high:.3f})"


def reference_tables() -> None:
    """The published reference at SNR 20; undispersed curves lead the stated delay by half a frame (rectangle rule)."""
    cells = tuple(itertools.product(TRS_S, SNRS))
    trained = calibrations(TRAINING, cells, SCANS, VOXELS, False)[cells[0]][0]
    alike = replace(TRAINING, cbv=(4.0, 4.0), te_s=(TE_S, TE_S), dispersed_share=0.0, mtt_s=(3.4, 8.0))
    known = scans_of(alike, TR_S, 20.0, scans=SCANS, voxels=VOXELS, first=CALIBRATION_SEED)
    told = calibrated_osvd(known, lambda scan: scan.delay)
    line = least_absolute_line(
        np.concatenate([delay_map(measured(scan), scan.aif, scan.tr_s) for scan in known]),
        np.concatenate([scan.delay for scan in known]),
    )
    rows = []
    for words, aif in {"exact": KAPPA_TISSUE * arterial(times()), "its noisy one": measured_aif()}.items():
        for dispersion, lead in ((0.0, 0.0), (0.0, TR_S / 2), (1.5, 0.0), (4.5, 0.0)):
            errors: dict[str, list[NDArray[np.float64]]] = {}
            for delay, cbf in itertools.product((0.0, 1.0, 6.0) if not dispersion else (0.0,), (30, 50, 70)):
                signal = reference_signal(delay, dispersion, cbf).reshape(-1, FRAMES)
                curves = np.asarray(delta_r2star(signal, TE_S), np.float32)
                found = {
                    "oSVD": trained.line(osvd_of(curves, aif, TR_S, trained.limit)),
                    "told": told.line(osvd_of(curves, aif, TR_S, told.limit)),
                    "delay map": line(delay_map(curves, aif, TR_S)),
                    "network": ANSWERS(curves, aif, TR_S, 1 / (20 * TE_S))["delay"],
                    "floor": told_all(signal, alike) if not dispersion else np.full(len(curves), np.nan),
                }
                for name, values in found.items():
                    errors.setdefault(name, []).append(np.abs(values - (delay - lead)))
            means = {name: float(np.concatenate(values).mean()) for name, values in errors.items()}
            ratios = [f"{means['network'] / means[name]:.2f}" for name in ("oSVD", "told")]
            truth = "half a frame earlier" if lead else "as stated"
            found = [f"{value:.2f}".replace("nan", "") for value in means.values()]
            rows.append([words, f"{dispersion:g}", truth, *found, *ratios])
    print("CBF 30 to 70, mean absolute error of arrival [s]; oSVD calibrated on the training population, and told the")
    print(
        "blood volume, transit times, TR, TE and SNR of the reference and that nothing is dispersed; the floor is told"
    )
    print("all this, the residue function and the artery between its frames:\n")
    header = ["AIF", "dispersion", "delay", "oSVD", "oSVD told", "delay map told", "network", "floor", *["ratio"] * 2]
    print(table(header, rows))


def told_all(signal: NDArray[np.float32], alike: Population) -> NDArray[np.float64]:
    """Posterior median of the delay where little else is unknown; the rectangle rule adds dt/2MTT to the volume."""
    population = replace(alike, residues=("exponential",), cbv=(4.0, 4.8))
    nothing = np.empty(0)
    facts = {"artery": lambda t: KAPPA_TISSUE / K_TISSUE * arterial(np.asarray(t))}
    scan = Curves(signal / 100, nothing, nothing, TR_S, TE_S, 20.0, slice(0, 1), *[nothing] * 4, facts=facts)
    return bayes_arrival(scan, population)[0]


def delay_map(curves: NDArray[np.float32], aif: NDArray[np.float64], dt: float) -> NDArray[np.float32]:
    """The map `delay` of deconvolution."""
    return maps_of_curves(curves, aif, dt, method="osvd")["delay"]


def failure_tables() -> None:
    """What the network says where it cannot know."""
    rows = []
    for words, changed in {
        "as trained": {},
        "delay 15 to 20 s": {"delay_s": (15.0, 20.0)},
        "delay −6 to −3 s": {"delay_s": (-6.0, -3.0)},
        "CBV 0.1 to 0.3": {"cbv": (0.1, 0.3)},
        "MTT 20 to 40 s": {"mtt_s": (20.0, 40.0)},
        "dispersion 3 to 6 s": {"dispersion_s": (3.0, 6.0), "dispersed_share": 1.0},
        "artery 6 to 8 s wide (SD)": {"width_s": (6.0, 8.0)},
    }.items():
        scans = scans_of(replace(HELD_OUT, **changed), 1.5, 50.0, scans=SCANS, voxels=VOXELS)
        found = [ANSWERS(measured(s), s.aif, s.tr_s, s.noise) for s in scans]
        delay = np.concatenate([s.delay for s in scans])
        said = {name: np.concatenate([f[name] for f in found]) for name in ("delay", "delay_sd", "delay_quantiles")}
        q = said["delay_quantiles"]
        inside = ((delay >= q[:, 0]) & (delay <= q[:, -1])).mean()
        error = said["delay"] - delay
        osvd = np.concatenate([osvd_tmax(s, OSCILLATION_LIMIT) for s in scans]) - delay
        rows.append(
            [
                words,
                f"{np.abs(error).mean():.2f}",
                f"{np.median(error):+.2f}",
                f"{said['delay_sd'].mean():.2f}",
                f"{100 * inside:.0f} %",
                f"{np.abs(osvd - np.median(osvd)).mean():.2f}",
            ]
        )
    header = ["TR 1.5 s, SNR 50", "mean error [s]", "median bias", "mean delay_sd", "in 95 %", "oSVD, its bias removed"]
    print(table(header, rows))


def spatial_table() -> None:
    """Delay of phantoms whose signal was smoothed within the brain, in all tissue and in the lesion."""
    widths = (0.0, 0.5, 0.8, 1.2)
    rows = []
    for snr in SNRS:
        errors: dict[float, list[tuple[float, float]]] = {width: [] for width in widths}
        for seed in range(4):
            phantom = drawn_phantom(9000 + seed, (64, 64, 10), tr_s=1.5, snr=snr, lesion=True, **PLAIN)
            truth, series = phantom.truth, phantom.signal
            tissue = (truth["cbf"] > 0) & (truth["artery_fraction"] == 0) & (truth["vein_fraction"] == 0)
            baseline = baseline_frames(mean_curve(series.data[tissue]))
            for width in widths:
                signal = smoothed(series.data, tissue, width)[tissue]
                curves = delta_r2star(signal, series.te_s, baseline=baseline)
                noise = noise_sigma(signal, baseline) / signal[:, baseline].mean(axis=1) / series.te_s
                error = np.abs(ANSWERS(curves, phantom.aif, 1.5, noise)["delay"] - truth["delay"][tissue])
                errors[width].append((error.mean(), error[truth["lesion"][tissue] > 0].mean()))
        means = [np.mean(errors[width], axis=0) for width in widths]
        rows.append([f"{snr:g}", *(f"{everywhere:.2f}, {lesion:.2f}" for everywhere, lesion in means)])
    print("TR 1.5 s, voxels of 3.4 mm in-plane; mean error of delay [s] in all tissue, and in the lesion:\n")
    print(table(["SNR", *(f"σ {width:g} voxels" for width in widths)], rows))


def smoothed(series: NDArray[np.float32], where: NDArray[np.bool_], sigma: float) -> NDArray[np.float32]:
    """Each frame blurred in-plane by a Gaussian [voxels] over the voxels of a mask alone."""
    if not sigma:
        return series
    widths = (sigma, sigma, 0, 0)
    inside = where[..., None].astype(np.float32)
    return gaussian_filter(series * inside, widths) / np.maximum(gaussian_filter(inside, widths), 1e-3)


def speed_table() -> None:
    """A whole series, every voxel of (128, 128, 24), against oSVD in the same run."""
    scan = drawn_curves(replace(TRAINING, after_arrival_s=(90.0, 90.0)), 3, 4096, tr_s=1.5, snr=50.0)
    n = 128 * 128 * 24
    curves = np.tile(measured(scan)[:, :60], (n // 4096, 1))
    aif, noise = scan.aif[:60], np.full(n, scan.noise, np.float32)
    jobs: dict[str, Callable[[], object]] = {
        "oSVD: six maps": lambda: maps_of_curves(curves, aif, 1.5, method="osvd"),
        "network: Tmax, delay, spreads": lambda: learned_maps(curves, aif, 1.5, noise),
    }
    for job in jobs.values():
        job()
    rows = []
    for words, job in jobs.items():
        seconds = []
        for _ in track(range(3), description=words, transient=True):
            start = time.perf_counter()
            job()
            seconds.append(time.perf_counter() - start)
        rows.append([words, f"{min(seconds):.2f}", f"{np.median(seconds):.2f}"])
    print(table([f"{n} curves of {curves.shape[1]} frames", "fastest of 3 [s]", "median [s]"], rows))


SECTIONS = {
    "arrival": arrival_tables,
    "tissue": tissue_tables,
    "tmax": tmax_tables,
    "reference": reference_tables,
    "fails": failure_tables,
    "spatial": spatial_table,
    "speed": speed_table,
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", choices=[[], *SECTIONS], help="all when left out")
    for name in parser.parse_args().sections or SECTIONS:
        print(f"\n## {name}\n")
        SECTIONS[name]()
