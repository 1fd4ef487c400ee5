"""Where a training sample lies in its volume: anywhere, on the target, around enough of the lesion, or one slice."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reperfuse.errors import InputError

KINDS = ("patches", "rejection", "slices")
SLICE_AXES = ("i", "j", "k")
SLICE_CHOICES = ("any", "lesion", "empty")


@dataclass(frozen=True)
class Sampling:
    """How samples are drawn from a volume.

    Raises
    ------
    InputError
        If a name is not known or a number out of its bounds.
    """

    kind: str = "patches"
    """`patches`, or whole volumes where there is no patch size; `rejection`; or `slices`."""
    lesion_share: float = 0.4
    """Of `rejection`: share of the subject's lesion that a patch must hold [-]."""
    tries: int = 50
    """Of `rejection`: patches drawn before the best of them is taken."""
    slice_axis: str = "k"
    """Of `slices`: the axis across them."""
    slice_range: tuple[float, float] = (0.0, 1.0)
    """Of `slices`: where along that axis their centres lie, in its extent [-]."""
    slices: str = "any"
    """Of `slices`: `any` of them, those with `lesion` or the `empty` ones."""

    def __post_init__(self) -> None:
        for name, value, known in [
            ("kind", self.kind, KINDS),
            ("slice_axis", self.slice_axis, SLICE_AXES),
            ("slices", self.slices, SLICE_CHOICES),
        ]:
            if value not in known:
                raise InputError(f"sampling.{name} {value!r} is not known: choose one of {', '.join(known)}.")
        if not (0 < self.lesion_share <= 1 and self.tries >= 1):
            raise InputError("sampling.lesion_share must lie above 0 and up to 1, and sampling.tries be 1 or more.")
        low, high = self.slice_range
        if not 0 <= low < high <= 1:
            raise InputError(f"sampling.slice_range {low} to {high} must rise, from 0 or more to 1 or less.")

    @property
    def across(self) -> int:
        """Number of the axis across the slices."""
        return SLICE_AXES.index(self.slice_axis)


def check_sampling(sampling: Sampling, patch_size: Sequence[int] | None) -> None:
    """Refuse a patch size that does not go with the kind of sampling.

    Raises
    ------
    InputError
        If `rejection` has no patch size, or `slices` one that is not one voxel thick.
    """
    if sampling.kind == "rejection" and patch_size is None:
        raise InputError("sampling.kind rejection draws patches: set patch_size, such as [64, 64, 64].")
    if sampling.kind == "slices" and patch_size is not None and patch_size[sampling.across] != 1:
        raise InputError(
            f"sampling.kind slices draws planes across {sampling.slice_axis}: set patch_size to 1 along it, such as "
            "[192, 224, 1] for k, or to null for the whole plane."
        )


def random_corner(room: Sequence[int], rng: np.random.Generator) -> NDArray[np.int64]:
    """A first voxel anywhere that leaves the patch inside; `room` is the last possible one along each axis."""
    return rng.integers(0, room, endpoint=True)


def centred_corner(
    voxels: NDArray[np.int32],
    shape: Sequence[int],
    size: Sequence[int],
    room: Sequence[int],
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """First voxel of a patch centred on one of `voxels` (flat indices of `shape`), as far as the border allows."""
    centre = np.unravel_index(voxels[rng.integers(len(voxels))], tuple(shape))
    return np.clip(np.subtract(centre, np.array(size) // 2), 0, room)


def rejection_corner(
    voxels: NDArray[np.int32],
    shape: Sequence[int],
    size: Sequence[int],
    room: Sequence[int],
    sampling: Sampling,
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """First voxel of the first random patch that holds at least `lesion_share` of `voxels`; else of the fullest.

    Without voxels any patch will do. All tries are drawn at once, and counted on the voxels alone: no volume is read.

    References
    ----------
    "Stroke lesion segmentation final report", §C.1: blocks with less than 40 % of the target are thrown out. How often
    it drew is not said; a lesion that fits no block would be drawn for without end.
    """
    corners = rng.integers(0, room, size=(sampling.tries, 3), endpoint=True)
    if not len(voxels):
        return corners[0]
    inside = np.ones((sampling.tries, len(voxels)), bool)
    for axis, place in enumerate(np.unravel_index(voxels, tuple(shape))):
        start = corners[:, axis, None]
        inside &= (place >= start) & (place < start + size[axis])
    held = inside.mean(axis=1)
    enough = np.flatnonzero(held >= sampling.lesion_share)
    return corners[enough[0] if len(enough) else held.argmax()]


def slices_within(number: int, extent: tuple[float, float]) -> NDArray[np.int64]:
    """Of `number` slices those whose centre lies within a part of the extent; at least the one nearest its middle.

    Examples
    --------
    >>> slices_within(100, (0.70, 0.90)).tolist() == list(range(70, 90))
    True
    >>> slices_within(4, (0.51, 0.52)).tolist()
    [2]
    """
    low, high = extent
    centres = np.arange(number) + 0.5
    found = np.flatnonzero((centres >= low * number) & (centres <= high * number))
    return found if len(found) else np.array([min(int((low + high) / 2 * number), number - 1)])


def random_slice(with_lesion: NDArray[np.bool_], sampling: Sampling, rng: np.random.Generator) -> int:
    """Number of a slice in `slice_range`: any, or one of the kind asked for, if the range has one of that subject.

    `with_lesion` says of each slice of the axis whether it holds lesion. The range comes first: a subject without
    lesion there gives any slice of it where those with lesion are asked for, as one with lesion in all gives any where
    the empty ones are.
    """
    within = slices_within(len(with_lesion), sampling.slice_range)
    if sampling.slices != "any":
        of_kind = within[with_lesion[within] == (sampling.slices == "lesion")]
        within = of_kind if len(of_kind) else within
    return int(within[rng.integers(len(within))])
