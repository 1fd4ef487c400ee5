"""Work on many curves, spread over the cores in chunks that stay in cache."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

from threadpoolctl import ThreadpoolController

_ONE_AT_A_TIME = threading.Lock()
"""How many threads BLAS takes belongs to the process: two callers at once could leave it at one for good."""

CURVES_WORTH_A_THREAD = 2000
"""Below twice this many curves one thread is as quick."""


def over_chunks(job: Callable[[slice], None], n_curves: int, size: int) -> None:
    """Call `job` with consecutive slices of at most `size` curves, on as many threads as BLAS would take.

    NumPy lets go of the interpreter in products and in arithmetic alike, so chunks run side by side, and arithmetic,
    which NumPy leaves to one core, uses all of them. BLAS keeps to one thread meanwhile: its own threads would compete
    with the chunks'. OMP_NUM_THREADS limits both.

    Examples
    --------
    >>> import numpy as np
    >>> squares = np.empty(10)
    >>> def job(part):
    ...     squares[part] = np.arange(10.0)[part] ** 2
    >>> over_chunks(job, 10, 4)
    >>> squares[[0, 3, 9]].tolist()
    [0.0, 9.0, 81.0]
    """
    with _ONE_AT_A_TIME:
        blas = _blas()
        most = max((library["num_threads"] for library in blas.info()), default=1)
        threads = min(most, 1 + n_curves // CURVES_WORTH_A_THREAD)
        count = -(-n_curves // size)
        count += -count % threads  # all threads get as much
        step = max(-(-n_curves // max(count, 1)), 1)
        parts = [slice(start, min(start + step, n_curves)) for start in range(0, n_curves, step)]
        with blas.limit(limits=1):
            if threads < 2:
                for part in parts:
                    job(part)
                return
            with ThreadPoolExecutor(threads) as pool:
                for _ in pool.map(job, parts):  # reading the results raises what a job raised
                    pass


@cache
def _blas() -> ThreadpoolController:
    """The BLAS libraries of this process. Looking for them takes milliseconds; NumPy's is there from its import on."""
    return ThreadpoolController().select(user_api="blas")
