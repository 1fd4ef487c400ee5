"""dvc.yaml, the command line, the flows, params and the documents name the same things."""

import ast
import json
from functools import cache
from pathlib import Path

import pytest
import yaml

from reperfuse.params import ARMS, Params

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"
STAGES = ("cohort", "preprocess", "folds", "tune", "train", "evaluate", "resolution", "report")

OUTSIDE_THE_PIPELINE = {"lesion": {"promote"}, "perfusion": {"promote", "maps"}}
"""Verbs with parameters that no stage of dvc.yaml reads."""

NOT_A_DEPENDENCY = {
    "reperfuse.params": "values reach a stage through dvc.yaml's params; this file holds names and bounds",
    "reperfuse.tracking": "records what happened and computes nothing",
    "reperfuse.errors": "one exception class",
    "reperfuse.databases": "names a database and takes turns at it; computes nothing",
    "reperfuse": "the version",
}


def module_path(name: str) -> Path | None:
    path = SOURCE / Path(*name.split("."))
    if path.with_suffix(".py").exists():
        return path.with_suffix(".py")
    return path / "__init__.py" if (path / "__init__.py").exists() else None


@cache
def tree_of(name: str) -> ast.Module:
    path = module_path(name)
    assert path is not None, name
    return ast.parse(path.read_text(encoding="utf-8"))


def imports_in(node: ast.AST) -> set[tuple[str, str]]:
    """(module, name or "") of every import of ours inside `node`."""
    found: set[tuple[str, str]] = set()
    for item in ast.walk(node):
        if isinstance(item, ast.Import):
            found |= {(alias.name, "") for alias in item.names if alias.name.startswith("reperfuse")}
        elif isinstance(item, ast.ImportFrom) and item.module and item.module.startswith("reperfuse"):
            for alias in item.names:
                submodule = f"{item.module}.{alias.name}"
                found.add((submodule, "") if module_path(submodule) else (item.module, alias.name))
    return found


def rooms_of(arm: str, verb: str) -> set[str]:
    """Modules that the stage `verb` of `arm` may run: whole rooms, but only the functions it reaches in stages/."""
    seen: set[tuple[str, str]] = set()
    rooms: set[str] = set()

    def visit(module: str, name: str) -> None:
        if (module, name) in seen or module in NOT_A_DEPENDENCY:
            return
        seen.add((module, name))
        rooms.add(module)
        package = module.rpartition(".")[0]
        if package not in NOT_A_DEPENDENCY and package != "reperfuse.stages":
            visit(package, "")
        tree = tree_of(module)
        if not module.startswith("reperfuse.stages."):
            for found in imports_in(tree):
                visit(*found)
            return
        functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        top_level = [node for node in tree.body if not isinstance(node, ast.FunctionDef | ast.ClassDef)]
        imported = {
            alias: origin
            for origin in imports_in(ast.Module(top_level, []))
            for alias in [origin[1] or origin[0].split(".")[-1]]
        }
        for node in [functions[name]] if name in functions else ([tree] if not name else top_level):
            for found in imports_in(node):
                visit(*found)
            for item in ast.walk(node):
                if isinstance(item, ast.Name) and item.id in functions and item.id != name:
                    visit(module, item.id)
                elif isinstance(item, ast.Name) and item.id in imported:
                    visit(*imported[item.id])

    visit(f"reperfuse.stages.{arm}", verb)
    return rooms


def room_files(arm: str, verb: str) -> set[str]:
    files = {module_path(room) for room in rooms_of(arm, verb)}
    # An empty package file carries nothing but a docstring.
    return {
        str(file.relative_to(ROOT))
        for file in files
        if file and not (file.name == "__init__.py" and len(ast.parse(file.read_text()).body) < 2)
    }


def pipeline() -> dict[str, dict]:
    return yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]


def verbs_of_the_command_line() -> set[str]:
    from reperfuse.cli import app

    return {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}


def test_dvc_yaml_has_every_stage_of_every_arm_in_the_order_of_the_design() -> None:
    assert list(pipeline()) == [f"{arm}-{verb}" for arm in ARMS for verb in STAGES]


@pytest.mark.parametrize("stage", [f"{arm}-{verb}" for arm in ARMS for verb in STAGES])
def test_a_stage_depends_on_exactly_the_rooms_it_imports(stage: str) -> None:
    arm, _, verb = stage.partition("-")
    declared = {path for path in pipeline()[stage]["deps"] if path.startswith("src/") and path.endswith(".py")}
    assert declared == room_files(arm, verb)


@pytest.mark.parametrize("stage", [f"perfusion-{verb}" for verb in STAGES])
def test_a_stage_that_may_take_the_shipped_weights_depends_on_them(stage: str) -> None:
    reads_networks = "src/reperfuse/networks/__init__.py" in pipeline()[stage]["deps"]
    assert ("src/reperfuse/networks/learned" in pipeline()[stage]["deps"]) == reads_networks


def test_the_recipe_of_the_shipped_network_depends_on_exactly_the_rooms_it_imports() -> None:
    recipe = yaml.safe_load((ROOT / "experiments" / "learned" / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    assert recipe["pretrain"]["cmd"].startswith("python -m reperfuse pretrain")
    declared = {path for path in recipe["pretrain"]["deps"] if path.endswith(".py")}
    assert declared == room_files("pretrain", "pretrain")


@pytest.mark.parametrize("stage", [f"{arm}-{verb}" for arm in ARMS for verb in STAGES])
def test_a_stage_runs_its_own_verb_for_its_own_arm(stage: str) -> None:
    arm, _, verb = stage.partition("-")
    assert pipeline()[stage]["cmd"] == f"python -m reperfuse {verb} {arm}"
    assert verb in verbs_of_the_command_line()


def test_every_output_that_a_stage_reads_is_written_by_one_before_it() -> None:
    written: set[str] = {f"data/bids/{arm}" for arm in ARMS}
    for name, stage in pipeline().items():
        for path in (path for path in stage["deps"] if not path.startswith("src/")):
            assert any(path == out or out.startswith(f"{path}/") or path.startswith(f"{out}/") for out in written), (
                name,
                path,
            )
        for kind in ("outs", "metrics", "plots"):
            written |= {out if isinstance(out, str) else next(iter(out)) for out in stage.get(kind, [])}


@pytest.mark.parametrize("arm", ARMS)
def test_dvc_brings_back_all_that_the_gate_knows_of_a_model(arm: str) -> None:
    known = ("model.json", "model.safetensors", "run.json", "subjects.csv", "changes.patch")
    assert {f"models/{arm}/{name}" for name in known} <= set(pipeline()[f"{arm}-train"]["outs"])


def test_params_yaml_is_complete_and_equal_to_the_defaults() -> None:
    written = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    assert written == json.loads(Params().model_dump_json())


def test_every_parameter_that_dvc_yaml_watches_exists_and_every_section_is_watched() -> None:
    content = json.loads(Params().model_dump_json())
    watched = {key for stage in pipeline().values() for key in stage["params"]}
    for key in watched:
        value = content
        for part in key.split("."):
            assert part in value, key
            value = value[part]
    sections = {f"{arm}.{section}" for arm in ARMS for section in content[arm]} | {"seed"}
    outside_dvc = {f"{arm}.{section}" for arm in ARMS for section in OUTSIDE_THE_PIPELINE[arm]}
    assert sections - outside_dvc <= watched


def test_every_params_section_is_a_stage_or_a_verb_outside_the_pipeline() -> None:
    for arm in ARMS:
        assert set(json.loads(Params().model_dump_json())[arm]) == {*STAGES, *OUTSIDE_THE_PIPELINE[arm]}
        assert verbs_of_the_command_line() >= OUTSIDE_THE_PIPELINE[arm]


@pytest.mark.parametrize("target", ["demo", "test", "test-all", "lint", "ui", "up", "down", "status", "bench"])
def test_the_makefile_has_the_targets_that_the_readme_names(target: str) -> None:
    assert f"\n{target}:" in (ROOT / "Makefile").read_text(encoding="utf-8")


def test_ci_runs_the_test_command_of_the_readme() -> None:
    command = [line for line in (ROOT / ".ci" / "run").read_text().splitlines() if line.startswith("make ")]
    assert command == ["make test"]
    assert "make test" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_verb_of_the_command_line_is_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert {
        verb for verb in verbs_of_the_command_line() if f"reperfuse {verb}" not in readme and f"`{verb}`" not in readme
    } == set()


def test_the_lock_pins_every_dependency_exactly() -> None:
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").split()
    assert all(line.count("==") == 1 and "+" not in line and "@" not in line for line in lines)
    locked = {line.split("==")[0].lower().replace("_", "-") for line in lines}
    import tomllib

    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*declared["dependencies"], *declared["optional-dependencies"]["dev"]]
    import re

    assert {re.split(r"[<>=!~\[; ]", item)[0].lower().replace("_", "-") for item in wanted} <= locked
