"""The perfusion arm of the demo data: simulated DICOM patients with the habits of three vendors."""

from collections.abc import Iterator
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

from reperfuse.files import atomic_path, write_json

DSC_SHAPE = {True: (64, 64, 12), False: (32, 32, 8)}
"""Grid of a DSC patient, at full size and small."""

DSC_FRAMES = {True: (80, 1.0), False: (60, 1.5)}
"""Frames of a DSC series and their interval [s], at full size and small. At full size 1 s, so that a study of temporal
resolution has somewhere to begin; small ones have the 60 frames as published, and last as long as that needs."""

PUBLISHED_DSC_SHAPE, PUBLISHED_DSC_FRAMES = (128, 128, 24), (60, 1.5)
"""Grid, frames and their interval [s] of the published Tmax study (its interval is not stated; 1.5 s is usual); one
patient of full size has them."""

SNR_RANGE = (55.0, 100.0)
"""S0/σ of a DSC series: above 50, so that noise can be added to bring it there."""

HABITS = {
    "philips": {"te_s": 0.030, "dsc": "DICOM/ST0001/SE0005", "map": "DICOM/ST0001/SE0501", "units": "ms"},
    "siemens": {"te_s": 0.032, "dsc": "HEAD_STROKE/EP2D_PERF_0007", "map": "HEAD_STROKE/TMAX_0501", "units": "s"},
    "ge": {"te_s": 0.028, "dsc": "E1042/S5", "map": "E1042/S501", "units": "s"},
}
"""Per vendor: echo time, where a PACS export puts the two series, and the unit its Tmax map is stored in."""

RESIDUES = ("exponential", "gamma", "lorentzian")
"""Residue families, in turn, so that no method is tuned to one."""

DROPPED_IMAGES = ((17, 2), (41, 4))
"""(frame, slice) missing from one patient: far below the 5 % up to which the published rule fills with zeros."""

PEOPLE = [
    "Abendroth^Ida",
    "Belloni^Marco",
    "Castellan^Rosa",
    "Dahlgren^Nils",
    "Ekundayo^Tola",
    "Fontaine^Luc",
    "Grimaldi^Eva",
    "Haavisto^Aino",
    "Ibarra^Jorge",
    "Jankovic^Mila",
    "Kovalenko^Oles",
    "Lindqvist^Saga",
    "Moreau^Paul",
    "Nakagawa^Ren",
    "Oyelaran^Bisi",
    "Petrova^Vera",
]
"""Invented names, so that de-identification has something to take away."""


def perfusion_plan(count: int, seed: int, full_size: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """Patient folder and the arguments of `write_patient`, for each patient."""
    import numpy as np

    vendors = list(HABITS)
    for i in range(count):
        rng = np.random.default_rng([seed, 1, i])
        published = full_size and i == min(1, count - 1)
        shape = PUBLISHED_DSC_SHAPE if published else DSC_SHAPE[full_size]
        n_frames, tr_s = PUBLISHED_DSC_FRAMES if published else DSC_FRAMES[full_size]
        yield (
            f"DEMO{seed % 10000:04d}{i + 1:03d}",
            {
                "cost": float(np.prod(shape[2:]) * 0.01 + 1) * (8 if published else 1) * n_frames,
                "shape": shape,
                "n_frames": n_frames,
                "tr_s": tr_s,
                "vendor": vendors[i % len(vendors)],
                "residue": RESIDUES[(i // 2) % len(RESIDUES)],
                "dispersion_s": 1.0 if i % 4 == 3 else 0.0,
                "lesion": i % 5 != 4,
                "snr": float(rng.uniform(*SNR_RANGE)),
                "dropped": DROPPED_IMAGES if i == min(2, count - 1) else (),
                "name": PEOPLE[i % len(PEOPLE)],
                "born": date(1938, 1, 1) + timedelta(days=int(rng.integers(0, 15000))),
                "started": datetime(2021, 1, 4, 6, 0) + timedelta(seconds=int(rng.integers(0, 10**8))),
                "seed": int(rng.integers(0, 2**31)),
            },
        )


def write_patient(
    *,
    inbox: Path,
    truth: Path,
    folder: str,
    shape: tuple[int, int, int],
    n_frames: int,
    tr_s: float,
    vendor: str,
    residue: str,
    dispersion_s: float,
    lesion: bool,
    snr: float,
    dropped: tuple[tuple[int, int], ...],
    name: str,
    born: date,
    started: datetime,
    seed: int,
) -> None:
    """Write one patient: DSC series, the vendor's Tmax map, and the truth beside the inbox."""
    from threadpoolctl import threadpool_limits

    from reperfuse.imaging.dicom_write import study_uid_for, write_dsc_series, write_map_series
    from reperfuse.imaging.volume import Volume, save_volume
    from reperfuse.phantoms.dsc import dsc_phantom, vendor_tmax

    habit = HABITS[vendor]
    te_s = float(habit["te_s"])  # type: ignore[arg-type]
    with threadpool_limits(1):  # the same sums in the same order, whatever the number of processes
        phantom = dsc_phantom(
            shape, n_frames, tr_s, te_s, snr, seed, lesion, residue=residue, dispersion_s=dispersion_s
        )
        reference = vendor_tmax(phantom, seed=seed)
    person: dict[str, Any] = {
        "patient_id": folder,
        "patient_name": name,
        "birth_date": born,
        "started": started,
        "seed": seed,
    }
    with atomic_path(inbox / folder) as room:
        files = write_dsc_series(room / str(habit["dsc"]), phantom.signal, habits=vendor, **person)
        for frame, k in dropped:
            files[frame * shape[2] + k].unlink()
        study = study_uid_for(folder, seed)
        write_map_series(room / str(habit["map"]), reference, units=str(habit["units"]), study_uid=study, **person)
    with atomic_path(truth / folder) as room:
        room.mkdir()
        for key, data in phantom.truth.items():
            save_volume(room / f"{key}.nii.gz", Volume(data=data, affine=phantom.signal.affine))
        facts = {
            **phantom.facts,
            "patient_id": folder,
            "vendor": vendor,
            "te_s": te_s,
            "tr_s": tr_s,
            "seed": seed,
            "dispersion_s": dispersion_s,
            "dropped_frame_slice": [list(pair) for pair in dropped],
            "sigma": phantom.sigma,
            "aif": [float(c) for c in phantom.aif],
        }
        write_json(room / "truth.json", facts)
