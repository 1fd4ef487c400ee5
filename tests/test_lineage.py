"""What a model came from, and its workspace made again."""

import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Workspace

from reperfuse import tracking
from reperfuse.errors import InputError
from reperfuse.stages.lineage import lineage, origin, recreate


def shell(root: Path, *lines: str) -> None:
    for line in lines:
        words = [sys.executable if word == "python" else word for word in shlex.split(line)]
        subprocess.run(words, cwd=root, check=True, capture_output=True)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Code with a commit, changes that are in none, data that have moved on since; and a run of that moment."""
    root = tmp_path_factory.mktemp("repository")
    (root / "src").mkdir()
    (root / "src/a.py").write_text("# first\n\nx = 1\n \n")  # a line of context that is one blank
    (root / "src/gone.py").write_text("z = 1\n")
    (root / "src/weights.bin").write_bytes(bytes(256))
    (root / "params.yaml").write_text("seed: 1\n")
    (root / "dvc.yaml").write_text("stages: {}\n")
    (root / "data/bids/lesion").mkdir(parents=True)
    (root / "data/bids/lesion/scan.txt").write_text("then")
    shell(
        root,
        "git init -q -b main",
        "git config user.name a",
        "git config user.email a@example.org",
        "git config diff.noprefix true",
        "python -m dvc init -q",
        "python -m dvc add -q data/bids/lesion",
        "git add .",
        "git commit -q -m start",
    )
    (root / "src/a.py").write_text("# first\n\nx = 2\n \n")
    (root / "src/new.py").write_text("y = 3\n")
    (root / "src/gone.py").unlink()
    (root / "src/weights.bin").write_bytes(bytes(range(256)))
    (root / "src/latin.py").write_bytes(b"# gr\xfcn  \n")  # neither UTF-8 nor without a blank at its end
    (root / "src/with blank.bin").write_bytes(bytes(range(256)))
    (root / "src/grün.sh").write_text("true\n")
    (root / "src/grün.sh").chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        tags = {"study_run_id": "s1", "decision": "promoted", "decision.reason": "better"}
        known = tracking.lineage(root, arm="lesion", seed=7)
        with tracking.run("lesion", "model x", tags=tags, params={"train": {"epochs": 3}}, lineage=known) as run:
            patch_file = tmp_path_factory.mktemp("patch") / tracking.CHANGES
            patch_file.write_bytes(tracking.code_changes(root).encode(errors="surrogateescape"))
            run.log_artifact(patch_file)
        (root / "run").write_text(run.id)
        shell(root, "git commit -q -am later")
        (root / "src/a.py").write_text("x = 100\n")
        (root / "data/bids/lesion/scan.txt").write_text("now")
        shell(root, "python -m dvc add -q data/bids/lesion", "git add .", "git commit -q -m now")
        yield root


def model(repository: Path) -> str:
    return f"runs:/{(repository / 'run').read_text()}/model"


def test_the_workspace_of_a_model_is_made_again_as_it_was(repository: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    said = recreate(origin(model(repository)), again, repository)
    assert (again / "src/a.py").read_text() == "# first\n\nx = 2\n \n"
    assert (again / "src/new.py").read_text() == "y = 3\n"
    assert not (again / "src/gone.py").exists()
    assert (again / "src/weights.bin").read_bytes() == bytes(range(256))
    assert (again / "src/latin.py").read_bytes() == b"# gr\xfcn  \n"
    assert (again / "src/with blank.bin").read_bytes() == bytes(range(256))
    assert (again / "src/grün.sh").stat().st_mode & 0o111
    assert (again / "data/bids/lesion/scan.txt").read_text() == "then"
    assert "nfiles: 1" in (again / "data/bids/lesion.dvc").read_text()  # as `dvc add` writes it
    assert tracking.data_revision(again, "lesion") == origin(model(repository))["data"]["revision"]
    assert tracking.code_changes(again) == tracking.find_text((repository / "run").read_text(), tracking.CHANGES)
    assert "wants its own" in said  # the code here is another by now
    assert (repository / "data/bids/lesion/scan.txt").read_text() == "now"


def test_data_that_left_the_cache_come_from_a_remote_whose_address_is_relative(
    repository: Path, tmp_path: Path
) -> None:
    shell(repository, "python -m dvc remote add -d beside ../beside")
    (repository / ".dvc/cache").rename(repository.parent / "beside")
    recreate(origin(model(repository)), tmp_path / "further/down", repository)
    assert (tmp_path / "further/down/data/bids/lesion/scan.txt").read_text() == "then"


def test_everything_a_model_came_from_is_told(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lineage(model(repository), as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert (told["arm"], told["seed"], told["params"]) == ("lesion", "7", {"train.epochs": "3"})
    assert told["study"] == {"run_id": "s1"} and told["decision"]["decision.reason"] == "better"
    assert len(told["code"]["git_commit"]) == 40 and told["code"]["git_dirty"] == "true"
    assert told["environment"]["mlflow"].startswith("3.")
    lineage(model(repository))
    assert told["code"]["git_commit"] in capsys.readouterr().out


def test_what_cannot_be_had_is_one_sentence(repository: Path, tmp_path: Path) -> None:
    known = origin(model(repository))
    (tmp_path / "full").mkdir()
    (tmp_path / "full/x").touch()
    with pytest.raises(InputError, match="is not empty"):
        recreate(known, tmp_path / "full", repository)
    with pytest.raises(InputError, match="does not know its data revision"):
        recreate(known | {"data": {"revision": tracking.UNKNOWN}}, tmp_path / "a", repository)
    with pytest.raises(InputError, match="git fetch"):
        recreate(known | {"code": known["code"] | {"git_commit": "0" * 40}}, tmp_path / "b", repository)
    with pytest.raises(InputError, match="neither in DVC's cache nor on its remote"):
        recreate(known | {"data": {"revision": "0" * 32 + ".dir"}}, tmp_path / "c", repository)
    with tracking.run("lesion", "model y", lineage=tracking.lineage(repository, arm="lesion", seed=7)) as run:
        run.set_tags({"lineage.git_dirty": "true"})
    with pytest.raises(InputError, match="the difference is not in the store"):
        recreate(origin(f"runs:/{run.id}/model"), tmp_path / "d", repository)
    with pytest.raises(InputError, match="reperfuse ui"):
        origin("models:/lesion@champion")
    with pytest.raises(InputError, match="is no model of the store"):
        origin("models")


@pytest.mark.slow
def test_the_pipeline_gives_the_same_metrics_in_the_workspace_of_its_champion(
    finished: Workspace, tmp_path: Path
) -> None:
    again = Workspace(tmp_path / "again")
    finished.run("reperfuse", "lineage", "models:/perfusion@champion", "--checkout", str(again.root))
    again.run("dvc", "repro", "--force", "--no-run-cache", "perfusion-report")
    for stage in ("evaluate", "resolution"):
        name = f"results/perfusion/{stage}/metrics.json"
        assert json.loads((again.root / name).read_text()) == json.loads((finished.root / name).read_text())
    for table in ("evaluate/scores.csv", "resolution/scores.csv"):
        then, now = ((root / "results/perfusion" / table).read_text() for root in (finished.root, again.root))
        assert then == now
