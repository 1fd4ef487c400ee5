"""Whose images a model was trained on and judged by: one table that travels with it."""

import pandas as pd

from reperfuse.stages import layout
from reperfuse.stages.processed import read_cohort, read_folds, read_table

SUBJECTS_TABLE = "tables/subjects.csv"
"""Artifact of a model's run that holds `subjects_table`, by which a later challenger and later data are compared."""

PLACES = ("session", "image", "mask", "reference", "t1w", "dwi", "adc", "flair", "fold")
"""Columns of the cohort's and the folds' tables that say where something lies, and nothing about the subject."""


def subjects_table(arm: str) -> pd.DataFrame:
    """One row per processed subject: `participant_id`, `side`, `files_sha256`, and what the cohort knows of it.

    That is the centre, grid and spacing [mm], volume [mL], TE and TR [s], modalities, and the intensities of the image.

    Raises
    ------
    InputError
        If the stages up to `folds` have not run.
    """
    index = read_table(layout.processed(arm) / "index.csv", arm).drop(columns=["shape", "sha256"])
    about = read_cohort(arm).drop_duplicates("participant_id")
    table = read_folds(arm).merge(index, on="participant_id").merge(about, on="participant_id", suffixes=("", "_again"))
    return table.drop(columns=[name for name in table if name in PLACES or str(name).endswith("_again")])
