"""Perfusion curves with known truth for the tests: a gamma-variate artery, tissue by fine convolution.

Written apart from `reperfuse.phantoms`, so that the phantom and the code it tests are not judged by one another.
"""

from pathlib import Path

import numpy as np
import pytest
from scipy.signal import lfilter

FINE = 0.02  # s; the convolution is exact to FINE/(2·MTT)
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def shared_data(folder: str) -> Path:
    if not (SHARED / folder).is_dir():
        pytest.skip(f"no {folder} in ../shared/data: real data are not installed beside the project")
    return SHARED / folder


def artery(times, arrival=15.0, order=3, scale=1.5):
    """Ca(t), a gamma variate with its peak at 1."""
    late = np.maximum(np.asarray(times, dtype=float) - arrival, 0)
    return (late / (order * scale)) ** order * np.exp(order - late / scale)


def tissue(times, *, cbf=60.0, mtt=4.0, delay=0.0, **of_artery):
    """C(t) = CBF·(Ca ⊗ R)(t − delay), R = exp(−t/MTT), CBF [mL/100 g/min], in the unit of Ca."""
    fine = np.arange(-20, float(times[-1]) + 1, FINE)
    ca = artery(fine - delay, **of_artery)
    # The running sum C(t) = Σ Ca·exp(−(t−s)/MTT) by its recursion, trapezoid rule.
    decay = np.exp(-FINE / mtt)
    curve = lfilter([FINE / 2, FINE / 2 * decay], [1, -decay], ca)
    return cbf / 6000 * np.interp(times, fine, curve)


def frame_times(n=60, dt=1.5):
    return np.arange(n) * dt
