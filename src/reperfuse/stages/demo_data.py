"""Demo data through the real doors: simulated DICOM perfusion patients and an ATLAS R2.0 tree, the truth beside."""

import shutil
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from datetime import date, datetime, timedelta
from hashlib import sha256
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from reperfuse.errors import InputError
from reperfuse.files import atomic_path, read_json, sha256_of, write_json

ARMS = ("lesion", "perfusion")

SUBJECTS = {True: {"perfusion": 14, "lesion": 20}, False: {"perfusion": 4, "lesion": 6}}
"""Subjects per arm, at full size and small."""

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

MANIFEST = "manifest.json"
"""Beside the truth: what this stage wrote, so that it never deletes or mixes with anything else."""


def demo_data(
    inbox: Path,
    *,
    arms: Iterable[str] = ARMS,
    subjects: dict[str, int] | int | None = None,
    seed: int = 2026,
    full_size: bool = True,
    workers: int = 2,
) -> None:
    """INBOX/perfusion (DICOM) and INBOX/lesion (ATLAS R2.0 layout), with the truth in <INBOX>-truth.

    The same arguments give the same bytes, whatever the number of workers. A folder that this stage wrote before is
    written again; anything else in the way is refused.

    Parameters
    ----------
    inbox
        Folder to write into.
    arms
        "lesion", "perfusion" or both.
    subjects
        Number of subjects of every arm, or per arm; by default 14 perfusion patients and 20 lesion subjects.
    seed
        Seed of everything random.
    full_size
        False writes few and tiny subjects for tests: (32, 32, 8, 60) DSC and T1w on a 4 mm grid.
    workers
        Processes.

    Raises
    ------
    InputError
        If an arm is unknown, a number of subjects is below one, or the inbox holds data of somebody else.
    """
    inbox = Path(inbox).resolve()
    arms = tuple(dict.fromkeys(arms))
    jobs: list[tuple[float, str, Callable[..., None], dict[str, Any]]] = []
    plans: dict[str, dict[str, dict[str, Any]]] = {}
    for arm in arms:
        if arm not in ARMS:
            raise InputError(f"There is no arm named {arm}: choose {' or '.join(ARMS)}.")
        asked = subjects.get(arm) if isinstance(subjects, dict) else subjects
        count = SUBJECTS[full_size][arm] if asked is None else asked
        if count < 1:
            raise InputError(f"{count} {arm} subjects cannot be written: ask for at least one.")
        plan = _perfusion_plan if arm == "perfusion" else _lesion_plan
        plans[arm] = dict(plan(count, seed, full_size))
        _refuse_strangers(inbox, arm)
    written: dict[str, dict[str, Any]] = {}
    for arm, plan_of_arm in plans.items():
        content = {"arm": arm, "seed": seed, "full_size": full_size, "folders": sorted(plan_of_arm), "code": _code()}
        if _is_there(inbox, arm, content):
            print(f"demo data, {arm}: {len(plan_of_arm)} subjects are there already.")
            continue
        written[arm] = content
        _clear_leftovers(inbox, arm, set(plan_of_arm))
        write_json(truth_folder(inbox) / arm / MANIFEST, content)
        if arm == "lesion":
            write_json(inbox / arm / "dataset_description.json", DESCRIPTION)
        write = _write_patient if arm == "perfusion" else _write_subject
        for folder, how in plan_of_arm.items():
            jobs.append((how.pop("cost"), arm, write, {"inbox": inbox, "folder": folder, **how}))
    jobs.sort(key=lambda job: -job[0])  # the long ones first, or a worker ends up waiting for the last
    _run([(arm, write, how) for _, arm, write, how in jobs], workers)
    for arm, content in written.items():
        write_json(truth_folder(inbox) / arm / MANIFEST, {**content, "whole": _weight(inbox, arm)})


def _weight(inbox: Path, arm: str) -> list[int]:
    """How many files the arm has in the inbox and beside it, and how many bytes: enough to see that one is missing."""
    sizes = [
        path.stat().st_size
        for root in (inbox / arm, truth_folder(inbox) / arm)
        for path in root.rglob("*")
        if path.is_file() and path.name != MANIFEST
    ]
    return [len(sizes), sum(sizes)]


def _is_there(inbox: Path, arm: str, content: dict[str, Any]) -> bool:
    """Whether an earlier call with the same arguments and code has written all of it."""
    path = truth_folder(inbox) / arm / MANIFEST
    return path.exists() and read_json(path) == {**content, "whole": _weight(inbox, arm)}


def _code() -> str:
    """SHA-256 of the code that makes the data: another code may make other data."""
    rooms = Path(__file__).parents[1]
    files = [Path(__file__), *sorted((rooms / "phantoms").glob("*.py")), *sorted((rooms / "imaging").glob("*.py"))]
    return sha256("".join(sha256_of(path) for path in files).encode()).hexdigest()


DESCRIPTION = {
    "Name": "Simulated chronic stroke lesions on the MNI152 T1w (reperfuse demo data)",
    "BIDSVersion": "1.6.0",
    "DatasetType": "raw",
    "License": "Anatomy: MNI152 ICBM 2009a, McConnell Brain Imaging Centre, free use with notice; everything else CC0",
    "GeneratedBy": [{"Name": "reperfuse demo-data"}],
}


def truth_folder(inbox: Path) -> Path:
    """The folder beside an inbox that holds the truth of its demo data.

    >>> truth_folder(Path("/data/inbox")).as_posix()
    '/data/inbox-truth'
    """
    return inbox.with_name(f"{inbox.name}-truth")


def _perfusion_plan(count: int, seed: int, full_size: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """Patient folder and the arguments of `_write_patient`, for each patient."""
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


def _lesion_plan(count: int, seed: int, full_size: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """Subject folder and the arguments of `_write_subject`, for each subject."""
    import numpy as np

    from reperfuse.phantoms.lesions import volume_quantile

    rng = np.random.default_rng([seed, 2])
    # Stratified: a small cohort still has small, middling and large lesions in the measured proportion.
    shares = (rng.permutation(count) + rng.random(count)) / count
    centres = 4 if count >= 8 else 2
    for i in range(count):
        centre = i % centres + 1
        yield (
            f"R{centre:03d}/sub-r{centre:03d}s{i // centres + 1:03d}",
            {
                "cost": 100.0 if full_size else 1.0,
                "centre": centre,
                "grid_mm": 1.0 if full_size else 4.0,
                "volume_ml": volume_quantile(float(shares[i])),
                "seed": int(rng.integers(0, 2**31)),
            },
        )


def _refuse_strangers(inbox: Path, arm: str) -> None:
    """Refuse an inbox that holds anything that this stage did not write."""
    manifest = truth_folder(inbox) / arm / MANIFEST
    ours = read_json(manifest)["folders"] if manifest.is_file() else []
    for path in (inbox / arm).rglob("*"):
        relative = path.relative_to(inbox / arm)
        hidden = any(part.startswith(".") for part in relative.parts)  # what a killed run may have left
        inside = any(relative.is_relative_to(folder) for folder in ours)
        if path.is_dir() or hidden or inside or (relative.name == "dataset_description.json" and ours):
            continue
        raise InputError(f"{path} was not written by demo-data: choose an empty folder for the demo.")


def _clear_leftovers(inbox: Path, arm: str, wanted: set[str]) -> None:
    """Remove subjects of an earlier demo that are not in this one."""
    manifest = truth_folder(inbox) / arm / MANIFEST
    for folder in set(read_json(manifest)["folders"] if manifest.is_file() else []) - wanted:
        shutil.rmtree(inbox / arm / folder, ignore_errors=True)
        shutil.rmtree(truth_folder(inbox) / arm / Path(folder).name, ignore_errors=True)


def _run(jobs: list[tuple[str, Callable[..., None], dict[str, Any]]], workers: int) -> None:
    """Do the jobs, in processes when there is more than one worker, under one progress bar per arm."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns) as progress:
        bars = {
            arm: progress.add_task(f"demo data, {arm}", total=sum(job[0] == arm for job in jobs))
            for arm in dict.fromkeys(job[0] for job in jobs)
        }
        if workers <= 1:
            for arm, write, how in jobs:
                write(**how)
                progress.advance(bars[arm])
            return
        # spawn: a forked child inherits locked threads of whatever the caller has imported.
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_quiet) as pool:
            pending = {pool.submit(write, **how): arm for arm, write, how in jobs}
            try:
                for done in as_completed(pending):
                    done.result()
                    progress.advance(bars[pending[done]])
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise


def _quiet() -> None:
    """Leave Ctrl-C to the parent: it lets running subjects finish and cancels the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _write_patient(
    *,
    inbox: Path,
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
    with atomic_path(inbox / "perfusion" / folder) as room:
        files = write_dsc_series(room / str(habit["dsc"]), phantom.signal, habits=vendor, **person)
        for frame, k in dropped:
            files[frame * shape[2] + k].unlink()
        study = study_uid_for(folder, seed)
        write_map_series(room / str(habit["map"]), reference, units=str(habit["units"]), study_uid=study, **person)
    with atomic_path(truth_folder(inbox) / "perfusion" / folder) as room:
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


def _write_subject(*, inbox: Path, folder: str, centre: int, grid_mm: float, volume_ml: float, seed: int) -> None:
    """Write one subject of the ATLAS tree: T1w, lesion mask, and the truth beside the inbox."""
    from threadpoolctl import threadpool_limits

    from reperfuse.imaging.volume import save_volume
    from reperfuse.phantoms.lesions import lesion_phantom

    with threadpool_limits(1):
        phantom = lesion_phantom(seed, centre=centre, grid_mm=grid_mm, volume_ml=volume_ml)
    subject = Path(folder).name
    stem = f"{subject}_ses-1_space-MNI152NLin2009aSym"
    with atomic_path(inbox / "lesion" / folder) as room:
        anat = room / "ses-1" / "anat"
        save_volume(anat / f"{stem}_T1w.nii.gz", phantom.t1w)
        save_volume(anat / f"{stem}_label-L_desc-T1lesion_mask.nii.gz", phantom.mask)
    write_json(truth_folder(inbox) / "lesion" / subject / "truth.json", {**phantom.truth, "subject": subject})
