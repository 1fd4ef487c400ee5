"""The model as others load it, through mlflow.pyfunc."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from reperfuse import tracking
from reperfuse.networks import build_network, save_network

SERVED = Path(tracking.__file__).parent.parent / "stages" / "served_model.py"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a small perfusion model, as training writes it."""
    folder = tmp_path_factory.mktemp("trained") / "perfusion"
    save_network(folder, "tmax_2layer", {"in_channels": 5}, build_network("tmax_2layer", in_channels=5))
    return folder


@pytest.fixture(scope="module")
def logged(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, list[Path]]]:
    """Folder of the same model in a store, and what was logged there, before anybody's Python compiled it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db")
        with tracking.run("perfusion", "model tmax_2layer") as run:
            uri = tracking.log_model(
                run,
                model,
                input_example=np.zeros((2, 5, 4, 4, 2), dtype=np.float32),
                pip_requirements=["torch==2.13.0"],
                code_path=SERVED,
            )
        folder = tracking.fetch_model(uri).parents[1]
        yield folder, list(folder.rglob("*"))


@pytest.fixture
def served(logged: tuple[Path, list[Path]]) -> Path:
    """Folder of the model in the store."""
    return logged[0]


IN_ANOTHER_PROCESS = """
import json, sys
import mlflow, numpy as np
model = mlflow.pyfunc.load_model(sys.argv[1])
image = np.random.default_rng(0).normal(size=(3, 5, 6, 4, 2)).astype(np.float32)
import reperfuse.networks
print(json.dumps([reperfuse.networks.__file__, model.predict(image).tolist()]))
"""


def test_a_logged_model_predicts_elsewhere_with_the_code_it_was_logged_with(
    served: Path, model: Path, tmp_path: Path
) -> None:
    import torch

    from reperfuse.networks import load_network

    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", IN_ANOTHER_PROCESS, str(served)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    code, prediction = json.loads(done.stdout)
    assert Path(code).is_relative_to(served / "code")
    image = np.random.default_rng(0).normal(size=(3, 5, 6, 4, 2)).astype(np.float32)
    with torch.inference_mode():
        expected = load_network(model)[0](torch.from_numpy(image)).numpy()
    assert np.shape(prediction) == (3, 1, 6, 4, 2)
    np.testing.assert_allclose(prediction, expected, atol=1e-6)


def test_the_signature_takes_any_size_but_not_other_channels(served: Path) -> None:
    import mlflow.pyfunc

    loaded = mlflow.pyfunc.load_model(str(served))
    assert loaded.predict(np.zeros((1, 5, 7, 3, 1), dtype=np.float32)).shape == (1, 1, 7, 3, 1)
    with pytest.raises(mlflow.exceptions.MlflowException, match="shape"):
        loaded.predict(np.zeros((1, 4, 7, 3, 1), dtype=np.float32))


def test_nothing_in_a_logged_model_is_pickled(logged: tuple[Path, list[Path]]) -> None:
    suffixes = {path.suffix for path in logged[1] if path.is_file()}
    assert not suffixes & {".pkl", ".pickle", ".pt", ".pth", ".bin", ".joblib"} and ".safetensors" in suffixes
    assert "__pycache__" not in {path.name for path in logged[1]}
