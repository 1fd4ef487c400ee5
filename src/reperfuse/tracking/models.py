"""Models as files: logged with a signature, known by content, fetched without unpickling anything."""

import shutil
import tempfile
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from reperfuse.errors import InputError
from reperfuse.files import sha256_of
from reperfuse.tracking.runs import Run
from reperfuse.tracking.store import client, store_name, tracking_uri

if TYPE_CHECKING:
    import numpy as np

MODEL_FILES = ("model.safetensors", "model.json")
"""What a model is: weights and description. Nothing else of a model's folder is read or compared."""

DIGEST = "reperfuse.model_sha256"
"""Tag by which the same model is known again, in the store and in the registry."""


def model_digest(folder: Path | str) -> str:
    """SHA-256 over the weights and the description in `folder`: the same digest, the same model.

    Raises
    ------
    InputError
        If model.safetensors or model.json is missing.
    """
    return sha256("".join(sha256_of(path) for path in _model_files(Path(folder))).encode()).hexdigest()


def log_model(
    run: Run,
    model_dir: Path | str,
    *,
    input_example: "np.ndarray",
    pip_requirements: Sequence[str],
    code_path: Path | str,
    name: str = "model",
) -> str:
    """URI (`models:/m-…`) of the model in the store, for others to load with `mlflow.pyfunc`.

    It is kept as a script (`code_path`, models-from-code), a copy of the package and the two files of the
    model: nothing is pickled, and `mlflow models serve` needs no checkout. The same files again give the
    same URI.

    Parameters
    ----------
    run
        The run that made it.
    model_dir
        Folder with model.safetensors and model.json.
    input_example
        Shape (2, C, I, J, K), float32; small, for it is kept as text. The signature takes any batch and any
        I, J, K, and C channels.
    pip_requirements
        What serving needs, exact versions.
    code_path
        The script, stages/served_model.py.
    name
        What the UI calls it.
    """
    import numpy as np
    from mlflow import pyfunc
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import Model, ModelSignature
    from mlflow.types.schema import Schema, TensorSpec

    digest = model_digest(model_dir)
    store = client()
    logged = store.get_run(run.id)
    for output in logged.outputs.model_outputs if logged.outputs else []:
        earlier = store.get_logged_model(output.model_id)
        if earlier.tags.get(DIGEST) == digest and str(earlier.status) == "READY":
            return f"models:/{earlier.model_id}"

    example = np.asarray(input_example, dtype=np.float32)
    free = (-1, -1, -1)
    signature = ModelSignature(
        inputs=Schema([TensorSpec(np.dtype(np.float32), (-1, example.shape[1], *free))]),
        outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, 1, *free))]),
    )
    # The client instead of pyfunc.log_model: no global store, no active run, and no account name in the tags.
    model = store.create_logged_model(
        logged.info.experiment_id,
        name=name,
        source_run_id=run.id,
        params=logged.data.params,
        tags={DIGEST: digest, "mlflow.user": "reperfuse"},
        model_type=run.experiment,
    )
    with tempfile.TemporaryDirectory(prefix="reperfuse-model-") as room:
        # MLflow notes where files came from: a neutral place instead of somebody's home.
        files = Path(room, "model")
        files.mkdir()
        for path in _model_files(Path(model_dir)):
            shutil.copyfile(path, files / path.name)
        script = shutil.copy(code_path, room)
        package = Path(room, "code", "reperfuse")
        shutil.copytree(Path(__file__).parent.parent, package, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
        pyfunc.save_model(
            path=str(Path(room, "saved")),
            python_model=str(script),
            artifacts={"model": str(files)},
            signature=signature,
            input_example=example,
            pip_requirements=list(pip_requirements),
            code_paths=[str(package)],
            mlflow_model=Model(
                artifact_path=model.artifact_location,
                model_uuid=model.model_id,
                run_id=run.id,
                model_id=model.model_id,
                metadata={DIGEST: digest},
            ),
        )
        store.log_model_artifacts(model.model_id, str(Path(room, "saved")))
    store.finalize_logged_model(model.model_id, "READY")
    store.log_outputs(run.id, [LoggedModelOutput(model.model_id, step=0)])
    return f"models:/{model.model_id}"


def fetch_model(model_uri: str | Path) -> Path:
    """A local folder with model.safetensors and model.json, which is all that inference reads.

    Parameters
    ----------
    model_uri
        `models:/lesion@champion`, `models:/lesion/3`, `models:/m-…`, `runs:/ID/model`, or a folder.

    Raises
    ------
    InputError
        If there is no such model, or it has not the two files.
    """
    uri = str(model_uri)
    if "://" not in uri and ":/" not in uri:
        folder = Path(uri)
        _model_files(folder)
        return folder
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    try:
        location = _location(uri)
        here = Path(download_artifacts(artifact_uri=location, tracking_uri=tracking_uri()))
    except (MlflowException, OSError) as error:
        raise InputError(
            f"{uri} is not in {store_name()} ({str(error).splitlines()[0]}): "
            "run `reperfuse promote`, or name another model."
        ) from error
    # Its copy of the package holds weights too: those of the network that ships.
    found = [path for path in sorted(here.rglob(MODEL_FILES[0])) if "code" not in path.relative_to(here).parts]
    if len(found) != 1:
        raise InputError(
            f"{uri} at {here} holds {len(found)} files {MODEL_FILES[0]}, not one: it is no reperfuse model."
        )
    _model_files(found[0].parent)
    return found[0].parent


def run_of(model_uri: str) -> str:
    """Id of the run that made a model of the store.

    Parameters
    ----------
    model_uri
        `models:/lesion@champion`, `models:/lesion/3`, `models:/m-…` or `runs:/ID/model`.

    Raises
    ------
    InputError
        If there is no such model.
    """
    from mlflow.exceptions import MlflowException

    store, name = client(), model_uri.removeprefix("models:/").strip("/")
    try:
        if model_uri.startswith("runs:/"):
            return str(store.get_run(model_uri.removeprefix("runs:/").partition("/")[0]).info.run_id)
        if not model_uri.startswith("models:/"):
            raise InputError(f"{model_uri} is no model of the store: give models:/NAME@champion, models:/NAME/VERSION.")
        if "@" in name:
            return str(store.get_model_version_by_alias(*name.split("@", 1)).run_id)
        if "/" in name:
            return str(store.get_model_version(*name.split("/", 1)).run_id)
        return str(store.get_logged_model(name).source_run_id)
    except MlflowException as error:
        raise InputError(f"{model_uri} is not in {tracking_uri()}: `reperfuse ui` shows what is.") from error


def _location(uri: str) -> str:
    """Where the artifacts of a model URI lie, asked of this store and not of MLflow's global one."""
    store = client()
    if uri.startswith("runs:/"):
        run_id, _, name = uri.removeprefix("runs:/").partition("/")
        run = store.get_run(run_id)
        for output in reversed(run.outputs.model_outputs if run.outputs else []):
            model = store.get_logged_model(output.model_id)
            if model.name == name:
                return str(model.artifact_location)
        return f"{run.info.artifact_uri}/{name}"
    if not uri.startswith("models:/"):
        return uri
    name = uri.removeprefix("models:/").strip("/")
    if "@" in name:
        version = store.get_model_version_by_alias(*name.split("@", 1))
    elif "/" in name:
        version = store.get_model_version(*name.split("/", 1))
    else:
        return str(store.get_logged_model(name).artifact_location)
    return str(store.get_model_version_download_uri(version.name, version.version))


def _model_files(folder: Path) -> list[Path]:
    paths = [folder / name for name in MODEL_FILES]
    for path in paths:
        if not path.is_file():
            raise InputError(f"{path} is missing: a model is a folder with {' and '.join(MODEL_FILES)}.")
    return paths
