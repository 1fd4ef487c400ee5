"""The one door to MLflow: where the store is, runs and how they are named, models, and what a run came from.

An arm (`lesion`, `perfusion`) is an experiment. Runs nest by parent: study → trial → fold; the run of a
trained model stands beside its study, and evaluate, resolution and report come back to it (`resume`), so
that comparing two runs compares two models. docs/tracking.md has the names of runs, metrics and tags.

Importing this package does not import MLflow (2 s): each function does when it is called.
"""

import os

# Read by MLflow while it is imported, so they are set before any function here can import it; what the
# user has set stays. No telemetry; no job runner beside the UI (8 processes, 1 GB); quiet.
for _name, _value in {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_RECORD_ENV_VARS_IN_MODEL_LOGGING": "false",
    "MLFLOW_UV_AUTO_DETECT": "false",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
}.items():
    os.environ.setdefault(_name, _value)

from reperfuse.tracking.lineage import CHANGES, UNKNOWN, code_changes, data_revision, lineage  # noqa: E402
from reperfuse.tracking.models import fetch_model, log_model, model_digest, run_of  # noqa: E402
from reperfuse.tracking.names import METRIC_GROUPS, RUN_KINDS, grouped, run_name  # noqa: E402
from reperfuse.tracking.registry import (  # noqa: E402
    PREVIOUS,
    Version,
    champion,
    find_registered,
    get_alias,
    promote,
    register,
    rollback,
    set_alias,
    tag_version,
)
from reperfuse.tracking.runs import (  # noqa: E402
    Run,
    RunRecord,
    find_table,
    find_text,
    read_table,
    recorded,
    resume,
    run,
    run_record,
)
from reperfuse.tracking.server import serve_ui  # noqa: E402
from reperfuse.tracking.store import client, repository_root, store_name, tracking_uri  # noqa: E402

__all__ = [
    "CHANGES",
    "METRIC_GROUPS",
    "PREVIOUS",
    "RUN_KINDS",
    "UNKNOWN",
    "Run",
    "RunRecord",
    "Version",
    "champion",
    "client",
    "code_changes",
    "data_revision",
    "fetch_model",
    "find_registered",
    "find_table",
    "find_text",
    "get_alias",
    "grouped",
    "lineage",
    "log_model",
    "model_digest",
    "promote",
    "read_table",
    "recorded",
    "register",
    "repository_root",
    "resume",
    "rollback",
    "run",
    "run_name",
    "run_of",
    "run_record",
    "serve_ui",
    "set_alias",
    "store_name",
    "tag_version",
    "tracking_uri",
]
