"""Nothing that leaves the inbox names a person."""

import json
import re
from concurrent.futures import ThreadPoolExecutor

import nibabel as nib
import numpy as np
import pytest

from reperfuse.errors import InputError
from reperfuse.imaging.deidentify import assert_anonymous, dsc_sidecar, pseudonym, pseudonym_key, series_sha256
from reperfuse.imaging.dicom_read import read_dsc
from reperfuse.imaging.dicom_write import write_dsc_series
from reperfuse.imaging.volume import Volume, save_volume

KEY = b"a secret of some length"


def test_a_pseudonym_depends_on_patient_and_key_alone():
    assert pseudonym("P1", KEY) == pseudonym(" P1 ", KEY)
    assert len({pseudonym("P1", KEY), pseudonym("P2", KEY), pseudonym("P1", KEY + b"!")}) == 3
    assert re.fullmatch(r"sub-[0-9a-f]{10}", pseudonym("Jürgen^Ø", KEY))


@pytest.mark.parametrize(("patient", "key"), [("", KEY), ("  ", KEY), ("P1", b"")])
def test_an_empty_patient_or_key_makes_no_pseudonym(patient, key):
    with pytest.raises(ValueError):
        pseudonym(patient, key)


def test_a_key_is_made_once_for_its_owner_only(tmp_path, monkeypatch):
    monkeypatch.delenv("REPERFUSE_PSEUDONYM_KEY", raising=False)
    with ThreadPoolExecutor(8) as pool:
        keys = set(pool.map(pseudonym_key, [tmp_path] * 16))
    files = list((tmp_path / ".reperfuse").iterdir())
    assert len(keys) == 1 and [file.name for file in files] == ["pseudonym.key"]
    assert files[0].stat().st_mode & 0o777 == 0o600


def test_the_environment_has_the_last_word_on_the_key(tmp_path, monkeypatch):
    monkeypatch.setenv("REPERFUSE_PSEUDONYM_KEY", "from the environment")
    assert pseudonym_key(tmp_path) == b"from the environment" and not list(tmp_path.iterdir())
    monkeypatch.setenv("REPERFUSE_PSEUDONYM_KEY", "short")
    with pytest.raises(InputError, match="REPERFUSE_PSEUDONYM_KEY"):
        pseudonym_key(tmp_path)


def test_a_damaged_key_is_not_replaced_in_silence(tmp_path, monkeypatch):
    monkeypatch.delenv("REPERFUSE_PSEUDONYM_KEY", raising=False)
    (tmp_path / ".reperfuse").mkdir()
    (tmp_path / ".reperfuse" / "pseudonym.key").write_text("")
    with pytest.raises(InputError, match=r"pseudonym\.key"):
        pseudonym_key(tmp_path)


def test_a_sidecar_says_what_is_allowed_and_nothing_else():
    volume = Volume(np.zeros((2, 2, 2, 3)), np.eye(4), [0, 1.5, 3], 0.03, 1.5, notes=("Repaired.",))
    sidecar = dsc_sidecar(volume, [series_sha256(["ab" * 32])])
    assert set(sidecar) == {"EchoTime", "RepetitionTime", "FrameTimes", "SourceSHA256", "ConversionNotes"}
    assert sidecar["FrameTimes"] == [0, 1.5, 3]
    with pytest.raises(ValueError):
        dsc_sidecar(volume, ["Doe_Jane.dcm"])


def test_the_hash_of_a_series_ignores_the_order_of_its_files():
    assert series_sha256(["b" * 64, "a" * 64]) == series_sha256(["a" * 64, "b" * 64]) != series_sha256(["a" * 64])


def test_a_series_with_a_person_in_it_becomes_files_without(tmp_path):
    volume = Volume(np.random.default_rng(0).integers(0, 99, (4, 4, 2, 3)), np.eye(4), te_s=0.03, tr_s=1.5)
    write_dsc_series(
        tmp_path / "in", volume, patient_id="MRN-4711", patient_name="Doe^Jane", institution="St Elsewhere"
    )
    out = tmp_path / "sub-01_dsc.nii.gz"
    read = read_dsc(tmp_path / "in")
    save_volume(out, read)
    out.with_name("sub-01_dsc.json").write_text(json.dumps(dsc_sidecar(read, ["20240314" * 8])))
    for path in (out, out.with_name("sub-01_dsc.json")):
        assert_anonymous(path, ["MRN-4711", "Doe^Jane", "St Elsewhere", "19500201", "20240314", "", "12"])


@pytest.mark.parametrize(
    "leak",
    [
        {"Name": "JANE"},
        {"Note": ["see mrn-4711."]},
        {"jane": 1},
        {"When": "2024-03-14"},
        {"When": "on 14.03.2024"},
        {"When": 20240314},
        {"When": "20240314101500.000000"},
        {"Study": "1.2.840.113619.2.5.1762583153.215519"},
        {"Study": "2.25.221024594735998840667190614879058611917"},
        {"Deep": [{"x": {"y": "7"}}]},
    ],
)
def test_a_leak_anywhere_in_a_sidecar_is_refused_without_repeating_it(tmp_path, leak):
    path = tmp_path / "sub-01_dsc.json"
    path.write_text(json.dumps({"EchoTime": 0.03} | leak))
    for content in (leak, path):
        with pytest.raises(InputError) as caught:
            assert_anonymous(content, ["Doe^Jane", "MRN-4711", "7"])
        assert "jane" not in str(caught.value).lower() and "4711" not in str(caught.value)
    assert "sub-01_dsc.json" in str(caught.value)


def test_a_patient_whose_number_is_a_count_elsewhere_can_be_ingested(tmp_path):
    sidecar = {"FrameTimes": [0.0, 7.0, 28], "ConversionNotes": ["1 of 28 slice images (3.6 %) were missing."]}
    (tmp_path / "table.tsv").write_text("participant_id\tn_frames\nsub-1\t28\n")
    for identifier in ("7", "28"):
        assert_anonymous(sidecar, [identifier])
        assert_anonymous(tmp_path / "table.tsv", [identifier])


@pytest.mark.parametrize("content", [{"FrameTimes": [0, 1.7, 20240314.5]}, {"EchoTime": 0.07}, {"Hash": "abba" * 16}])
def test_measurements_and_digests_are_no_leaks(content):
    assert_anonymous(content, ["7", "Doe^Abba"])


def leaky_header(image):
    image.header["descrip"] = b"Doe Jane"


def leaky_extension(image):
    image.header.extensions.append(nib.nifti1.Nifti1Extension(6, b"scanned by nobody"))


@pytest.mark.parametrize("spoil", [leaky_header, leaky_extension])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_a_name_in_a_nifti_header_is_found(tmp_path, spoil, kind, ending):
    image = kind(np.zeros((4, 4, 4), np.float32), np.eye(4))
    path = tmp_path / f"map{ending}"
    nib.save(image, path)
    assert_anonymous(path, ["Jane"])
    spoil(image)
    nib.save(image, path)
    with pytest.raises(InputError, match="map"):
        assert_anonymous(path, ["Jane"])


def test_names_of_files_count_and_unknown_files_are_refused(tmp_path):
    for name in ("doe.json", "image.dcm"):
        (tmp_path / name).write_text("{}")
        with pytest.raises(InputError, match=name):
            assert_anonymous(tmp_path / name, ["Doe^Jane"])
