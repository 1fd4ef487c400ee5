"""What the accuracy tables are made of: statistics with bootstrap intervals, and Markdown."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reperfuse.perfusion.deconvolution import METHODS

RESAMPLES = 500
"""Bootstrap resamples; the ends of a 95 % interval then move by about a tenth of its width from seed to seed."""

Statistic = Callable[[NDArray[Any]], NDArray[Any]]
"""From samples along the last axis to one number each."""


def median(values: NDArray[Any]) -> NDArray[Any]:
    """The median along the last axis."""
    return np.asarray(np.median(values, axis=-1))


def mean(values: NDArray[Any]) -> NDArray[Any]:
    """The mean along the last axis."""
    return np.asarray(np.mean(values, axis=-1))


def spread(values: NDArray[Any]) -> NDArray[Any]:
    """Half the distance from the 16th to the 84th percentile along the last axis: σ of a normal distribution."""
    low, high = np.percentile(values, [15.87, 84.13], axis=-1)
    return np.asarray((high - low) / 2)


def interval(values: NDArray[Any], statistic: Statistic, seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap interval of a statistic over voxels, the last axis; rows are resampled together."""
    rng = np.random.default_rng(seed)
    n = values.shape[-1]
    found = [statistic(values[..., rng.integers(0, n, n)]) for _ in range(RESAMPLES)]
    low, high = np.percentile(np.asarray(found), [2.5, 97.5])
    return float(low), float(high)


def cell(values: NDArray[Any], statistic: Statistic, digits: int = 2, sign: bool = False) -> str:
    """A statistic with its interval, as in ``3.10 [3.05, 3.16]``."""
    low, high = interval(values, statistic)
    one = f"{'+' if sign else ''}.{digits}f"
    return f"{float(statistic(values)):{one}} [{low:{one}}, {high:{one}}]"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, columns padded to be read as plain text too."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    lines = [" | ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) for row in (header, *rows)]
    lines.insert(1, " | ".join("-" * width for width in widths))
    return "\n".join(f"| {line} |" for line in lines)


def regularisation(method: str) -> str:
    """A method with its defaults, as in ``csvd (threshold 0.1)``."""
    options = {
        name: option.default
        for name, option in inspect.signature(METHODS[method]).parameters.items()
        if option.kind is option.KEYWORD_ONLY and not isinstance(option.default, bool) and option.default is not None
    }
    return f"{method} ({', '.join(f'{name} {value}' for name, value in options.items())})" if options else method
