"""Imports point down only, and each heavy library has one door."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "reperfuse"

LEVELS = [
    {"errors"},
    {"files", "databases"},
    {"imaging"},
    {"cohort", "phantoms", "preprocessing", "perfusion", "networks"},
    {"evaluation"},
    {"training"},
    {"tracking", "params"},
    {"stages"},
    {"cli", "flows"},
]
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}

DOORS = {
    "mlflow": {"tracking"},
    "optuna": {"training/tune.py", "training/studies.py"},
    "pydicom": {"imaging"},
    "highdicom": {"imaging"},
    "prefect": {"flows"},
    "SimpleITK": {"preprocessing"},
    "dvc": {"stages/experiment.py"},
    "distributed": {"stages/fanout.py"},
    "dask": {"stages/fanout.py"},
}
# training may score what it trains, with this module of evaluation alone
MAY_IMPORT = {"training": {"evaluation.metrics"}}
KNOWN_TO_ALL = {"errors", "files", "databases"}
SEES_PARAMS = {"stages", "cli", "flows"}


def sources() -> list[Path]:
    return sorted([*PACKAGE.rglob("*.py"), *(ROOT / "flows").glob("*.py")])


def room_of(path: Path) -> str:
    if path.is_relative_to(PACKAGE):
        return path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "flows"


def imported_modules(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module or ""}
    return found


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_room_imports_only_rooms_below_it(path: Path) -> None:
    room = room_of(path)
    if room in {"__init__", "__main__"}:
        return
    for module in imported_modules(path):
        parts = module.split(".")
        if parts[0] not in {"reperfuse", "flows"} or (len(parts) < 2 and parts[0] == "reperfuse"):
            continue
        other = "flows" if parts[0] == "flows" else parts[1]
        if other == room or other in KNOWN_TO_ALL or other.startswith("__"):
            continue
        if other == "params":
            assert room in SEES_PARAMS, f"{path.name} reads params: science takes plain numbers"
        elif room == "tracking":
            pytest.fail(f"tracking imports {module}, and should know nothing of ours")
        elif other == "evaluation" and room == "training":
            assert (
                any(module.startswith(f"reperfuse.{name}") for name in MAY_IMPORT["training"])
                or module == "reperfuse.evaluation"
            )
        else:
            assert LEVEL[other] < LEVEL[room], f"{path.name} ({room}) imports {module}: that points up or sideways"


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_heavy_library_enters_by_its_door(path: Path) -> None:
    name = "flows" if room_of(path) == "flows" else str(path.relative_to(PACKAGE))
    for module in imported_modules(path):
        doors = DOORS.get(module.split(".")[0])
        # served_model is run by MLflow itself, from the registry.
        if doors and name != "stages/served_model.py":
            assert any(name == door or name.startswith((f"{door}/", f"{door}.py")) for door in doors), (
                f"{name} imports {module}"
            )


def test_every_room_has_a_level() -> None:
    assert {room_of(path) for path in sources()} - {"__init__", "__main__"} <= set(LEVEL)


def test_the_law_is_broken_by_an_upward_import(tmp_path: Path) -> None:
    wrong = PACKAGE / "imaging" / "volume.py"
    assert "reperfuse.training" not in imported_modules(wrong)
    sample = tmp_path / "sample.py"
    sample.write_text("from reperfuse.training import fit\n")
    assert "reperfuse.training.fit" in imported_modules(sample)
