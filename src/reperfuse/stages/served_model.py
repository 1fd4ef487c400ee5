"""The model as `mlflow.pyfunc` serves it: images (B, C, I, J, K) in, the network's output (B, 1, I, J, K) out.

MLflow keeps this script itself (models-from-code) beside the weights and runs it when somebody loads the
model; nothing is unpickled. Our own inference does not come this way: it reads the two files of the model.
"""

from typing import Any

import mlflow
import numpy as np
from mlflow.pyfunc import PythonModel


class ServedModel(PythonModel):
    """The network of model.safetensors and model.json on the CPU; raw output, before any sigmoid or threshold."""

    def load_context(self, context: Any) -> None:
        """Read the network from the artifact `model`, a folder."""
        from reperfuse.networks import load_network

        self.network, self.description = load_network(context.artifacts["model"])
        self.network.eval()

    def predict(self, context: Any, model_input: np.ndarray, params: dict[str, Any] | None = None) -> np.ndarray:
        """The network's output, shape (B, 1, I, J, K), for images of shape (B, C, I, J, K)."""
        import torch

        with torch.inference_mode():
            return self.network(torch.as_tensor(np.asarray(model_input, dtype=np.float32))).float().numpy()


mlflow.models.set_model(ServedModel())
