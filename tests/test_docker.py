"""The image, without a container engine: laws of the Dockerfile, and its builder's commands in a clean folder."""

import fnmatch
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def instructions() -> list[tuple[str, str]]:
    """Keyword and text of every instruction, continued lines joined, comments left out."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines()
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in joined if line.strip()]


def stages() -> list[list[tuple[str, str]]]:
    """The instructions of each build stage, its FROM first."""
    found: list[list[tuple[str, str]]] = []
    for keyword, text in instructions():
        if keyword == "FROM":
            found.append([])
        if found:
            found[-1].append((keyword, text))
    return found


def texts(keyword: str, stage: int = -1) -> list[str]:
    return [text for name, text in stages()[stage] if name == keyword]


def copied() -> list[str]:
    """Sources in the checkout of every COPY that is not from another stage."""
    found = [text.split() for stage in range(len(stages())) for text in texts("COPY", stage)]
    return [source for words in found if not words[0].startswith("--from") for source in words[:-1]]


def is_ignored(path: str) -> bool:
    """Whether .dockerignore keeps `path` out of the build; the last pattern that fits it or a parent decides."""
    ignored = False
    places = [Path(path), *Path(path).parents][:-1]
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!").removeprefix("**/")
        names = [place.name if "**/" in line else str(place) for place in places]
        if pattern and any(fnmatch.fnmatch(name, pattern) for name in names):
            ignored = not line.startswith("!")
    return ignored


def test_the_tools_of_the_build_stay_behind_in_it():
    assert len(stages()) == 2 and any("pip install" in text for text in texts("RUN", 0))
    assert not any("pip install" in text for text in texts("RUN"))
    assert [text for text in texts("COPY") if text.startswith("--from=builder")]


def test_the_base_is_pinned_to_a_patch_version():
    (base,) = [text for keyword, text in instructions() if keyword == "ARG" and text.startswith("BASE=")]
    assert re.fullmatch(r"BASE=python:3\.11\.\d+-slim-[a-z]+", base)
    assert [stage[0][1].split()[0] for stage in stages()] == ["${BASE}", "${BASE}"]


def test_it_runs_as_an_ordinary_user():
    assert texts("USER")[-1].isdigit() and int(texts("USER")[-1]) > 0
    after = [keyword for keyword, _ in stages()[-1]]
    assert "RUN" not in after[after.index("USER") :]


def test_it_answers_as_the_command_line_and_says_how_it_is():
    assert json.loads(texts("ENTRYPOINT")[0]) == ["reperfuse"] and json.loads(texts("CMD")[0]) == ["--help"]
    assert "reperfuse --version" in texts("HEALTHCHECK")[0]
    assert "safe.directory /work" in "".join(texts("RUN")) and texts("WORKDIR") == ["/work"]


def test_its_labels_say_the_version_and_the_licence_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    labels = texts("LABEL")[0]
    assert f'version="{project["version"]}"' in labels and f'licenses="{project["license"]}"' in labels


def test_what_is_copied_exists_and_reaches_the_build():
    assert {"requirements.lock", "pyproject.toml", "src"} <= set(copied())
    assert [source for source in copied() if not (ROOT / source).exists() or is_ignored(source)] == []


@pytest.mark.parametrize(
    "path", ["data/bids/lesion.dvc", ".reperfuse/pseudonym.key", ".env", "inbox/x.dcm", "src/reperfuse/__pycache__"]
)
def test_nothing_of_patients_and_no_key_reaches_the_build(path: str):
    assert is_ignored(path) and not is_ignored("src/reperfuse/cli.py")


def test_no_host_is_named():
    assert re.findall(r"https?://|[a-z0-9-]+\.(?:org|com|io|net)/", (ROOT / "Dockerfile").read_text()) == []


@pytest.mark.slow
def test_the_commands_of_the_builder_make_a_venv_whose_health_check_passes(tmp_path: Path):
    build, venv, work = tmp_path / "build", tmp_path / "venv", tmp_path / "work"
    build.mkdir()
    work.mkdir()
    for source in copied():
        (shutil.copytree if (ROOT / source).is_dir() else shutil.copy)(ROOT / source, build / source)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment["PATH"] = f"{venv}/bin:{Path(sys.executable).resolve().parent}:{os.environ['PATH']}"
    for command in texts("RUN", 0):
        subprocess.run(["sh", "-ec", command.replace("/opt/venv", str(venv))], cwd=build, env=environment, check=True)
    assert not (build / ".git").exists()
    said = subprocess.run([venv / "bin/reperfuse", "--version"], cwd=work, env=environment, capture_output=True)
    assert said.returncode == 0 and said.stdout.strip()
    check = json.loads(re.search(r"CMD (\[.*\])", texts("HEALTHCHECK")[0])[1])  # type: ignore[index]
    assert subprocess.run(check, cwd=work, env=environment).returncode == 0
    (work / ".reperfuse/services").mkdir(parents=True)
    (work / ".reperfuse/services/processes.json").write_text("{}")
    shutil.copytree(ROOT / "flows", work / "flows")
    assert subprocess.run(check, cwd=work, env=environment).returncode == 1
