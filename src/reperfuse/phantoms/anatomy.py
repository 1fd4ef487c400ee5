"""Heads that differ: one T1w anatomy, moved by a warp that provably has an inverse, as another subject's."""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy import ndimage

from reperfuse.phantoms.fields import smooth_field

TISSUE_T1 = {"csf": 0.27, "grey": 0.65, "white": 0.87}
"""Intensity of an `Anatomy` by tissue [-]: those of the MNI152 template, whose maximum is 1, by its own tissue maps
(medians)."""

NODE_MM = 4.0
"""Distance of the nodes between which a warp is trilinear [mm], or the voxel size where that is larger."""

SCALES = ((60.0, 0.75), (25.0, 0.55), (12.0, 0.36))
"""Width [mm] of the random fields of a warp and the share of its standard deviation: the squares sum to 1. Lobes, gyri
and single folds; our choice."""

AFFINE_SD = 0.03
"""Standard deviation of each entry of the affine part: what linear registration leaves of a head's size and pose, 3 %
or 2 degrees. Our choice."""

VENTRICLES = ((0.0, -15.0, 12.0), (24.0, 34.0, 22.0))
"""Middle and width (x, y, z) [mm, MNI] of the bell within which the ventricles are widened; by eye."""

STEEPEST = 0.9
"""Largest Lipschitz constant of a displacement [-]; below 1 a warp has an inverse."""


@dataclass(frozen=True)
class Anatomy:
    """A T1w on an axis-aligned grid in MNI space, and where its brain is."""

    t1w: np.ndarray
    """Shape (I, J, K), float32, tissues at `TISSUE_T1`; the first axis points to the right."""
    brain: np.ndarray
    """Same shape, bool."""
    origin_mm: np.ndarray
    """Position of the first voxel (x, y, z) [mm, MNI]."""
    grid_mm: float

    @cached_property
    def axes_mm(self) -> list[np.ndarray]:
        """Positions of the voxels along each axis [mm, MNI]."""
        return [self.origin_mm[a] + np.arange(n) * self.grid_mm for a, n in enumerate(self.t1w.shape)]

    @property
    def mesh_mm(self) -> list[np.ndarray]:
        """x, y and z [mm, MNI], float32, shapes that broadcast to the grid's."""
        return list(np.meshgrid(*[axis.astype(np.float32) for axis in self.axes_mm], indexing="ij", sparse=True))


@dataclass(frozen=True)
class Warp:
    """The pull-back x ↦ x + u(x): the subject has at x what the anatomy has there. u is trilinear between nodes.

    Notes
    -----
    Within a cell of the nodes each ∂u/∂x_a is a convex combination of the differences of u along the cell's four edges
    in direction a. So the Frobenius norm of ∇u, and with it the operator norm, is at most

        L = max over cells of √( Σ_a max over the four edges (|Δ_a u| / h)² ),  h the distance of the nodes,

    and on a box, which is convex, u has Lipschitz constant L. Where L < 1, |x + u(x) − y − u(y)| ≥ (1 − L)|x − y|: no
    two points come from one, and det(I + ∇u) ≥ (1 − L)³ > 0 almost everywhere.
    """

    nodes: np.ndarray
    """u at the nodes [mm], shape (3, A, B, C), float32."""
    node_mm: float

    @cached_property
    def lipschitz(self) -> float:
        """L above."""
        total = np.zeros(())
        for a in range(3):
            steep = (np.diff(self.nodes, axis=a + 1) ** 2).sum(0) / self.node_mm**2
            # The largest over the four edges: neighbours along the two other axes.
            for b in {0, 1, 2} - {a}:
                n = steep.shape[b]
                steep = np.maximum(steep.take(range(n - 1), axis=b), steep.take(range(1, n), axis=b))
            total = total + steep
        return float(np.sqrt(total.max()))

    def where(self, shape: tuple[int, ...], grid_mm: float) -> np.ndarray:
        """Voxel of the anatomy, of the same grid, that each voxel of the subject comes from; shape (3, I, J, K)."""
        field = self.nodes / np.float32(grid_mm)
        for a, n in enumerate(shape):
            at = np.arange(n, dtype=np.float32) * np.float32(grid_mm / self.node_mm)
            hats = np.clip(1 - np.abs(at[:, None] - np.arange(self.nodes.shape[a + 1], dtype=np.float32)), 0, 1)
            # Consumes the axis behind the component and appends the fine one, so after all three the order is back.
            field = np.tensordot(field, hats, axes=(1, 1))
        for a, n in enumerate(shape):
            field[a] += np.arange(n, dtype=np.float32).reshape([-1 if b == a else 1 for b in range(3)])
        return np.ascontiguousarray(field)


def subject_warp(anatomy: Anatomy, rng: np.random.Generator, warp_mm: float) -> tuple[Warp, dict[str, float]]:
    """What makes a subject's head from an anatomy, and what was drawn.

    u(x) = A (x − m) − w(x) b(x) (x − m) + Σ random fields: a small affine part, ventricles widened by the share w on
    the left and on the right, each its own, within a bell b (`VENTRICLES`), and fields of three widths (`SCALES`). All
    of it is made smaller where it would be steeper than `STEEPEST`.

    Parameters
    ----------
    warp_mm
        Standard deviation of the random fields along each axis [mm], before it is bounded.

    Returns
    -------
    warp, facts
        facts: ventricles_left, ventricles_right (w), warp_mm (as bounded), warp_lipschitz.
    """
    shape, step = anatomy.t1w.shape, max(NODE_MM, anatomy.grid_mm)
    counts = [int(np.ceil((n - 1) * anatomy.grid_mm / step)) + 1 for n in shape]
    at = [anatomy.origin_mm[a] + np.arange(n) * step for a, n in enumerate(counts)]
    x, y, z = np.meshgrid(*at, indexing="ij", sparse=True)
    middle, width = VENTRICLES
    offsets = [axis - m for axis, m in zip((x, y, z), middle, strict=True)]
    bell = np.exp(-0.5 * sum((offset / w) ** 2 for offset, w in zip(offsets, width, strict=True)))
    base, uneven = rng.uniform(0.0, 0.4), rng.normal(0, 0.08)
    left, right = (float(np.clip(base + sign * uneven, 0, 0.45)) for sign in (-1, 1))
    widen = bell * (left + (right - left) / (1 + np.exp(-x / 6)))
    affine = rng.normal(0, AFFINE_SD, (3, 3))
    nodes = np.empty((3, *counts), np.float32)
    for a in range(3):
        linear = sum(affine[a, b] * offsets[b] for b in range(3))
        random = sum(share * smooth_field(tuple(counts), (step,) * 3, scale, rng) for scale, share in SCALES)
        nodes[a] = linear - widen * offsets[a] + warp_mm * random
    warp = Warp(nodes, step)
    bound = min(1.0, STEEPEST / max(warp.lipschitz, 1e-9))
    if bound < 1:
        warp = Warp(nodes * np.float32(bound * (1 - 1e-5)), step)
    facts = {
        "ventricles_left": left * bound,
        "ventricles_right": right * bound,
        "warp_mm": warp_mm * bound,
        "warp_lipschitz": warp.lipschitz,
    }
    return warp, facts


def warped(array: np.ndarray, where: np.ndarray) -> np.ndarray:
    """`array` (I, J, K) read at the voxels `where` (3, I, J, K), trilinear, its edge beyond it; float32."""
    return ndimage.map_coordinates(array, where, output=np.float32, order=1, mode="nearest", prefilter=False)


def warped_anatomy(anatomy: Anatomy, where: np.ndarray) -> Anatomy:
    """The anatomy as another subject's: T1w and brain moved together."""
    brain = ndimage.map_coordinates(anatomy.brain, where, order=0, mode="nearest", prefilter=False)
    return replace(anatomy, t1w=warped(anatomy.t1w, where), brain=brain)
