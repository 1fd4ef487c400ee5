"""The search space as params.yaml writes it, read and checked before any trial: choices, ranges, starting points."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from reperfuse.errors import InputError

Point = dict[str, Any]
"""A value, or its label, for each name of the space."""


@dataclass(frozen=True)
class Choices:
    """One of several values, in the order they are written."""

    labels: dict[Any, Any]
    """What stands for the value in a journal that keeps plain values only → the value meant."""

    def holds(self, label: Any) -> bool:
        """Whether `label` stands for one of them; 1, 1.0 and true are one label, as they are one key."""
        return label in self.labels


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included."""

    low: float
    high: float
    log: bool = False
    """Equal factors are equally likely, not equal distances."""
    step: float | None = None
    """Only low, low + step, low + 2·step, …"""

    @property
    def whole(self) -> bool:
        """Only whole numbers: every bound is written as one."""
        return all(isinstance(number, int) for number in (self.low, self.high, self.step) if number is not None)

    def holds(self, number: Any) -> bool:
        """Whether `number` lies in it, and on a step where there are steps."""
        if isinstance(number, bool) or not isinstance(number, int | float) or not self.low <= number <= self.high:
            return False
        step = self.step or (1 if self.whole else None)
        # A share of a step for rounding: 0.1 + 2·0.1 is not 0.3.
        return step is None or abs((number - self.low) / step - round((number - self.low) / step)) < 1e-8


Space = dict[str, Choices | Range]


def read_space(space: Mapping[str, Any], *, choices_only: bool = False) -> Space:
    """The space that `tune.space` of params.yaml describes.

    Parameters
    ----------
    space
        Name → `{low, high}` with optional `log` or `step`, or `{choices: [...]}`.
    choices_only
        Refuse ranges, which have no grid.

    Raises
    ------
    InputError
        If the space is empty or a name's description is at fault; the sentence names the key.

    Examples
    --------
    >>> read_space({"learning_rate": {"low": "1e-4", "high": 0.01, "log": True}})
    {'learning_rate': Range(low=0.0001, high=0.01, log=True, step=None)}
    """
    if not space:
        raise InputError("tune.space is empty: name at least one parameter to search.")
    read: Space = {}
    for name, spec in space.items():
        where = f"tune.space.{name}"
        keys = set(spec) if isinstance(spec, Mapping) else set()
        if keys == {"choices"}:
            if not isinstance(spec["choices"], Sequence) or isinstance(spec["choices"], str) or not spec["choices"]:
                raise InputError(f"{where}: choices must be a list of at least one value.")
            read[name] = Choices({label_of(value): value for value in map(_number, spec["choices"])})
        elif choices_only:
            raise InputError(f"{where}: the grid sampler takes choices only; write {{choices: [..]}}.")
        elif {"low", "high"} <= keys <= {"low", "high", "log", "step"}:
            read[name] = _range(where, **spec)
        else:
            raise InputError(
                f"{where}: write {{low: .., high: ..}} with optional log or step, or {{choices: [..]}}, not {spec!r}."
            )
    return read


def grid(space: Space) -> list[Point]:
    """Every combination of a space of choices once, as labels, the last name changing fastest.

    Examples
    --------
    >>> grid(read_space({"loss": {"choices": ["mse", "huber"]}, "width": {"choices": [8]}}))
    [{'loss': 'mse', 'width': 8}, {'loss': 'huber', 'width': 8}]
    """
    labels = [list(dimension.labels) for dimension in space.values() if isinstance(dimension, Choices)]
    return [dict(zip(space, row, strict=True)) for row in product(*labels)]


def labelled(point: Mapping[str, Any], space: Space) -> Point:
    """A starting point as labels, in the order of the space.

    Raises
    ------
    InputError
        If it lacks a name, or the space does not hold its value.
    """
    found: Point = {}
    for name, dimension in space.items():
        value = _number(point.get(name))
        value = label_of(value) if isinstance(dimension, Choices) else value
        if name not in point or not dimension.holds(value):
            raise InputError(f"tune.space.{name} does not hold the starting value {point.get(name)!r}: widen it.")
        found[name] = value
    return found


def meant(point: Mapping[str, Any], space: Space) -> Point:
    """The values that the labels of a point stand for."""
    found: Point = {}
    for name, value in point.items():
        dimension = space[name]
        found[name] = dimension.labels[value] if isinstance(dimension, Choices) else value
    return found


def label_of(value: Any) -> Any:
    """What stands for a value in a journal: itself where it is plain, its JSON text for lists and the like.

    Examples
    --------
    >>> label_of("mse"), label_of([12, 24])
    ('mse', '[12, 24]')
    """
    return value if value is None or isinstance(value, bool | int | float | str) else json.dumps(value)


def _range(where: str, low: Any, high: Any, log: Any = False, step: Any = None) -> Range:
    low, high, step = _number(low), _number(high), _number(step)
    for number in [low, high] if step is None else [low, high, step]:
        if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
            raise InputError(f"{where}: {number!r} is not a number.")
    if not isinstance(log, bool):
        raise InputError(f"{where}: log must be true or false, not {log!r}.")
    if low > high:
        raise InputError(f"{where}: low ({low}) lies above high ({high}); exchange them.")
    if log and low <= 0:
        raise InputError(f"{where}: low ({low}) must be above 0 where log is true.")
    if step is not None and (log or step <= 0):
        raise InputError(f"{where}: step ({step}) must be above 0, and log cannot be true beside it.")
    return Range(low, high, log, step)


def _number(value: Any) -> Any:
    # YAML 1.1, as PyYAML reads it, takes 1e-4 (no point) for text.
    is_number = isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value)
    return float(value) if is_number else value
