"""DICOM series into volumes: whatever the vendor, the order on disk and the holes.

All series here are synthetic: invented signal in files that follow the header habits of real scanners.
"""

import shutil
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydicom import dcmread, dcmwrite
from pydicom.dataset import Dataset
from pydicom.uid import EnhancedMRImageStorage, ExplicitVRBigEndian, RLELossless
from scipy.spatial.transform import Rotation

from reperfuse.errors import InputError
from reperfuse.imaging.dicom_frames import frame_times, frames_of, slices_of
from reperfuse.imaging.dicom_read import read_dsc, read_map
from reperfuse.imaging.dicom_series import find_series
from reperfuse.imaging.dicom_write import HABITS, study_uid_for, write_dsc_series, write_map_series
from reperfuse.imaging.volume import Volume

AFFINE = np.array([[-1.8, 0, 0, 90.0], [0, -1.8, 0, 100.0], [0, 0, 5.0, -30.0], [0, 0, 0, 1]])


def bolus(shape=(6, 5, 4, 7), affine=AFFINE, **kwargs):
    data = np.random.default_rng(1).integers(1, 4000, shape).astype(np.float32)
    return Volume(data, affine, **{"te_s": 0.03, "tr_s": 1.5} | kwargs)


def write(folder, volume=None, **kwargs):
    return write_dsc_series(folder, volume or bolus(), **{"patient_id": "P1"} | kwargs)


def edit(paths, change):
    """Rewrite files after `change(dataset, number)`."""
    for number, path in enumerate(paths):
        dataset = dcmread(path)
        change(dataset, number)
        dataset.save_as(path)


def assert_same_image(read, truth):
    """Equal voxels at equal places; slices may be counted from the other end."""
    data, affine = truth.data, truth.affine
    if np.dot(read.affine[:3, 2], affine[:3, 2]) < 0:
        data = data[:, :, ::-1]
        affine = affine @ np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, data.shape[2] - 1.0], [0, 0, 0, 1]])
    np.testing.assert_allclose(read.affine, affine, atol=1e-5)
    np.testing.assert_array_equal(read.data, data)


@pytest.fixture(params=sorted(HABITS))
def habits(request):
    return request.param


def test_each_vendor_habit_reads_the_same_volume(tmp_path, habits):
    write(tmp_path / "s", habits=habits)
    read = read_dsc(tmp_path / "s")
    assert_same_image(read, bolus())
    np.testing.assert_allclose(read.frame_times_s, 1.5 * np.arange(7), atol=1e-6)
    assert (read.te_s, read.tr_s, read.notes) == (0.03, 1.5, ())
    assert read.data.dtype == np.float32


@given(
    st.tuples(*[st.floats(-1, 1)] * 4).filter(lambda q: np.linalg.norm(q) > 0.1),
    st.permutations(range(3)),
    st.tuples(*[st.sampled_from([-1, 1])] * 3),
    st.tuples(*[st.floats(0.5, 8)] * 3),
    st.tuples(*[st.floats(-200, 200)] * 3),
)
@settings(max_examples=25, deadline=None)
def test_any_orientation_comes_back_where_it_was(tmp_path_factory, turn, order, flips, spacing, origin):
    affine = np.eye(4)
    axes = Rotation.from_quat(turn).as_matrix()[:, order] * flips
    affine[:3, :3] = axes * spacing
    affine[:3, 3] = origin
    volume = bolus((4, 3, 3, 2), affine)
    folder = tmp_path_factory.mktemp("o")
    write(folder / "s", volume)
    assert_same_image(read_dsc(folder / "s"), volume)


@pytest.mark.parametrize("plane", ["axial", "sagittal", "coronal"])
def test_the_three_planes_lie_where_lps_says(tmp_path, plane):
    columns = {"axial": (0, 1, 2), "sagittal": (1, 2, 0), "coronal": (0, 2, 1)}[plane]
    affine = np.eye(4)
    affine[:3, :3] = np.diag([-2.0, -2.0, 3.0])[:, columns]
    write(tmp_path / "s", bolus(affine=affine))
    first = min((dcmread(path) for path in (tmp_path / "s").iterdir()), key=lambda image: image.InstanceNumber)
    read = read_dsc(tmp_path / "s")
    corner = np.array([float(x) for x in first.ImagePositionPatient]) * [-1, -1, 1]
    k = 0 if np.allclose(read.affine[:3, 3], corner) else read.data.shape[2] - 1
    np.testing.assert_allclose((read.affine @ [0, 0, k, 1])[:3], corner, atol=1e-6)
    np.testing.assert_array_equal(read.data[:, :, k, 0].T, first.pixel_array)


def test_order_and_names_of_files_do_not_matter(tmp_path, habits):
    paths = write(tmp_path / "s", habits=habits)
    order = np.random.default_rng(3).permutation(len(paths))
    for number, path in zip(order, paths, strict=True):
        nested = tmp_path / "t" / f"deep{number % 3}"
        nested.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, nested / f"{number}.img")
    assert_same_image(read_dsc(tmp_path / "t"), bolus())


def test_a_shuffled_instance_number_changes_nothing(tmp_path, habits):
    paths = write(tmp_path / "s", habits=habits)
    numbers = np.random.default_rng(4).permutation(len(paths)) + 1
    edit(paths, lambda dataset, n: setattr(dataset, "InstanceNumber", int(numbers[n])))
    assert_same_image(read_dsc(tmp_path / "s"), bolus())


def without(*keywords):
    def change(dataset, _):
        for keyword in keywords:
            if keyword in dataset:
                delattr(dataset, keyword)

    return change


TEMPORAL = ("TemporalPositionIdentifier", "AcquisitionNumber", "AcquisitionTime", "ContentTime", "TriggerTime")


def test_without_any_time_instance_number_orders_if_slices_cycle_in_it(tmp_path, habits):
    edit(write(tmp_path / "s", habits=habits), without(*TEMPORAL))
    read = read_dsc(tmp_path / "s")
    assert_same_image(read, bolus())
    np.testing.assert_allclose(read.frame_times_s, 1.5 * np.arange(7))
    assert "RepetitionTime" in read.notes[0]


def test_without_any_time_and_with_shuffled_numbers_it_is_refused(tmp_path):
    paths = write(tmp_path / "s")
    edit(paths, without(*TEMPORAL))
    numbers = np.random.default_rng(4).permutation(len(paths)) + 1
    edit(paths, lambda dataset, n: setattr(dataset, "InstanceNumber", int(numbers[n])))
    with pytest.raises(InputError, match="cannot be ordered in time"):
        read_dsc(tmp_path / "s")


def test_contradicting_tags_are_refused(tmp_path):
    def reverse(dataset, _):
        dataset.TemporalPositionIdentifier = 8 - dataset.TemporalPositionIdentifier

    edit(write(tmp_path / "s", habits="philips"), reverse)
    with pytest.raises(InputError, match="TemporalPositionIdentifier and AcquisitionTime"):
        read_dsc(tmp_path / "s")


@given(
    st.sampled_from(sorted(HABITS)),
    st.sets(st.integers(0, 4 * 20 - 1), min_size=1, max_size=3),
    st.permutations(range(4)),
)
@example("ge", {3}, [3, 2, 1, 0])  # the very first image is lost
@example("ge", {79}, [0, 1, 2, 3])  # the very last
@settings(max_examples=20, deadline=None)
def test_missing_images_leave_the_rest_in_place(habits, lost, acquired):
    slices, frames = np.tile(np.arange(4), 20), np.repeat(np.arange(20), 4)
    offsets = np.argsort(acquired) * 1.5 / 4
    clock = {"philips": 1.5 * frames, "siemens": 1.5 * frames + offsets[slices], "ge": 1.5 * frames + offsets[slices]}
    times = {name: np.full(80, np.nan) for name in TEMPORAL}
    times["AcquisitionTime" if habits != "ge" else "TriggerTime"] = 36_000 + clock[habits]
    times["InstanceNumber"] = 1.0 + np.arange(80)
    kept = np.setdiff1d(np.arange(80), sorted(lost))
    found, _ = frames_of(slices[kept], {name: values[kept] for name, values in times.items()}, "a series")
    np.testing.assert_array_equal(found, frames[kept])


def test_a_few_missing_images_are_filled_with_zeros_and_said(tmp_path, habits):
    paths = write(tmp_path / "s", habits=habits)
    paths[9].unlink()  # frame 2, slice 1
    expected = bolus().data.copy()
    expected[:, :, 1, 2] = 0
    read = read_dsc(tmp_path / "s")
    np.testing.assert_array_equal(read.data, expected)
    np.testing.assert_allclose(read.frame_times_s, 1.5 * np.arange(7), atol=1e-6)
    assert "1 of 28 slice images (3.6 %)" in read.notes[0]
    paths[10].unlink()
    with pytest.raises(InputError, match=r"s misses 2 of 28 slice images \(7\.1 %\), more than the 5 % allowed"):
        read_dsc(tmp_path / "s")
    assert read_dsc(tmp_path / "s", max_missing_fraction=0.1).data.shape == (6, 5, 4, 7)


def test_without_times_a_missing_image_shows_in_the_numbers(tmp_path, habits):
    paths = write(tmp_path / "s", habits=habits)
    edit(paths, without(*TEMPORAL))
    paths[9].unlink()
    expected = bolus().data.copy()
    expected[:, :, 1, 2] = 0
    np.testing.assert_array_equal(read_dsc(tmp_path / "s").data, expected)


def test_a_slice_missing_in_all_frames_is_a_gap(tmp_path):
    paths = write(tmp_path / "s")
    for path in paths[1::4]:
        path.unlink()
    with pytest.raises(InputError, match=r"slices 5\.00 to 10\.00 mm apart"):
        read_dsc(tmp_path / "s", max_missing_fraction=0.5)


def test_times_go_on_across_midnight(tmp_path):
    for habits in ("philips", "siemens"):
        write(tmp_path / habits, habits=habits, started=datetime(2024, 3, 14, 23, 59, 55))
        read = read_dsc(tmp_path / habits)
        assert_same_image(read, bolus())
        np.testing.assert_allclose(read.frame_times_s, 1.5 * np.arange(7), atol=1e-6)


def test_frame_spacing_wins_over_repetition_time_and_is_said(tmp_path):
    edit(write(tmp_path / "s"), lambda dataset, _: setattr(dataset, "RepetitionTime", "750"))
    read = read_dsc(tmp_path / "s")
    assert read.tr_s == 1.5 and "0.75 s but frames are 1.5 s apart" in read.notes[0]


def test_the_time_an_image_was_reconstructed_is_not_taken_for_when_it_was_measured(tmp_path):
    edit(write(tmp_path / "s", habits="siemens"), without("AcquisitionTime"))
    read = read_dsc(tmp_path / "s")
    assert_same_image(read, bolus())
    assert read.tr_s == 1.5 and read.frame_times_s[-1] == 9.0


def test_a_clock_of_whole_seconds_leaves_the_spacing_to_repetition_time():
    frames = np.arange(9)
    times = {name: np.full(9, np.nan) for name in (*TEMPORAL, "InstanceNumber")}
    times["AcquisitionTime"] = np.floor(36_000 + 1.5 * frames)
    since, tr, notes = frame_times(np.zeros(9, int), frames, times, 1.5)
    np.testing.assert_allclose(since, 1.5 * frames)
    assert (tr, notes) == (1.5, [])


def test_a_frame_lost_in_all_slices_keeps_its_place(tmp_path, habits):
    paths = write(tmp_path / "s", bolus((6, 5, 4, 24)), habits=habits)
    for path in paths[4 * 9 : 4 * 10]:
        path.unlink()
    expected = bolus((6, 5, 4, 24)).data.copy()
    expected[..., 9] = 0
    read = read_dsc(tmp_path / "s")
    np.testing.assert_array_equal(read.data, expected)
    np.testing.assert_allclose(read.frame_times_s, 1.5 * np.arange(24), atol=1e-6)
    assert "4 of 96" in read.notes[0]


def test_without_any_time_and_repetition_time_there_are_no_times(tmp_path):
    edit(write(tmp_path / "s"), without(*TEMPORAL, "RepetitionTime", "EchoTime"))
    read = read_dsc(tmp_path / "s")
    assert (read.frame_times_s, read.tr_s, read.te_s) == (None, None, None) and len(read.notes) == 1


@pytest.mark.parametrize("value", ["0", "-1500"])
def test_a_repetition_time_that_is_not_positive_is_refused(tmp_path, value):
    edit(write(tmp_path / "s"), lambda dataset, _: setattr(dataset, "RepetitionTime", value))
    with pytest.raises(InputError, match="RepetitionTime"):
        read_dsc(tmp_path / "s")


def test_an_echo_time_that_is_not_positive_is_refused(tmp_path):
    edit(write(tmp_path / "s"), lambda dataset, _: setattr(dataset, "EchoTime", -30))
    with pytest.raises(InputError, match="EchoTime -30 ms"):
        read_dsc(tmp_path / "s")


def test_second_copies_are_left_out_and_contradicting_ones_refused(tmp_path):
    paths = write(tmp_path / "s")
    shutil.copy(paths[3], tmp_path / "s" / "copy")
    read = read_dsc(tmp_path / "s")
    assert_same_image(read, bolus())
    assert "1 second copies" in read.notes[0]
    edit([tmp_path / "s" / "copy"], lambda dataset, _: setattr(dataset, "PixelData", bytes(len(dataset.PixelData))))
    with pytest.raises(InputError, match="copy"):
        read_dsc(tmp_path / "s")
    edit([tmp_path / "s" / "copy"], lambda dataset, _: setattr(dataset, "SOPInstanceUID", "1.2.3"))
    with pytest.raises(InputError, match="same slice and time"):
        read_dsc(tmp_path / "s")


def smaller(dataset):
    dataset.Rows -= 1
    dataset.PixelData = dataset.PixelData[: 2 * dataset.Rows * dataset.Columns]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (smaller, "mixes images of"),
        (lambda d: setattr(d, "ImageOrientationPatient", [0, 1, 0, 0, 0, -1]), "mixes orientations|apart|beside"),
        (lambda d: setattr(d, "PixelSpacing", [1, 1]), "mixes pixel spacings"),
        (lambda d: setattr(d, "EchoTime", 60), "mixes echoes of 30, 60 ms"),
        (lambda d: setattr(d, "PixelData", d.PixelData[:-4]), "cut short"),
        (lambda d: setattr(d, "RescaleSlope", "0"), "RescaleSlope"),
        (lambda d: setattr(d, "ImagePositionPatient", [0, 0]), "position or orientation"),
        (lambda d: d.__delattr__("ImagePositionPatient"), "has no ImagePositionPatient"),
        (lambda d: setattr(d, "ImageOrientationPatient", [1, 0, 0, 1, 0, 0]), "ImageOrientationPatient"),
        (lambda d: setattr(d, "SamplesPerPixel", 3), "colour"),
    ],
)
def test_one_image_that_does_not_fit_is_one_sentence(tmp_path, change, said):
    paths = write(tmp_path / "s")
    edit(paths[5:6], lambda dataset, _: change(dataset))
    with pytest.raises(InputError, match=said) as caught:
        read_dsc(find_series(tmp_path)[0][0])
    assert str(tmp_path / "s") in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("share", [0.97, 0.6, 0.05])
def test_a_truncated_file_is_refused_by_name(tmp_path, share):
    path = write(tmp_path / "s", bolus((64, 64, 2, 3)))[2]
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(InputError, match=path.name):
        read_dsc(tmp_path / "s")


@pytest.mark.parametrize(
    "content", [b"", b"just a text\n" * 50, b"\0" * 128 + b"DICM", b"\0" * 128 + b"DICM" + b"\7" * 400]
)
def test_what_claims_to_be_dicom_and_is_not_is_reported_by_name(tmp_path, content):
    write(tmp_path / "s")
    (tmp_path / "s" / "text.dcm").write_bytes(content)
    (tmp_path / "s" / "readme.txt").write_bytes(b"not a claim")
    found, unreadable = find_series(tmp_path)
    assert len(found) == 1 and [path.name for path, _ in unreadable] == ["text.dcm"]
    assert "text.dcm" in unreadable[0][1]


def test_an_empty_or_missing_folder_is_one_sentence(tmp_path):
    assert find_series(tmp_path) == ([], [])
    with pytest.raises(InputError, match="no DICOM images"):
        read_dsc(tmp_path)
    with pytest.raises(InputError, match="missing"):
        find_series(tmp_path / "absent")


def test_dynamic_series_maps_and_localisers_are_told_apart(tmp_path):
    write(tmp_path / "a" / "dsc")
    seconds = Volume(np.ones((6, 5, 4)), AFFINE)
    write_map_series(tmp_path / "a" / "tmax", seconds, patient_id="P1", study_uid=study_uid_for("P1"))
    write(tmp_path / "a" / "scout", bolus((6, 5, 3, 1)), series_description="localizer", series_number=1)
    weighted = write(tmp_path / "a" / "dwi", bolus((6, 5, 3, 2)), series_description="DWI", series_number=3)
    edit(weighted, lambda dataset, n: setattr(dataset, "DiffusionBValue", 1000.0 * (n // 3)))
    write(tmp_path / "b", patient_id="P2")
    found, unreadable = find_series(tmp_path)
    assert not unreadable and [series.patient for series in found] == ["P1"] * 4 + ["P2"]
    kinds = {
        (s.series_description, s.is_dynamic, s.is_derived, s.n_frames, s.units) for s in found if s.patient == "P1"
    }
    assert kinds == {
        ("DSC perfusion", True, False, 7, None),
        ("Tmax", False, True, 1, "s"),
        ("localizer", False, False, 1, None),
        ("DWI", False, False, 2, None),
    }
    assert_same_image(read_dsc(tmp_path / "a"), bolus())
    with pytest.raises(InputError, match="2 series"):
        read_dsc(tmp_path)


def test_over_anonymised_files_are_a_series_by_their_folder(tmp_path):
    for name in ("a", "b"):
        edit(
            write(tmp_path / name),
            without("PatientID", "PatientName", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"),
        )
    found, _ = find_series(tmp_path)
    assert len(found) == len({series.patient for series in found}) == 2 and all(series.patient for series in found)
    assert_same_image(read_dsc(found[0]), bolus())


def test_big_endian_files_read_like_little_endian_ones(tmp_path):
    for path in write(tmp_path / "s"):
        dataset = dcmread(path)
        dataset.PixelData = dataset.pixel_array.astype(">u2").tobytes()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
        dcmwrite(path, dataset, implicit_vr=False, little_endian=False)
    assert_same_image(read_dsc(tmp_path / "s"), bolus())


def test_rescaled_integers_come_back_exactly(tmp_path):
    truth = bolus()
    scaled = Volume(truth.data * 0.25, AFFINE, te_s=0.03, tr_s=1.5)
    write(tmp_path / "s", scaled, rescale_slope=0.25)
    assert_same_image(read_dsc(tmp_path / "s"), scaled)


@pytest.mark.parametrize("units", ["s", "ms"])
def test_a_map_is_read_in_seconds_whatever_its_units(tmp_path, units):
    seconds = np.random.default_rng(2).integers(0, 20_000, (6, 5, 4)) / 1000
    write_map_series(tmp_path / "m", Volume(seconds, AFFINE), units=units, patient_id="P1", study_uid="1.2.3")
    read = read_map(tmp_path / "m")
    np.testing.assert_allclose(read.data, seconds, rtol=1e-6)
    np.testing.assert_allclose(read_map(tmp_path / "m", reference_scale=7.0).data, seconds, rtol=1e-6)
    np.testing.assert_allclose(read.affine, AFFINE, atol=1e-6)


def test_voxels_of_a_map_that_are_no_number_are_zero_and_counted(tmp_path):
    seconds = np.random.default_rng(2).uniform(0, 20, (6, 5, 4)).astype(np.float32)
    paths = write_map_series(tmp_path / "m", Volume(seconds, AFFINE), patient_id="P1", study_uid="1.2.3")
    seconds[2, 3] = np.nan

    def in_floats(dataset, number):
        without("PixelData", "RescaleSlope", "RescaleIntercept", "BitsStored", "HighBit", "PixelRepresentation")(
            dataset, 0
        )
        dataset.BitsAllocated = 32
        dataset.FloatPixelData = seconds[:, :, number].T.astype("<f4").tobytes()

    edit(paths, in_floats)
    read = read_map(tmp_path / "m")
    np.testing.assert_array_equal(read.data, np.nan_to_num(seconds))
    assert read.notes == ("4 voxels of the map were not finite and are 0.",)


def test_a_map_without_units_needs_a_scale(tmp_path):
    seconds = np.random.default_rng(2).integers(0, 20_000, (6, 5, 4)) / 1000
    write_map_series(tmp_path / "m", Volume(seconds, AFFINE), units=None, patient_id="P1", study_uid="1.2.3")
    with pytest.raises(InputError, match="states no unit of time: pass --reference-scale"):
        read_map(tmp_path / "m")
    with pytest.raises(InputError, match="must be a positive number"):
        read_map(tmp_path / "m", reference_scale=0.0)
    with pytest.raises(InputError, match="mend its units or the scale"):
        read_map(tmp_path / "m", reference_scale=1.0)
    np.testing.assert_allclose(read_map(tmp_path / "m", reference_scale=1e-3).data, seconds, rtol=1e-6)


def test_a_dynamic_series_is_no_map(tmp_path):
    write(tmp_path / "s")
    with pytest.raises(InputError, match="one image per slice"):
        read_map(tmp_path / "s", reference_scale=1.0)


def enhanced(paths, target):
    """One enhanced multi-frame file of classic single-frame ones, in the order given."""
    images = [dcmread(path) for path in paths]
    whole = images[0]
    groups, pixels = [], b""
    for image in images:
        group, content, position = Dataset(), Dataset(), Dataset()
        content.TemporalPositionIndex = int(image.TemporalPositionIdentifier)
        content.FrameAcquisitionDateTime = image.AcquisitionDate + image.AcquisitionTime
        position.ImagePositionPatient = image.ImagePositionPatient
        group.FrameContentSequence, group.PlanePositionSequence = [content], [position]
        groups.append(group)
        pixels += image.PixelData
    shared, measures, orientation, echo, timing = (Dataset() for _ in range(5))
    measures.PixelSpacing, measures.SliceThickness = whole.PixelSpacing, whole.SliceThickness
    orientation.ImageOrientationPatient = whole.ImageOrientationPatient
    echo.EffectiveEchoTime, timing.RepetitionTime = float(whole.EchoTime), whole.RepetitionTime
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    shared.MREchoSequence, shared.MRTimingAndRelatedParametersSequence = [echo], [timing]
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "EchoTime", *TEMPORAL):
        without(keyword)(whole, 0)
    whole.SOPClassUID = whole.file_meta.MediaStorageSOPClassUID = EnhancedMRImageStorage
    whole.NumberOfFrames, whole.PixelData = len(images), pixels
    whole.SharedFunctionalGroupsSequence, whole.PerFrameFunctionalGroupsSequence = [shared], groups
    target.parent.mkdir(parents=True)
    whole.save_as(target)


def test_an_enhanced_multi_frame_file_reads_like_its_single_frames(tmp_path):
    paths = write(tmp_path / "s", habits="philips")
    order = np.random.default_rng(5).permutation(len(paths))
    enhanced([paths[n] for n in order], tmp_path / "e" / "all")
    for source in (tmp_path / "e", tmp_path / "e" / "all"):
        read = read_dsc(source)
        assert_same_image(read, bolus())
        np.testing.assert_allclose(read.frame_times_s, 1.5 * np.arange(7), atol=1e-6)
        assert (read.te_s, read.tr_s) == (0.03, 1.5)


def mosaics(paths, folder, tile, n_slices, private):
    """One Siemens mosaic per frame of classic files ordered (frame, slice); the first slice's corner moves outwards."""
    side = int(np.ceil(np.sqrt(n_slices)))
    folder.mkdir()
    for frame in range(len(paths) // n_slices):
        images = [dcmread(path) for path in paths[frame * n_slices : (frame + 1) * n_slices]]
        whole, sheet = images[0], np.zeros((side, side, tile, tile), "<u2")
        for k, image in enumerate(images):
            sheet[k // side, k % side] = image.pixel_array
        orientation = np.array([float(x) for x in whole.ImageOrientationPatient]).reshape(2, 3)
        shift = orientation.sum(axis=0) * float(whole.PixelSpacing[0]) * (side - 1) * tile / 2
        whole.ImagePositionPatient = [f"{x:.6f}" for x in np.array(whole.ImagePositionPatient, float) - shift]
        whole.ImageType = ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]
        whole.Rows = whole.Columns = side * tile
        whole.PixelData = sheet.swapaxes(1, 2).tobytes()
        if private:
            whole.private_block(0x0019, "SIEMENS MR HEADER", create=True).add_new(0x0A, "US", n_slices)
        whole.save_as(folder / f"{frame}")


@pytest.mark.parametrize("private", [True, False])
@pytest.mark.parametrize(("tile", "n_slices"), [(32, 5), (64, 8)])
def test_a_mosaic_reads_like_its_slices(tmp_path, private, tile, n_slices):
    volume = bolus((tile, tile, n_slices, 3))
    mosaics(write(tmp_path / "s", volume, habits="siemens"), tmp_path / "m", tile, n_slices, private)
    read = read_dsc(tmp_path / "m")
    assert_same_image(read, volume)
    assert any(f"{n_slices} tiles" in note for note in read.notes) != private


def test_compressed_files_read_like_plain_ones_and_damaged_ones_are_named(tmp_path):
    paths = write(tmp_path / "s", bolus((16, 16, 2, 3)))
    edit(paths, lambda dataset, _: dataset.compress(RLELossless, generate_instance_uid=False))
    assert_same_image(read_dsc(tmp_path / "s"), bolus((16, 16, 2, 3)))
    paths[1].write_bytes(paths[1].read_bytes()[:-200])
    with pytest.raises(InputError, match=paths[1].name):
        read_dsc(tmp_path / "s")


def test_positions_within_rounding_are_one_slice_and_an_uneven_stack_is_refused():
    normal = np.array([0.0, 0, 1])
    heights = np.repeat([0.0, 5, 10, 15], 3) + np.tile([0, 1e-3, -1e-3], 4)
    index, centres = slices_of(np.outer(heights, normal), normal, "a series")
    assert index.tolist() == np.repeat(range(4), 3).tolist() and len(centres) == 4
    with pytest.raises(InputError, match="apart"):
        slices_of(np.outer([0.0, 5, 10, 14], normal), normal, "a series")


def test_hidden_files_and_directories_of_media_are_passed_over(tmp_path):
    write(tmp_path / "s")
    (tmp_path / "s" / "._IM_0001.dcm").write_bytes(b"resource fork")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "x.dcm").write_bytes(b"x")
    found, unreadable = find_series(tmp_path)
    assert len(found) == 1 and not unreadable and isinstance(found[0].files[0], Path)
