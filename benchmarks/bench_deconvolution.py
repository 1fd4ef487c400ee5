"""How long deconvolution takes on a series of the published size, against the floor: one matrix product.

Any SVD deconvolution with a fixed threshold is a product of the tissue curves with a matrix, T × T for the standard
method and T × 2T for the block-circulant one; the floor is that product of the same sizes and type alone. Three sizes
show that cost grows linearly with voxels. All in one process, the best of three.

    python benchmarks/bench_deconvolution.py
"""

import numpy as np
from timing import best_of

from reperfuse.perfusion.deconvolution import METHODS, residue_function

FRAMES, DT = 60, 1.5
SIZES = {"(64,64,12)": 64 * 64 * 12, "(128,128,12)": 128 * 128 * 12, "(128,128,24)": 128 * 128 * 24}


def main() -> None:
    """Print seconds and ratios."""
    rng = np.random.default_rng(0)
    t = np.clip(np.arange(FRAMES) * DT - 15, 0, None)
    aif = t**3 * np.exp(-t / 1.5)
    print(f"{'method':8s}{'size':>14s}{'seconds':>10s}{'floor':>10s}{'ratio':>8s}")
    for method in METHODS:
        lags = residue_function(aif, aif, DT, method=method).shape[-1]
        for size, voxels in SIZES.items():
            tissue = rng.random((voxels, FRAMES), dtype=np.float32)
            matrix = rng.random((FRAMES, lags), dtype=np.float32)
            ours = best_of(lambda tissue=tissue, method=method: residue_function(tissue, aif, DT, method=method))
            floor = best_of(lambda tissue=tissue, matrix=matrix: tissue @ matrix)
            print(f"{method:8s}{size:>14s}{ours:10.3f}{floor:10.3f}{ours / floor:8.1f}")


if __name__ == "__main__":
    main()
