"""Ingest of many subjects: time and memory by the number of worker processes, from nothing and with nothing to do.

    python benchmarks/ingest.py perfusion --subjects 100 --rounds 3
    python benchmarks/ingest.py lesion --subjects 100 --rounds 3
    python benchmarks/ingest.py manifest

The subjects are those of `reperfuse demo-data` at full size: DSC series of (64, 64, 12) × 80 as 960 classic DICOM files
with a Tmax series (one patient of (128, 128, 24) × 60), and T1w with masks on the 1 mm grid of MNI152 as .nii.gz. They
are written once into --room and kept there. The commands are those of a user, one process each: `reperfuse ingest`,
with `--runner dask --workers 1` and `--workers 2`. They take turns, because cores may be shared with others: the ratio
is that of neighbours in one round. Memory is the highest sum of what is a process's own (USS), read four times a
second, for the parent and for each process below it. `seconds of the parent` is its processor time: what no number of
workers makes shorter, but for the second or two that it takes to import libraries and to serve the workers. A second
ingest of the same inbox finds every subject unchanged. Nothing is told of the disk: the files had just been written,
and stayed in the page cache.

`manifest` writes the manifests of trees of 1 000 and 10 000 invented patients with 972 sources each and times it.

What to expect. Before there were workers, 100 patients took 159 s (130 s of processor) on one shared core, of which
75 s went by before the first patient: reading 98 000 headers, which the parent also kept, 1.6 GB of them. Hashing is
1 % and writing 2 %; all else is pydicom, twice over each file. With headers and patients both in the workers the
parent keeps the list of files, the check for names and the renames, some 20 ms a patient. Two workers should thus take
(T + 2 s)/2 and the 4 s that a cluster takes to start, a ratio of 1.8. Lesions at 0.22 s each: 22 s alone, 11 + 4 with
two, 1.4; from 1 000 subjects on 1.9. Memory: headers no longer kept, below 0.3 GB for the parent; a worker holds one
subject, its images and a copy, 0.3 GB.

What came out (two idle cores, one round; docs/data.md has the table). Memory as expected: 0.28 GB alone where it was
1.6, 0.22 GB for a parent of workers, 0.26 and 0.12 GB for a worker. The parent keeps 0.12 s a patient and 0.03 s a
lesion subject, more than expected: paths and headers travel to it. Two workers to one: 1.51 and 1.57; to one process:
1.21 for both, where 1.8 and 1.4 were expected, since parent and scheduler share the two cores with the workers.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

WAYS = {"local": [], "dask, 1 worker": ["--workers", "1"], "dask, 2 workers": ["--workers", "2"]}

SAMPLED_S = 0.25
"""Time between two looks at the memory [s]."""


def measured(command: list[str], folder: Path) -> dict[str, float]:
    """Seconds, processor seconds of the parent, and peaks of memory that is a process's own [MB]."""
    began, peak = time.perf_counter(), {"parent": 0.0, "worker": 0.0}
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)
    parent = psutil.Process(process.pid)
    spent = 0.0
    while process.poll() is None:
        try:
            peak["parent"] = max(peak["parent"], parent.memory_full_info().uss)
            times = parent.cpu_times()
            spent = times.user + times.system
            for child in parent.children(recursive=True):
                peak["worker"] = max(peak["worker"], child.memory_full_info().uss)
        except psutil.Error:
            pass  # it ended between two lines
        time.sleep(SAMPLED_S)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return {"s": time.perf_counter() - began, "parent_s": spent, **{f"{name}_mb": b / 1e6 for name, b in peak.items()}}


def ingest(arm: str, room: Path, subjects: int, rounds: int) -> None:
    """Print a row for every way and round, then the medians and the ratios of neighbours."""
    inbox = room / f"inbox-{subjects}"
    if not (inbox / arm).exists():
        demo = [sys.executable, "-m", "reperfuse", "demo-data", str(inbox), "--arm", arm, "--subjects", str(subjects)]
        subprocess.run(demo, check=True)
    runs: dict[tuple[str, str], list[dict[str, float]]] = {}
    for turn in range(rounds):
        for way, options in WAYS.items():
            with tempfile.TemporaryDirectory(dir=room) as folder:
                command = [sys.executable, "-m", "reperfuse", "ingest", str(inbox / arm), "--arm", arm]
                command += ["--runner", "dask", *options] if options else []
                for kind in ("cold", "unchanged"):
                    found = measured(command, Path(folder))
                    runs.setdefault((way, kind), []).append(found)
                    numbers = " ".join(f"{name} {value:.1f}" for name, value in found.items())
                    load = os.getloadavg()[0]
                    print(f"{arm}, round {turn + 1}, {way}, {kind}: {numbers} load {load:.1f}", flush=True)
    for (way, kind), found in runs.items():
        middle = {name: statistics.median(run[name] for run in found) for name in found[0]}
        ratios = [one["s"] / run["s"] for one, run in zip(runs["local", kind], found, strict=True)]
        print(
            f"| {arm}, {kind} | {way} | {middle['s']:.0f} | {60 * subjects / middle['s']:.0f} | "
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) | {middle['parent_s']:.0f} | "
            f"{middle['parent_mb']:.0f} | {middle['worker_mb']:.0f} |"
        )


def manifest() -> None:
    """Print size, time to write and time to read of the manifests of large trees."""
    from hashlib import sha256

    from reperfuse.files import read_json, write_json

    sources = [sha256(str(n).encode()).hexdigest() for n in range(972)]
    for n in (1000, 10_000):
        entry = {"centre": "n/a", "settings": {}, "repairs": [], "written": {}, "sources": sources}
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "manifest.json"
            began = time.perf_counter()
            write_json(path, {"subjects": {f"sub-{i:010x}": entry for i in range(n)}})
            written = time.perf_counter()
            read_json(path)
            now = time.perf_counter()
            print(
                json.dumps(
                    {
                        "patients": n,
                        "mb": round(path.stat().st_size / 1e6),
                        "write_s": round(written - began, 1),
                        "read_s": round(now - written, 1),
                    }
                ),
                flush=True,
            )


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["perfusion", "lesion", "manifest"])
    parser.add_argument("--subjects", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--room", type=Path, default=Path("build/ingest-bench"), help="folder for inboxes and trees")
    asked = parser.parse_args()
    if asked.what == "manifest":
        manifest()
    else:
        asked.room.mkdir(parents=True, exist_ok=True)
        ingest(asked.what, asked.room.resolve(), asked.subjects, asked.rounds)


if __name__ == "__main__":
    main()
