"""nnU-Net v2 on an exported lesion cohort: plan, train for so many minutes, predict. A peer for lesion_networks.py.

    PEER_PYTHON benchmarks/nnunet_peer.py FOLDER --patch 48 48 48 --batch 2 (--minutes M | --steps N) [--no-mirroring]

runs in an environment of its own that has nnunetv2 (written for 2.8; `pip install nnunetv2==2.8`) and nothing of
reperfuse. FOLDER is what `nnunet_export.export` wrote. It leaves there:

- predictions/NAME.npz for each of the imagesTs: `probability` of a lesion, float32, on the axes of the NIfTI file
  (I, J, K), and `sums_i`, `sums_j`, `sums_k` of the image as it was seen here, by which a reader can tell its axes;
- done.json: parameters, steps, step_s, samples, minutes (of training alone), peak_gb, predict_s (per subject);
- raw/, preprocessed/ and results/, in nnU-Net's own layout.

What is nnU-Net's own: planner, preprocessing, network, augmentation, foreground oversampling, loss, deep supervision,
SGD, polynomial learning rate, sliding window with mirroring; single precision on a CPU, half where there is a GPU.

What differs from its defaults, and why:

- patch and batch size are the ones asked for. The planner is told that no image exceeds the patch, and so fits depth,
  strides, widths and whether Dice is taken over the batch (where a patch is a small part of an image) to it by its own
  rules: 4 stages for 32³ and for 48³, 5 for 64³;
- an epoch has 20 iterations in place of 250, as the learning rate falls from epoch to epoch, and one validation
  iteration in place of 50;
- as many epochs as fit the minutes by the second of two trial epochs, in place of 1000;
- it trains on all subjects (fold "all"), without the final validation;
- patches are made in the training process; no checkpoint and no progress plot is written, which takes no part in the
  result but in the clock.

Intensities arrive as z-scores, and nnU-Net leaves them alone; the intensity statistics of its fingerprint, which only
CT needs, are of fewer voxels.
"""

import argparse
import json
import os
import random
import resource
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

DATASET = "Dataset001_Lesions"
CONFIGURATION = "3d_fullres"
ITERATIONS_PER_EPOCH = 20
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class PatchPlanner(ExperimentPlanner):
    """nnU-Net's planner for a patch and a batch size that are given."""

    patch: tuple[int, ...]
    batch: int

    def get_plans_for_configuration(
        self, spacing: Any, median_shape: Any, data_identifier: str, approximate_n_voxels_dataset: float, _cache: dict
    ) -> dict:
        if len(spacing) == 2:
            return super().get_plans_for_configuration(
                spacing, median_shape, data_identifier, approximate_n_voxels_dataset, _cache
            )
        patch = [self.patch[axis] for axis in self.determine_transpose()[0]]
        plan = super().get_plans_for_configuration(
            spacing, np.array(patch), data_identifier, approximate_n_voxels_dataset, _cache
        )
        if list(plan["patch_size"]) != patch:
            fits = " ".join(str(int(voxels)) for voxels in reversed(plan["patch_size"]))
            raise SystemExit(f"nnU-Net cannot halve a patch of {self.patch[::-1]} as it wants: try --patch {fits}.")
        return plan | {"median_image_size_in_voxels": median_shape, "batch_size": self.batch}


class ShortTrainer(nnUNetTrainer):
    """nnU-Net's trainer with short epochs, which writes no checkpoint and draws no progress."""

    def __init__(
        self, plans: dict, configuration: str, fold: int, dataset_json: dict, device: torch.device = DEVICE
    ) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_iterations_per_epoch = ITERATIONS_PER_EPOCH
        self.num_val_iterations_per_epoch = 1
        self.disable_checkpointing = True
        self.logger.plot_progress_png = lambda output_folder: None


def planned(folder: Path, patch: tuple[int, ...], batch: int) -> tuple[dict, dict]:
    """Plans and dataset description of the exported cohort, which lies preprocessed afterwards."""
    # The planner hands this on to torch as a number of threads.
    os.environ["nnUNet_n_proc_DA"] = "1"  # noqa: SIM112
    extractor = DatasetFingerprintExtractor(DATASET, num_processes=1)
    # 10⁸ values would make the peak memory theirs.
    extractor.num_foreground_voxels_for_intensitystats = 1e4 * len(extractor.dataset)
    extractor.run(overwrite_existing=True)
    planner = PatchPlanner(DATASET)
    # The file holds the axes in reverse order for nnU-Net.
    planner.patch, planner.batch = tuple(reversed(patch)), batch
    planner.plan_experiment()
    base = folder / "preprocessed" / DATASET
    plans = json.loads((base / f"{planner.plans_identifier}.json").read_text())
    description = json.loads((base / "dataset.json").read_text())
    manager = PlansManager(plans)
    configuration = manager.get_configuration(CONFIGURATION)
    preprocessor = configuration.preprocessor_class(verbose=False)
    out = base / configuration.data_identifier
    out.mkdir()
    files = get_filenames_of_train_images_and_targets(str(folder / "raw" / DATASET), description)
    for name, of in files.items():
        preprocessor.run_case_save(str(out / name), of["images"], of["label"], manager, configuration, description)
    return plans, description


def trained(plans: dict, description: dict, epochs: int, seed: int) -> tuple[ShortTrainer, float]:
    """A trainer after so many epochs, and the seconds they took."""
    # Patches are made in this process: worker processes would be processors that others do not get.
    os.environ["nnUNet_n_proc_DA"] = "0"  # noqa: SIM112
    # nnU-Net draws from all three.
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)
    trainer = ShortTrainer(plans | {"continue_training": False}, CONFIGURATION, "all", description, DEVICE)
    trainer.num_epochs = epochs
    started = time.monotonic()
    trainer.run_training()
    return trainer, time.monotonic() - started


def epochs_in(minutes: float, plans: dict, description: dict, seed: int) -> int:
    """Epochs that fit, by the second of a trial: the first pays for what is done once."""
    trial, _ = trained(plans, description, 2, seed)
    ends = [trial.logger.get_value(f"epoch_{end}_timestamps", step=1) for end in ("start", "end")]
    return max(1, round(minutes * 60 / (ends[1] - ends[0])))


def predicted(trainer: ShortTrainer, files: list[str], threads: int, mirroring: bool) -> tuple[np.ndarray, np.ndarray]:
    """Image and lesion probability of one subject, both (I, J, K) of its file."""
    plans, configuration = trainer.plans_manager, trainer.configuration_manager
    predictor = nnUNetPredictor(use_mirroring=mirroring, device=DEVICE, allow_tqdm=False)
    predictor.manual_initialization(
        trainer.network,
        plans,
        configuration,
        [trainer.network.state_dict()],
        trainer.dataset_json,
        type(trainer).__name__,
        trainer.inference_allowed_mirroring_axes,
    )
    preprocessor = configuration.preprocessor_class(verbose=False)
    data, _, properties = preprocessor.run_case(files, None, plans, configuration, trainer.dataset_json)
    logits = predictor.predict_logits_from_preprocessed_data(torch.from_numpy(data))
    _, probabilities = convert_predicted_logits_to_segmentation_with_correct_shape(
        logits, plans, configuration, trainer.label_manager, properties, True, num_threads_torch=threads
    )
    image, _ = plans.image_reader_writer_class().read_images(files[:1])
    return image[0].T, np.asarray(probabilities[1], np.float32).T


def peak_gb() -> float:
    """The most memory of this process so far, of the GPU where there is one."""
    if DEVICE.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def main() -> None:
    """Plan, train, predict, and say what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="as nnunet_export.export wrote it")
    parser.add_argument("--patch", type=int, nargs=3, required=True, help="voxels along I, J and K")
    parser.add_argument("--batch", type=int, default=2)
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--minutes", type=float, help="of training, without the trial")
    length.add_argument("--steps", type=int, help=f"rounded up to epochs of {ITERATIONS_PER_EPOCH}")
    parser.add_argument("--mirroring", action=argparse.BooleanOptionalAction, default=True, help="when predicting")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    folder = asked.folder.resolve()
    if not (folder / "raw" / DATASET / "dataset.json").exists():
        raise SystemExit(f"{folder} holds no raw/{DATASET}/dataset.json: write it with nnunet_export.export first.")
    torch.set_num_threads(asked.threads)
    # What an earlier run left would pass for this one's if this one failed.
    (folder / "done.json").unlink(missing_ok=True)
    for name in ("preprocessed", "results", "predictions"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in ("raw", "preprocessed", "results"):
        os.environ[f"nnUNet_{name}"] = str(folder / name)
    plans, description = planned(folder, tuple(asked.patch), asked.batch)
    torch.set_num_threads(asked.threads)
    if asked.steps is None:
        epochs = epochs_in(asked.minutes, plans, description, asked.seed)
    else:
        epochs = -(-asked.steps // ITERATIONS_PER_EPOCH)
    trainer, seconds = trained(plans, description, epochs, asked.seed)
    steps = epochs * ITERATIONS_PER_EPOCH
    done = {
        "parameters": sum(weights.numel() for weights in trainer.network.parameters()),
        "steps": steps,
        "step_s": seconds / steps,
        "samples": steps * asked.batch,
        "minutes": seconds / 60,
        "peak_gb": peak_gb(),
    }
    trainer.set_deep_supervision_enabled(False)
    (folder / "predictions").mkdir()
    images = folder / "raw" / DATASET / "imagesTs"
    names = sorted(file.name.removesuffix("_0000.nii.gz") for file in images.glob("*_0000.nii.gz"))
    started = time.monotonic()
    for name in names:
        files = [str(images / f"{name}_{channel:04d}.nii.gz") for channel in range(len(description["channel_names"]))]
        image, probability = predicted(trainer, files, asked.threads, asked.mirroring)
        others = {"i": (1, 2), "j": (0, 2), "k": (0, 1)}
        sums = {f"sums_{axis}": image.sum(axis=over, dtype=np.float64) for axis, over in others.items()}
        np.savez_compressed(folder / "predictions" / f"{name}.npz", probability=probability, **sums)
    done["predict_s"] = (time.monotonic() - started) / max(len(names), 1)
    (folder / "done.json").write_text(json.dumps(done, indent=1))
    print(json.dumps(done))


if __name__ == "__main__":
    main()
