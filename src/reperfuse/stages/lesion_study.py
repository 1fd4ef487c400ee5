"""How the slices of a lesion scan get thicker, and how a prediction is scored on the grid of thick slices."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from reperfuse.imaging.volume import Volume
from reperfuse.params import LesionParams
from reperfuse.preprocessing.geometry import AXES, reorient, thick_slices
from reperfuse.stages.assessment import Case
from reperfuse.stages.degrade import named_profile
from reperfuse.stages.lesion_input import Scan
from reperfuse.stages.study import Study

TOLERANCE = 0.05
"""A thickness counts as reached when the scan's own spacing is at most this part above it: headers round."""


def slice_study(settings: LesionParams, seed: int) -> Study:
    """The study of slice thickness: RAS axes of the scans, and thicknesses along them."""
    asked = settings.resolution
    first, *others = asked.axes
    levels = {first: tuple(sorted(asked.thickness_mm))}
    aside = asked.other_axes_mm or asked.thickness_mm
    levels |= {axis: tuple(sorted({min(asked.thickness_mm), *aside})) for axis in others}
    profile = named_profile(asked.profile)
    how: dict[str, Any] = {"profile": profile, "interpolation": asked.interpolation}

    def degrade(scan: Scan, thickness: float, axis: str) -> Scan:
        images = {name: thicker(image, thickness, axis) for name, image in scan.images.items()}
        if all(image is scan.images[name] for name, image in images.items()):
            return scan
        return replace(scan, images=images)

    def thicker(image: Volume, thickness: float, axis: str) -> Volume:
        upright = reorient(image, "RAS")
        if thickness <= upright.spacing_mm[AXES[axis]] * (1 + TOLERANCE):
            return image
        return thick_slices(upright, thickness, axis, spacing_mm=thickness + asked.gap_mm, **how)

    def reach(scan: Scan, levels: Mapping[Any, Sequence[float]]) -> Mapping[Any, Sequence[float]]:
        own = reorient(next(iter(scan.images.values())), "RAS").spacing_mm
        return {
            axis: [level for level in asked_here if level >= (1 - TOLERANCE) * own[AXES[axis]]]
            for axis, asked_here in levels.items()
        }

    def on_thick_grid(
        probability: np.ndarray, case: Case, thickness: float, axis: str
    ) -> tuple[np.ndarray, Case] | None:
        truth = reorient(Volume((case.truth.data > 0).astype(np.float32), case.truth.affine), "RAS")
        if thickness <= truth.spacing_mm[AXES[axis]] * (1 + TOLERANCE):
            return None
        answer = reorient(Volume(np.asarray(probability, dtype=np.float32), case.truth.affine), "RAS")
        # Without a gap: what no slice shows is still there.
        truth, answer = (thick_slices(it, thickness, axis, profile="box", keep_thick=True) for it in (truth, answer))
        return answer.data, Case(case.scan, replace(truth, data=(truth.data >= 0.5).astype(np.uint8)))

    return Study(
        level_name="thickness_mm",
        levels=levels,
        degrade=degrade,
        reach=reach,
        on_coarse_grid=on_thick_grid,
        sizes="lesion_volume_ml",
        about={
            "seed": seed,
            **asked.model_dump(exclude={"workers"}),
            "profile": np.asarray(profile).tolist(),  # what a file holds, not its name
            **settings.evaluate.model_dump(),
        },
        workers=asked.workers,
    )
