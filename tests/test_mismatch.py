"""Laws of volumes, core and mismatch; numbers from the digital reference object's own truth."""

from itertools import pairwise

import nibabel as nib
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from reperfuse.errors import InputError
from reperfuse.perfusion import mismatch, tissue
from reperfuse.perfusion.concentration import delta_r2star
from reperfuse.perfusion.maps import image_of, maps_of_curves
from reperfuse.phantoms.dsc import dsc_phantom
from reperfuse.phantoms.head import TISSUES

KEYS = [
    "tmax_volume_ml",
    "core_volume_ml",
    "core_method",
    "mismatch_volume_ml",
    "mismatch_ratio",
    "hypoperfusion_intensity_ratio",
    "target_mismatch",
]
ALL = np.ones((10, 10, 10), bool)
RAS = np.diag([2.2, 2.2, 6.0, 1.0])


class Head:
    """A phantom's true maps and what the rules make of them."""

    def __init__(self, seed=0, shape=(48, 48, 8), **options):
        self.phantom = dsc_phantom(shape, n_frames=2, seed=seed, snr=np.inf, **options)
        self.truth, self.affine = self.phantom.truth, self.phantom.signal.affine
        self.spacing = self.phantom.signal.spacing_mm
        self.voxel_ml = float(np.prod(self.spacing)) / 1000
        self.brain = self.truth["brain"] > 0
        self.tissue = tissue.tissue_mask(
            self.brain, self.truth["cbv"], self.truth["cbf"], self.truth["s0"], spacing_mm=self.spacing
        )

    def core(self, turn=lambda image: image, affine=None, **options):
        return mismatch.rcbf_core(
            turn(self.truth["cbf"]),
            turn(self.truth["tmax"]),
            turn(self.tissue),
            self.affine if affine is None else affine,
            brain=turn(self.brain),
            **options,
        )


@pytest.fixture(scope="module")
def heads():
    return [Head(seed) for seed in range(4)]


@pytest.fixture(scope="module")
def head(heads):
    return heads[0]


# where volumes are counted


def test_fluid_and_vessels_are_left_out_and_tissue_is_not(heads):
    for head in heads:
        label = head.truth["tissue"]
        kept = {name: head.tissue[head.brain & (label == number)] for name, number in TISSUES.items()}
        assert kept["grey"].mean() > 0.98 and kept["white"].mean() > 0.98
        assert kept["csf"].mean() < 0.3 and not kept["artery"].any() and not head.tissue[~head.brain].any()


def test_a_core_almost_without_blood_stays_tissue(heads):
    assert min(head.tissue[head.truth["core"] > 0].mean() for head in heads) > 0.9


def test_neither_the_unit_of_a_map_nor_the_coils_decide_what_is_tissue(head):
    x = np.linspace(-1, 1, head.brain.shape[0])[:, None, None]
    again = tissue.tissue_mask(
        head.brain,
        head.truth["cbv"] * 0.01,
        head.truth["cbf"] * 7,
        head.truth["s0"] * 3.0 * (1 + 0.3 * x),
        spacing_mm=head.spacing,
    )
    assert (again == head.tissue)[head.brain].mean() > 0.99


def test_without_a_baseline_image_fluid_is_where_no_bolus_comes(head):
    found = tissue.tissue_mask(head.brain, head.truth["cbv"])
    label = head.truth["tissue"]
    ventricle = head.brain & (head.truth["cbv"] == 0)
    assert not found[ventricle].any() and found[head.brain & (label == TISSUES["white"])].mean() > 0.98


def test_known_vessels_are_left_out(head):
    here = tuple(np.argwhere(head.tissue)[0])
    known = np.zeros(head.brain.shape, bool)
    known[here] = True
    assert not tissue.tissue_mask(head.brain, head.truth["cbv"], vessels=known)[here]


# islands


@pytest.mark.parametrize(("connectivity", "stays"), [(6, False), (18, True), (26, True)])
def test_pieces_smaller_than_the_limit_vanish_and_corners_join_only_when_asked(connectivity, stays):
    mask = np.zeros((6, 6, 6), bool)
    mask[0, 0, 0] = mask[0, 1, 1] = True  # they share an edge
    found = mismatch.without_small_islands(mask, 0.5, min_island_ml=1.0, connectivity=connectivity)
    assert found.any() == stays


def test_a_piece_of_exactly_the_limit_counts():
    mask = np.zeros((10, 10, 1), bool)
    mask[:10, 0] = True
    assert mismatch.without_small_islands(mask, 0.1, min_island_ml=1.0).sum() == 10


def test_noise_alone_makes_no_hypoperfused_volume():
    rng = np.random.default_rng(0)
    tmax = rng.normal(2.0, 2.0, (40, 40, 10))  # 2 % of voxels exceed 6 s
    assert (tmax > 6).mean() > 0.015
    assert mismatch.hypoperfused_volumes(tmax, tmax < 99, 0.02)["6"] == 0


# volumes


def test_volumes_fall_as_the_threshold_rises_and_masks_are_nested(head):
    rng = np.random.default_rng(1)
    noisy = head.truth["tmax"] + rng.normal(0, 2, head.brain.shape)
    masks = [mismatch.hypoperfused(noisy, head.tissue, head.voxel_ml, threshold_s=s) for s in (2, 4, 6, 8, 10, 12)]
    assert all((higher <= lower).all() for lower, higher in pairwise(masks))
    volumes = list(mismatch.hypoperfused_volumes(noisy, head.tissue, head.voxel_ml).values())
    assert volumes == sorted(volumes, reverse=True)


def test_volumes_of_true_maps_are_the_phantoms_within_5_percent(heads):
    for head in heads:
        solid = head.brain & np.isin(head.truth["tissue"], (TISSUES["grey"], TISSUES["white"]))
        for threshold, volume in mismatch.hypoperfused_volumes(head.truth["tmax"], head.tissue, head.voxel_ml).items():
            truth = np.count_nonzero(solid & (head.truth["tmax"] > float(threshold))) * head.voxel_ml
            assert volume == pytest.approx(truth, rel=0.05, abs=1.0)


def test_what_is_not_finite_is_not_late():
    tmax = np.full(ALL.shape, np.nan)
    tmax[0] = np.inf
    assert set(mismatch.hypoperfused_volumes(tmax, ALL, 0.1).values()) == {0.0}


# hemispheres


def turned(affine, flips=(), order=(0, 1, 2)):
    """How an image and its affine look when the same head is stored in another order of axes and directions."""
    shape = (48, 48, 8)
    to_old = np.eye(4)
    to_old[:3, :3] = np.eye(3)[:, order]
    for axis in flips:
        to_old = np.diag([-1.0 if a == axis else 1.0 for a in range(3)] + [1.0]) @ to_old
        to_old[axis, 3] += shape[axis] - 1
    return lambda image: np.flip(image, flips).transpose(order), affine @ to_old


def oblique(affine):
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_euler("xyz", [14, -9, 21], degrees=True).as_matrix()
    return turn @ affine


@pytest.mark.parametrize(
    ("flips", "order"), [((), (0, 1, 2)), ((0,), (0, 1, 2)), ((0, 1), (0, 1, 2)), ((0, 2), (2, 0, 1))]
)
@pytest.mark.parametrize("tilt", [lambda affine: affine, oblique], ids=["straight", "oblique"])
def test_core_and_sides_do_not_depend_on_how_the_head_is_stored(head, flips, order, tilt):
    turn, affine = turned(head.affine, flips, order)
    if tilt is not oblique:
        assert len(set(nib.aff2axcodes(affine))) == 3
    sides = tissue.hemispheres(turn(head.brain), tilt(affine))
    assert (sides == turn(tissue.hemispheres(head.brain, head.affine))).all()
    assert (head.core(turn, tilt(affine)) == turn(head.core())).all()


def test_the_right_hemisphere_is_where_the_affine_says():
    sides = tissue.hemispheres(ALL, RAS)
    assert (sides[:5] == -1).all() and (sides[5:] == 1).all()
    assert (tissue.hemispheres(ALL, RAS * [[-1], [1], [1], [1]]) == -sides).all()


def test_a_mirrored_head_has_mirrored_sides_and_the_same_volumes(heads):
    for head in heads:
        sides = tissue.hemispheres(head.brain, head.affine)
        assert (tissue.hemispheres(np.flip(head.brain, 0), head.affine) == -np.flip(sides, 0)).all()
        assert (head.core(lambda image: np.flip(image, 0)) == np.flip(head.core(), 0)).all()


def test_a_tilted_head_off_centre_is_halved_along_its_own_midline():
    i, j, k = np.indices((60, 60, 12))
    middle = 24 + 0.12 * (j - 30) - 0.3 * (k - 6)
    brain = ((i - middle) / 18) ** 2 + ((j - 30) / 26) ** 2 + ((k - 6) / 7) ** 2 < 1
    sides = tissue.hemispheres(brain, RAS)
    agree = sides[brain] == np.sign(i - middle)[brain]
    assert agree.mean() > 0.98 and abs((sides == 1).sum() / (sides == -1).sum() - 1) < 0.03


# core


def test_core_lies_within_hypoperfused_tissue_and_grows_with_its_threshold(heads):
    for head in heads:
        late = mismatch.hypoperfused(head.truth["tmax"], head.tissue, head.voxel_ml)
        small, middle, large = (head.core(rcbf=rcbf) for rcbf in (0.2, 0.3, 0.5))
        assert (small <= middle).all() and (middle <= large).all() and (large <= late).all()


def test_a_factor_on_all_flow_changes_no_core(head):
    scaled = mismatch.rcbf_core(
        head.truth["cbf"] * 0.031, head.truth["tmax"], head.tissue, head.affine, brain=head.brain
    )
    assert (scaled == head.core()).all()


def test_core_of_true_maps_is_the_phantoms(heads):
    for head in heads:
        core, truth = head.core(), head.truth["core"] > 0
        assert 2 * (core & truth).sum() / (core.sum() + truth.sum()) > 0.92
        assert mismatch.volume_ml(core, head.voxel_ml) == pytest.approx(head.phantom.facts["core_ml"], rel=0.12, abs=1)


def test_flow_is_compared_with_the_other_side_and_not_with_its_own():
    tmax = np.where(np.indices(ALL.shape)[0] == 9, 9.0, 1.0)  # late tissue on the far right
    cbf = np.where(np.arange(10)[:, None, None] < 5, 60.0, 20.0) * ALL
    cbf[9] = 10.0  # half of its own side's flow, a sixth of the other's
    core = mismatch.rcbf_core(cbf, tmax, ALL, RAS)
    assert core[9].all() and core.sum() == 100
    cbf[:5] = 20
    assert not mismatch.rcbf_core(cbf, tmax, ALL, RAS).any()


def test_with_too_little_normal_tissue_opposite_both_sides_are_the_reference_and_with_none_there_is_no_core():
    cbf, tmax = np.full(ALL.shape, 50.0), np.full(ALL.shape, 9.0)
    tmax[5:8] = 1.0  # only on the right, 300 voxels
    cbf[8:] = 10.0
    assert mismatch.rcbf_core(cbf, tmax, ALL, RAS, min_reference_ml=5)[8:].all()
    assert mismatch.rcbf_core(cbf, np.full(ALL.shape, 9.0), ALL, RAS, min_reference_ml=5) is None


def test_core_of_maps_made_by_oscillation_limited_deconvolution_survives_noise():
    phantom = dsc_phantom((48, 48, 8), seed=5, snr=50)
    signal, brain, truth = phantom.signal, phantom.truth["brain"] > 0, phantom.truth["core"] > 0
    curves = delta_r2star(signal.data[brain], signal.te_s, baseline=slice(0, 8))
    found = maps_of_curves(curves, phantom.aif_delta_r2star, signal.tr_s, method="osvd")
    cbf, tmax, cbv = (image_of(found[name], brain) for name in ("cbf", "tmax", "cbv"))
    where = tissue.tissue_mask(brain, cbv, cbf, phantom.truth["s0"], spacing_mm=signal.spacing_mm)
    core = mismatch.rcbf_core(cbf, tmax, where, signal.affine, brain=brain)
    assert core.sum() == pytest.approx(truth.sum(), rel=0.3) and (core & truth).sum() > 0.9 * core.sum()


@pytest.mark.parametrize("scale", [1.0, 1e3, 1e6])
def test_every_unit_of_adc_gives_the_same_core(scale):
    adc = np.full(ALL.shape, 800e-6)
    adc[2:6, 2:6, 2:6] = 450e-6
    adc[0] = 0  # not measured
    adc[1] = 90e-6  # the rim that interpolation against 0 leaves
    core = mismatch.adc_core(adc * scale, ALL, 0.1)
    assert core.sum() == 64 and core[2:6, 2:6, 2:6].all()


@pytest.mark.parametrize("unmeasured", [np.nan, 0.0])
def test_what_an_adc_map_does_not_cover_is_unknown_and_no_core(unmeasured):
    adc = np.full(ALL.shape, 800e-6)
    adc[2:6, 2:6, 2:6] = 450e-6
    whole = mismatch.adc_core(adc, ALL, 0.1)
    assert mismatch.adc_coverage(adc, ALL) == 1
    hidden = np.zeros(ALL.shape, bool)
    hidden[:4] = True
    seen = np.where(hidden, unmeasured, adc)
    np.testing.assert_array_equal(mismatch.adc_core(seen, ALL, 0.1), whole & ~hidden)
    assert mismatch.adc_coverage(seen, ALL) == pytest.approx(1 - hidden.mean())
    assert mismatch.adc_coverage(seen, hidden) == 0 and mismatch.adc_coverage(seen, hidden & ~hidden) == 0


@pytest.mark.parametrize(
    ("adc", "sentence"),
    [
        (np.full(ALL.shape, 120.0), "median"),
        (np.full(ALL.shape, 8e-10), "median"),
        (np.zeros(ALL.shape), "no value in the brain"),
        (np.full((10, 10, 9), 800.0), "register"),
    ],
)
def test_what_is_no_adc_map_of_this_brain_is_refused(adc, sentence):
    with pytest.raises(InputError, match=sentence):
        mismatch.adc_core(adc, ALL, 0.1)


# the summary


def summary(late_voxels, severe_voxels=0, core_voxels=None, voxel_ml=0.1, **options):
    tmax, core = np.zeros(1000), np.zeros(1000, bool)
    tmax[:late_voxels], tmax[:severe_voxels] = 7, 11
    given = {}
    if core_voxels is not None:
        core[:core_voxels] = True
        given = {"core": core.reshape(ALL.shape), "core_method": "adc"}
    return mismatch.mismatch_summary(tmax.reshape(ALL.shape), ALL, voxel_ml, **(given | options))


def test_the_summary_has_the_keys_of_the_contract():
    found = summary(400, 100, 100)
    assert list(found) == KEYS and list(found["tmax_volume_ml"]) == ["4", "6", "8", "10"]
    assert found["tmax_volume_ml"] == {"4": 40.0, "6": 40.0, "8": 10.0, "10": 10.0}
    assert found["core_volume_ml"] == 10 and found["mismatch_volume_ml"] == 30 and found["mismatch_ratio"] == 4
    assert found["hypoperfusion_intensity_ratio"] == 0.25 and found["target_mismatch"] is True


@pytest.mark.parametrize(
    ("late", "core", "voxel_ml", "target"),
    [
        (180, 100, 0.2, True),  # ratio exactly 1.8, mismatch 16 mL
        (179, 100, 0.2, False),  # ratio 1.79
        (250, 100, 0.1, True),  # mismatch exactly 15 mL
        (249, 100, 0.1, False),
        (1000, 138, 0.5, True),  # core 69 mL
        (1000, 140, 0.5, False),  # core 70 mL
        (150, 0, 0.1, True),  # no core: the volume decides
        (149, 0, 0.1, False),
    ],
)
def test_the_rule_of_defuse_3_holds_at_its_edges(late, core, voxel_ml, target):
    assert summary(late, core_voxels=core, voxel_ml=voxel_ml)["target_mismatch"] is target


def test_what_is_undefined_is_none_and_never_zero():
    no_core_map, no_core, nothing_late = summary(400), summary(400, core_voxels=0), summary(0, core_voxels=0)
    undefined = ("core_volume_ml", "core_method", "mismatch_volume_ml", "mismatch_ratio", "target_mismatch")
    assert all(no_core_map[name] is None for name in undefined)
    assert no_core["mismatch_ratio"] is None and no_core["core_volume_ml"] == 0 and no_core["mismatch_volume_ml"] == 40
    assert nothing_late["hypoperfusion_intensity_ratio"] is None and nothing_late["target_mismatch"] is False
    no_artery = mismatch.mismatch_summary(None, ALL, 0.1, core=ALL, core_method="adc")
    assert no_artery["core_volume_ml"] == 100 and set(no_artery["tmax_volume_ml"].values()) == {None}
    assert all(no_artery[name] is None for name in KEYS[3:])


def test_a_core_larger_than_what_is_late_leaves_no_mismatch():
    found = summary(100, core_voxels=300)
    assert found["mismatch_volume_ml"] == 0 and found["mismatch_ratio"] == pytest.approx(1 / 3)
    assert found["target_mismatch"] is False


def test_hypoperfusion_intensity_lies_between_0_and_1(heads):
    for head in heads:
        noisy = head.truth["tmax"] + np.random.default_rng(0).normal(0, 3, head.brain.shape)
        found = mismatch.mismatch_summary(noisy, head.tissue, head.voxel_ml)["hypoperfusion_intensity_ratio"]
        assert 0 <= found <= 1


def test_other_thresholds_are_parameters():
    found = summary(400, 100, 100, thresholds_s=(5, 9.5), hypoperfused_s=5, severe_s=9.5, target_core_ml=5)
    assert list(found["tmax_volume_ml"]) == ["5", "9.5"] and found["target_mismatch"] is False
    assert found["hypoperfusion_intensity_ratio"] == 0.25


# normal white matter


def test_white_matter_is_found_without_a_t1_image(heads):
    for head in heads:
        found = tissue.normal_white_matter(
            head.truth["cbv"], head.truth["cbf"], head.truth["s0"], head.truth["tmax"], head.tissue, head.affine
        )
        assert (head.truth["tissue"][found] == TISSUES["white"]).mean() > 0.95
        side = {"left": -1, "right": 1}[head.phantom.facts["hemisphere"]]
        assert set(tissue.hemispheres(head.tissue, head.affine)[found]) == {-side}


def test_too_little_white_matter_is_said(head):
    late = np.full(head.brain.shape, 9.0)
    with pytest.raises(InputError, match="white matter"):
        tissue.normal_white_matter(
            head.truth["cbv"], head.truth["cbf"], head.truth["s0"], late, head.tissue, head.affine
        )


def test_normalised_maps_have_the_asked_mean_and_forget_their_scale():
    rng = np.random.default_rng(0)
    values, reference = rng.uniform(5, 50, ALL.shape).astype(np.float32), rng.random(ALL.shape) < 0.3
    found = tissue.normalised(values, reference, 22)
    assert found[reference].mean() == pytest.approx(22, rel=1e-5) and found.dtype == np.float32
    np.testing.assert_allclose(tissue.normalised(values * 17, reference, 22), found, rtol=1e-5)
    with pytest.raises(InputError, match="reference"):
        tissue.normalised(values, reference & False)


@pytest.mark.parametrize("ask", ["hypoperfused", "tissue_mask"])
def test_maps_of_another_grid_are_a_programming_error(ask):
    with pytest.raises(ValueError, match="one grid"):
        if ask == "hypoperfused":
            mismatch.hypoperfused(np.zeros((2, 2, 2)), ALL, 0.1)
        else:
            tissue.tissue_mask(ALL, np.zeros((2, 2, 2)))
