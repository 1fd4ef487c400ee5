"""DICOM files as written, judged after reading them back with another reader."""

import numpy as np
import pytest
from pydicom import dcmread

from reperfuse.imaging.dicom_series import find_series
from reperfuse.imaging.dicom_write import HABITS, study_uid_for, uid_for, write_dsc_series, write_map_series
from reperfuse.imaging.volume import Volume

AFFINE = np.array([[-1.8, 0, 0, 90.0], [0, -1.8, 0, 100.0], [0, 0, 5.0, -30.0], [0, 0, 0, 1]])


def bolus(shape=(6, 5, 4, 7)):
    return Volume(np.random.default_rng(1).integers(0, 4000, shape).astype(np.float32), AFFINE, te_s=0.03, tr_s=1.5)


@pytest.fixture(params=sorted(HABITS))
def written(request, tmp_path):
    write_dsc_series(
        tmp_path / "s", bolus(), patient_id="P7", patient_name="Doe^Jane", institution="Here", habits=request.param
    )
    return request.param, [dcmread(path) for path in sorted((tmp_path / "s").iterdir())]


def test_every_slice_of_every_frame_is_one_valid_file(written):
    _, images = written
    assert len(images) == 4 * 7
    assert len({image.SOPInstanceUID for image in images}) == len({image.InstanceNumber for image in images}) == 28
    for image in images:
        assert image.file_meta.MediaStorageSOPInstanceUID == image.SOPInstanceUID
        assert image.SOPClassUID.name == "MR Image Storage"
        assert (image.pixel_array.shape, image.pixel_array.dtype) == ((5, 6), np.uint16)
        assert (float(image.EchoTime), float(image.RepetitionTime)) == (30.0, 1500.0)
        assert (image.PatientName, image.PatientID, image.InstitutionName) == ("Doe^Jane", "P7", "Here")
        assert image.SliceThickness == image.SpacingBetweenSlices == 5 and list(image.PixelSpacing) == [1.8, 1.8]
        assert all(image.get(keyword) for keyword in ("PatientBirthDate", "StudyDate", "AcquisitionTime"))


def test_uids_are_legal(written):
    for image in written[1]:
        for keyword in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID"):
            assert image[keyword].value.is_valid and len(image[keyword].value) <= 64


def test_each_vendor_numbers_and_times_as_it_does(written):
    habits, images = written
    by_number = sorted(images, key=lambda image: image.InstanceNumber)
    places = [image.ImagePositionPatient[2] for image in by_number]
    slice_major = places == sorted(places)
    assert slice_major == (habits == "philips")
    assert ("TemporalPositionIdentifier" in images[0]) == (habits == "philips")
    assert len({image.AcquisitionTime for image in images}) == {"philips": 7, "siemens": 28, "ge": 1}[habits]
    assert len({image.AcquisitionNumber for image in images}) == {"philips": 1, "siemens": 7, "ge": 1}[habits]
    assert len({image.get("TriggerTime") for image in images}) == {"philips": 7, "siemens": 1, "ge": 28}[habits]


def test_file_names_tell_no_order(written):
    numbers = [image.InstanceNumber for image in written[1]]
    assert numbers != sorted(numbers)


def test_the_same_input_gives_the_same_bytes_and_another_seed_gives_others(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_dsc_series(tmp_path / name, bolus(), patient_id="P1", seed=seed)
    a, b, c = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in "abc")
    assert a == b and a != c
    assert study_uid_for("P1") != study_uid_for("P2")


def test_a_map_is_derived_in_the_same_study_with_its_units(tmp_path):
    seconds = np.random.default_rng(2).integers(0, 20_000, (6, 5, 4)) / 1000
    write_dsc_series(tmp_path / "dsc", bolus(), patient_id="P1")
    for number, (units, slope) in enumerate({"s": 0.001, "ms": 1.0}.items()):
        kwargs = {"units": units, "patient_id": "P1", "study_uid": study_uid_for("P1"), "series_number": 501 + number}
        write_map_series(tmp_path / units, Volume(seconds, AFFINE), **kwargs)
        images = [dcmread(path) for path in (tmp_path / units).iterdir()]
        image = next(image for image in images if image.InstanceNumber == 3)
        assert list(image.ImageType[:2]) == ["DERIVED", "SECONDARY"] and image.RescaleType == units
        stated = image.pixel_array * float(image.RescaleSlope) * {"s": 1, "ms": 1e-3}[units]
        np.testing.assert_allclose(stated.T, seconds[:, :, 2], atol=1e-9)
        assert float(image.RescaleSlope) == slope
    found, _ = find_series(tmp_path)
    assert len(found) == len({s.series for s in found}) == 3 and len({(s.patient, s.study) for s in found}) == 1


def test_what_cannot_be_written_leaves_nothing_behind(tmp_path):
    high = Volume(np.full((4, 4, 2, 3), 70_000.0), AFFINE, tr_s=1.0)
    sheared = Volume(np.zeros((4, 4, 2, 3)), AFFINE + np.eye(4, k=1) * [[1], [0], [0], [0]], tr_s=1.0)
    without_tr = Volume(np.zeros((4, 4, 2, 3)), AFFINE)
    negative = Volume(np.full((4, 4, 2, 3), -1.0), AFFINE, tr_s=1.0)
    for volume in (high, sheared, without_tr, negative):
        with pytest.raises(ValueError):
            write_dsc_series(tmp_path / "s", volume, patient_id="P1")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="other files"):
        write_dsc_series(tmp_path / "s", bolus(), patient_id="P1")
    assert (tmp_path / "s" / "notes.txt").read_text() == "mine"


def test_uids_do_not_depend_on_how_parts_are_joined():
    assert uid_for("ab", "c") != uid_for("a", "bc")
