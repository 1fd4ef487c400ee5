"""Real series of GE, Philips and Siemens scanners against the NIfTI supplied with them, and laws where none is."""

import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from pydicom import dcmread

from reperfuse.errors import InputError
from reperfuse.imaging.dicom_read import read_dsc
from reperfuse.imaging.dicom_series import find_series

DATA = Path(__file__).parents[2] / "shared" / "data" / "dicom"

pytestmark = [
    pytest.mark.realdata,
    pytest.mark.skipif(not DATA.is_dir(), reason=f"{DATA} is missing: real series are tested only beside it"),
]

D2N, GE = "dicom2nifti", "ge_classic_nih"
REFERENCES = {
    "ge fmri": (f"{D2N}/ge/fmri/001", f"{D2N}/ge/fmri/001_ground_truth.nii.gz"),
    "philips fmri, slice-major": (f"{D2N}/philips/fmri/001", f"{D2N}/philips/fmri/001_ground_truth.nii.gz"),
    "siemens single slices": (f"{D2N}/siemens/fmri_classic/001", f"{D2N}/siemens/fmri_classic/001_ground_truth.nii.gz"),
    "siemens anatomical": (f"{D2N}/siemens/anatomical/001", f"{D2N}/siemens/anatomical/001_ground_truth.nii.gz"),
    "hitachi oblique": (f"{D2N}/hitachi/anatomical/001", f"{D2N}/hitachi/anatomical/001_ground_truth.nii.gz"),
    "hyperfine multi-frame": (f"{D2N}/hyperfine/anatomical/001", f"{D2N}/hyperfine/anatomical/001_ground_truth.nii.gz"),
    "rescaled, not isotropic": (
        f"{D2N}/generic/anatomical/002_non_isotropic",
        f"{D2N}/generic/anatomical/002_non_isotropic_ground_truth.nii.gz",
    ),
    **{
        kind: (f"{D2N}/generic/{kind}/001", f"{D2N}/generic/{kind}/001_ground_truth.nii.gz")
        for kind in ("compressed_j2k", "compressed_jpeg", "compressed_jpegls", "compressed_rle")
    },
    "ge epi 15 x 10": (f"{GE}/In/20180918GE/mr_0004", f"{GE}/Ref/DCM2NIIX_regression_test_4.nii"),
    **{
        f"siemens mosaic {way}": (f"{GE}/In/20180918Si/mr_000{n}", f"{GE}/Ref/EPI_PE={way}_{n}.nii")
        for n, way in ((3, "AP"), (4, "PA"), (5, "RL"), (6, "LR"))
    },
}


def only_series(folder):
    found, unreadable = find_series(DATA / folder)
    assert len(found) == 1 and not unreadable
    return found[0]


def upright(volume_or_image):
    """Data with frames last and affine, voxel axes nearest to RAS."""
    image = volume_or_image
    if not isinstance(image, nib.Nifti1Image):
        image = nib.Nifti1Image(image.data, image.affine)
    image = nib.as_closest_canonical(image)
    data = np.asarray(image.dataobj, dtype=np.float32)
    return (data if data.ndim == 4 else data[..., None]), image.affine


@pytest.mark.parametrize("name", REFERENCES)
def test_a_real_series_equals_its_reference_voxel_for_voxel(name):
    folder, reference = REFERENCES[name]
    data, affine = upright(read_dsc(only_series(folder)))
    expected, expected_affine = upright(nib.load(DATA / reference))
    np.testing.assert_allclose(affine, expected_affine, atol=1e-4)
    if "rescaled" in name:  # decimal slopes: equal to float32
        np.testing.assert_allclose(data, expected, rtol=1e-6)
    else:
        np.testing.assert_array_equal(data, expected)


def protocol_centres(path):
    """Centres of slices as the scanner's own protocol lists them, (K, 3) RAS."""
    pattern = rb"sSliceArray\.asSlice\[(\d+)\]\.sPosition\.d(Sag|Cor|Tra)\s*=\s*(-?[\d.]+(?:[eE][-+]?\d+)?)"
    centres = {}
    for number, axis, value in re.findall(pattern, dcmread(path, stop_before_pixels=True)[0x00291020].value):
        centres.setdefault(int(number), [0.0] * 3)[(b"Sag", b"Cor", b"Tra").index(axis)] = float(value)
    return np.array([centres[number] for number in sorted(centres)]) * [-1, -1, 1]


@pytest.mark.parametrize(
    ("folder", "shape", "tr"),
    [
        ("siemens_mosaic/B17/6_ax_asc_35sl", (64, 64, 35, 2), 3.01),
        ("siemens_mosaic/E11/7_Rest_fMRI_AP", (86, 86, 51, 2), 1.3),
        (f"{D2N}/siemens/fmri/001", (80, 80, 50, 2), 3.0),
    ],
)
def test_slices_of_a_mosaic_lie_where_the_protocol_put_them(folder, shape, tr):
    series = only_series(folder)
    read = read_dsc(series)
    assert series.is_dynamic and read.data.shape == shape and read.tr_s == pytest.approx(tr)
    centres = [(read.affine @ [shape[0] / 2, shape[1] / 2, k, 1])[:3] for k in range(shape[2])]
    np.testing.assert_allclose(centres, protocol_centres(series.files[0]), atol=1e-4)


def test_a_mosaic_that_begins_at_the_last_slice_equals_its_reference_but_for_the_place():
    # Its protocol numbers images downwards. The reference has the voxels in this order, yet stacks them away from the
    # first tile's position, one stack height too high; the test above holds the place against the protocol.
    data, affine = upright(read_dsc(only_series(f"{D2N}/siemens/fmri/001")))
    expected, expected_affine = upright(nib.load(DATA / D2N / "siemens/fmri/001_ground_truth.nii.gz"))
    np.testing.assert_array_equal(data, expected)
    height = np.linalg.norm(affine[:3, 2]) * (data.shape[2] - 1)
    np.testing.assert_allclose(affine[:3, :3], expected_affine[:3, :3], atol=1e-4)
    assert np.linalg.norm(affine[:3, 3] - expected_affine[:3, 3]) == pytest.approx(height, abs=1e-3)


@pytest.mark.parametrize("vendor", ["ge", "philips"])
def test_implicit_value_representation_changes_nothing_of_the_geometry(vendor):
    explicit, implicit = (read_dsc(only_series(f"{D2N}/{vendor}/fmri/001{kind}")) for kind in ("", "_implicit"))
    np.testing.assert_array_equal(implicit.affine, explicit.affine)
    assert (implicit.data.shape, implicit.te_s, implicit.tr_s) == (explicit.data.shape, explicit.te_s, explicit.tr_s)


@pytest.mark.parametrize(
    ("folder", "shape", "tr"),
    [
        ("ge_timing/GE/TriggerTime/4_epi_ascending", (64, 64, 8, 16), 1.5),
        ("ge_timing/GE/RTIA/2_epiRT_ascending", (64, 64, 8, 3), 1.5),
        ("philips_classic_phantom/In/Magdeburg_2014/fmri", (64, 64, 9, 3), 2.0),
    ],
)
def test_phantom_series_have_all_frames_and_rising_slices(folder, shape, tr):
    series = only_series(folder)
    read = read_dsc(series)
    assert series.is_dynamic and series.n_frames == shape[3] and read.data.shape == shape
    np.testing.assert_allclose(read.frame_times_s, tr * np.arange(shape[3]), atol=2e-3)
    spacing = float(dcmread(series.files[0], stop_before_pixels=True).SpacingBetweenSlices)
    assert read.spacing_mm[2] == pytest.approx(spacing, abs=1e-3)


@pytest.mark.parametrize("tag", ["TriggerTime", "TemporalPositionIdentifier"])
def test_frames_of_a_slice_follow_trigger_time_and_temporal_position(tag):
    series = only_series("ge_timing/GE/TriggerTime/4_epi_ascending")
    read = read_dsc(series)
    place = np.linalg.inv(read.affine)
    images = sorted((dcmread(path) for path in series.files), key=lambda image: float(image[tag].value))
    seen = dict.fromkeys(range(8), 0)
    for image in images:
        position = [float(x) for x in image.ImagePositionPatient]
        k = round(float((place @ [-position[0], -position[1], position[2], 1])[2]))
        np.testing.assert_array_equal(read.data[:, :, k, seen[k]].T, image.pixel_array)
        seen[k] += 1
    assert set(seen.values()) == {16}


def test_every_transfer_syntax_of_a_multi_frame_file_decodes_to_the_same_refusal():
    # These public files hold pixels and no positions: they can be decoded and not placed.
    names = ("emri_small", "emri_small_RLE", "emri_small_big_endian", "emri_small_jpeg_2k_lossless")
    for name in (*names, "emri_small_jpeg_ls_lossless"):
        with pytest.raises(InputError, match=f"{name}.dcm holds 10 frames without their positions"):
            read_dsc(find_series(DATA / "pydicom_data" / f"{name}.dcm")[0][0])


def test_the_whole_collection_is_found_without_one_unreadable_file():
    found, unreadable = find_series(DATA)
    assert not unreadable and sum(len(series.files) for series in found) > 400
    assert sum(series.is_dynamic for series in found if "fmri" in str(series.files[0])) >= 7
