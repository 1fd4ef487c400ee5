"""Presets: experiments/NAME.yaml says what differs from params.yaml, checked before anything runs."""

import difflib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import Field, ValidationError

from reperfuse.errors import InputError
from reperfuse.params import Arm, Params, Section, sentence_of

FOLDER = Path("experiments")
"""Where presets lie, from the root of the repository."""

Stage = Literal["cohort", "preprocess", "folds", "tune", "train", "evaluate", "resolution", "report"]
STAGES: tuple[Stage, ...] = get_args(Stage)


class Preset(Section):
    """One study, as its file states it."""

    description: str = Field(min_length=1, description="what is asked, in a sentence or a few")
    arm: Arm = Field(description="whose stages run")
    until: Literal["tune", "train", "evaluate", "resolution", "report"] = Field(
        "report", description="the last stage that runs; `tune` where cross-validation alone answers"
    )
    overrides: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="stage → parameter → value, in place of those in params.yaml"
    )
    small: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="more of them, over `overrides`, for --small"
    )

    def changes(self, small: bool) -> dict[str, Any]:
        """What differs from params.yaml: arm → stage → parameter → value."""
        both = merged({self.arm: self.overrides}, {self.arm: self.small} if small else {}, Params)
        return {arm: stages for arm, stages in both.items() if stages}


def presets(root: Path) -> dict[str, Preset]:
    """Every preset of the repository at `root`, by name."""
    return {path.stem: read_preset(path) for path in sorted((root / FOLDER).glob("*.yaml"))}


def find_preset(root: Path, name: str) -> Path:
    """The file of the preset `name`.

    Raises
    ------
    InputError
        If there is none of that name; the sentence has the nearest, or all there are.
    """
    path = root / FOLDER / f"{name}.yaml"
    if path.is_file() and path.parent == root / FOLDER:
        return path
    known = sorted(other.stem for other in (root / FOLDER).glob("*.yaml"))
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known) or 'none'}."
    raise InputError(f"{FOLDER / f'{name}.yaml'} is not there; {hint}")


def read_preset(path: Path) -> Preset:
    """The preset in `path`.

    Raises
    ------
    InputError
        If it is not YAML, or says something that no preset says.
    """
    try:
        return Preset.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid YAML ({' '.join(str(error).split())}): mend that line.") from error
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"]) or "its content"
        raise InputError(
            f"{path}: {where} is not possible ({problem['msg'].lower()}); "
            f"a preset has {', '.join(Preset.model_fields)}."
        ) from error


def preset_params(content: Mapping[str, Any], preset: Preset, small: bool, path: Path) -> Params:
    """The parameters that the preset in `path` runs with: the `content` of params.yaml with its changes.

    Raises
    ------
    InputError
        Names `path` and the parameter that is unknown or out of bounds.
    """
    try:
        return Params.model_validate(merged(content, preset.changes(small), Params))
    except ValidationError as error:
        raise InputError(f"{path}: {sentence_of(error.errors()[0])}") from error


def merged(content: Mapping[str, Any], changes: Mapping[str, Any], model: type[Section]) -> dict[str, Any]:
    """`content` with `changes`, key by key where `model` has a section, whole where a value is itself a mapping.

    Examples
    --------
    >>> content = {"perfusion": {"train": {"epochs": 25, "network_kwargs": {"hidden": 12}}}}
    >>> merged(content, {"perfusion": {"train": {"network_kwargs": {"depth": 3}}}}, Params)
    {'perfusion': {'train': {'epochs': 25, 'network_kwargs': {'depth': 3}}}}
    """
    result = dict(content)
    for key, value in changes.items():
        section = _section(model, key)
        if section is not None and isinstance(value, Mapping):
            value = merged(content.get(key) or {}, value, section)
        result[key] = value
    return result


def set_param_words(content: Mapping[str, Any], changes: Mapping[str, Any]) -> list[str]:
    """The `--set-param` values, in order, that turn params.yaml's `content` into `merged(content, changes, Params)`.

    DVC hands them to Hydra, which merges a mapping into the one that is there and refuses its new keys: a search
    space would keep what it should lose. So a mapping is first removed (`~key`), then the new one is added (`++key`).
    Other values are only set: Hydra takes null for nothing to remove.

    Examples
    --------
    >>> content = {"perfusion": {"tune": {"space": {"loss": {"choices": ["mse"]}}, "epochs": 2}}}
    >>> for word in set_param_words(content, {"perfusion": {"tune": {"space": {"seed": {"low": 1}}, "rivals": None}}}):
    ...     print(word)
    ~perfusion.tune.space
    ++perfusion.tune.space={seed:{low:1}}
    ++perfusion.tune.rivals=null
    """
    words = []
    for keys, value in _leaves(changes, Params):
        name = ".".join(keys)
        if isinstance(_value(content, keys), Mapping):
            words.append(f"~{name}")
        words.append(f"++{name}={_literal(value)}")
    return words


def _section(model: type[Section], key: str) -> type[Section] | None:
    field = model.model_fields.get(key)
    annotation = None if field is None else field.annotation
    return annotation if isinstance(annotation, type) and issubclass(annotation, Section) else None


def _leaves(changes: Mapping[str, Any], model: type[Section]) -> Iterator[tuple[list[str], Any]]:
    for key, value in changes.items():
        section = _section(model, key)
        if section is None:
            yield [key], value
        else:
            yield from (([key, *rest], leaf) for rest, leaf in _leaves(value, section))


def _value(content: Any, keys: list[str]) -> Any:
    for key in keys:
        content = content.get(key) if isinstance(content, Mapping) else None
    return content


def _literal(value: Any) -> str:
    """A value in Hydra's override grammar, where text is quoted so that commas and spaces stay in it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_literal(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(_literal, value)) + "]"
    # Inside quotes a backslash is itself, save before a quote.
    text = re.sub(r"(\\*)(\"|\Z)", lambda found: found[1] * 2 + found[2].replace('"', '\\"'), str(value))
    return f'"{text}"'
