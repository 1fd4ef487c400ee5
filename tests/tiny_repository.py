"""A git and DVC repository with these flows, two tiny stages per arm and a stand-in for the command line."""

import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # flows/ lies beside src/, it is not installed

from reperfuse.params import ARMS  # noqa: E402

PYTHON = shlex.quote(sys.executable)

FAKE_CLI = """
import json, sys, time
from pathlib import Path
words = sys.argv[1:]
with open("said.txt", "a") as said:
    said.write(" ".join(words) + "\\n")
if words[0] == "ingest":
    if not Path(words[1]).exists():
        sys.exit(print("reperfuse: " + words[1] + " is empty: put series into it.", file=sys.stderr) or 2)
    folder = Path(words[words.index("--out") + 1])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "x.txt").write_text("1")
    __import__("subprocess").run([sys.executable, "-m", "dvc", "add", "--quiet", str(folder)], check=True)
    rows = [{"participant": "sub-1", "outcome": "accepted", "why": ""}]
    if Path(words[1], "growing").exists():
        rows[0]["outcome"] = "left"
    Path(words[words.index("--json") + 1]).write_text(json.dumps(rows))
    print("1 subject accepted")
    sys.exit(0 if rows[0]["outcome"] == "accepted" else 2)
elif words[0] == "demo-data":
    Path(words[1], words[3]).mkdir(parents=True, exist_ok=True)
elif words[0] == "ui":
    from reperfuse.tracking import serve_ui
    serve_ui(int(words[words.index("--port") + 1]), words[words.index("--host") + 1])
elif words[0] == "promote":
    print(words[1], "is champion: no champion before it.")
"""

STEPS = 400
"""Steps of the training, which goes on behind its checkpoint; a file `slow` makes each take 0.3 s."""

TRAIN = """
import json, os, pathlib, sys, time
arm = sys.argv[1]
folder = pathlib.Path("results", arm, "evaluate")
folder.mkdir(parents=True, exist_ok=True)
if pathlib.Path("broken").exists():
    sys.exit(print("fold 0 has no subjects: lower folds.n_folds.", file=sys.stderr) or 2)
checkpoint = pathlib.Path(".reperfuse", arm, "step")
checkpoint.parent.mkdir(parents=True, exist_ok=True)
first = int(checkpoint.read_text()) if checkpoint.exists() else 0
for step in range(first, STEPS):
    with open(f"steps-{arm}.txt", "a") as log:
        log.write(f"{os.getpid()} {step}\\n")
    checkpoint.with_suffix(".part").write_text(str(step + 1))
    checkpoint.with_suffix(".part").replace(checkpoint)
    if pathlib.Path("slow").exists():
        pathlib.Path("pid").write_text(str(os.getpid()))
        time.sleep(0.3)
checkpoint.unlink()
json.dump({"dice": 0.61, "hd95_mm": None}, open(folder / "metrics.json", "w"))
""".replace("STEPS", str(STEPS))


def write_tiny_repository(root: Path) -> None:
    """Write the repository at `root`, committed; the lesion arm's data are missing."""
    root.mkdir(parents=True)
    shutil.copytree(ROOT / "flows", root / "flows", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "prefect.yaml", root)
    (root / "reperfuse").mkdir()
    # The rooms below, such as reperfuse.errors, stay those of the installed package.
    (root / "reperfuse/__init__.py").write_text("__path__ = __import__('pkgutil').extend_path(__path__, __name__)\n")
    (root / "reperfuse/__main__.py").write_text(FAKE_CLI)
    (root / "train.py").write_text(TRAIN)
    (root / "params.yaml").write_text("x: 1\n")
    stages: dict[str, Any] = {}
    for arm in ARMS:
        out = f"results/{arm}/cohort.csv"
        code = (
            f"import pathlib; p = pathlib.Path('{out}'); p.parent.mkdir(parents=True, exist_ok=True); p.write_text('1')"
        )
        stages[f"{arm}-cohort"] = {"cmd": f'python -c "{code}"', "deps": [f"data/bids/{arm}"], "outs": [out]}
        metrics = [{f"results/{arm}/evaluate/metrics.json": {"cache": False}}]
        stages[f"{arm}-train"] = {"cmd": f"python train.py {arm}", "deps": [out], "params": ["x"], "metrics": metrics}
    (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}, sort_keys=False))
    (root / ".gitignore").write_text("/.env\n/.reperfuse/\n/mlruns/\n__pycache__/\n")
    for words in (
        "git init -q -b main",
        "git config user.email a@example.org",
        "git config user.name a",
        f"{PYTHON} -m dvc init -q",
        f"{PYTHON} -m dvc config core.analytics false",
        "git add .",
        "git commit -q -m tiny",
    ):
        subprocess.run(shlex.split(words), cwd=root, check=True)
