"""`reperfuse degrade`: an image file in, the same head in thick slices out, and what it refuses."""

import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from test_geometry import PROFILES, affine_of, noise
from typer.testing import CliRunner

from reperfuse.cli import app
from reperfuse.errors import InputError
from reperfuse.files import read_json
from reperfuse.imaging.volume import Volume, load_volume, save_volume
from reperfuse.preprocessing.geometry import thick_slices
from reperfuse.stages.degrade import degrade, read_slice_profile


@pytest.fixture
def image(tmp_path: Path) -> Path:
    save_volume(tmp_path / "t1w.nii.gz", noise((12, 11, 30), affine_of("oblique")))
    return tmp_path / "t1w.nii.gz"


def written_profile(folder: Path, name: str = "lopsided") -> Path:
    lines = ["position_mm,weight", *(f"{x},{weight}" for x, weight in PROFILES[name])]
    (folder / "profile.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "profile.csv"


def verb(*arguments: str | Path) -> str:
    """What the command prints where it succeeds; a refusal is raised."""
    done = CliRunner().invoke(app, ["degrade", *map(str, arguments)])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_the_file_holds_what_thick_slices_give(image: Path, tmp_path: Path, ending: str) -> None:
    out = tmp_path / f"thick{ending}"
    said = verb(image, "--thickness-mm", "5", "--out", out)
    stored, expected = nib.load(out), thick_slices(load_volume(image), 5.0)
    assert stored.get_data_dtype() == np.float32
    np.testing.assert_allclose(stored.affine, expected.affine, atol=1e-5)
    np.testing.assert_array_equal(stored.get_fdata(dtype=np.float32), expected.data)
    assert said.count("\n") == 1 and "6 slices of 5 mm every 5 mm, from 30 of 0.9 mm" in said
    assert "voxels of 1 × 1.2 × 0.9 mm" in said


def test_every_option_reaches_the_slices(image: Path, tmp_path: Path) -> None:
    out = tmp_path / "thick.nii.gz"
    options = ["--axis", "j", "--profile", "box", "--spacing-mm", "4", "--offset-mm", "-0.7", "--keep-thick"]
    said = verb(image, "--thickness-mm", "3", *options, "--out", out)
    expected = thick_slices(
        load_volume(image), 3.0, "j", profile="box", spacing_mm=4.0, offset_mm=-0.7, keep_thick=True
    )
    found = load_volume(out)
    np.testing.assert_array_equal(found.data, expected.data)
    np.testing.assert_allclose(found.affine, expected.affine, atol=1e-5)
    assert f"along j {expected.data.shape[1]} slices of 3 mm every 4 mm, from 11 of 1.2 mm" in said
    assert "voxels of 1 × 4 × 0.9 mm" in said


def test_a_measured_profile_is_read_from_its_file(image: Path, tmp_path: Path) -> None:
    out = tmp_path / "thick.nii.gz"
    verb(image, "--thickness-mm", "5", "--profile", written_profile(tmp_path), "--out", out)
    expected = thick_slices(load_volume(image), 5.0, profile=PROFILES["lopsided"])
    np.testing.assert_allclose(load_volume(out).data, expected.data, atol=1e-6)
    assert not np.allclose(expected.data, thick_slices(load_volume(image), 5.0).data, atol=1e-2)


def test_integers_become_numbers_with_fractions(tmp_path: Path) -> None:
    counts = Volume(np.random.default_rng(0).integers(0, 900, (4, 4, 12)).astype(np.int16), np.eye(4))
    save_volume(tmp_path / "t1w.nii", counts)
    degrade(tmp_path / "t1w.nii", tmp_path / "thick.nii", thickness_mm=4.0, profile="box", keep_thick=True)
    found = load_volume(tmp_path / "thick.nii").data
    np.testing.assert_allclose(found, counts.data.reshape(4, 4, 3, 4).mean(-1), rtol=1e-6)


def test_a_series_keeps_its_times(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).normal(size=(4, 4, 10, 3)).astype(np.float32)
    times = np.array([0, 1.5, 3.5])
    save_volume(tmp_path / "dsc.nii.gz", Volume(frames, np.eye(4), frame_times_s=times, te_s=0.03, tr_s=1.5))
    degrade(tmp_path / "dsc.nii.gz", tmp_path / "thick.nii.gz", thickness_mm=5.0, keep_thick=True)
    found = load_volume(tmp_path / "thick.nii.gz")
    assert found.data.shape == (4, 4, 2, 3) and found.te_s == 0.03
    np.testing.assert_array_equal(found.frame_times_s, times)


def test_voxels_without_a_value_do_not_spread_along_the_axis(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    holes = noise((4, 4, 20))
    holes.data[1, 2, 3] = np.nan
    save_volume(tmp_path / "t1w.nii.gz", holes)
    degrade(tmp_path / "t1w.nii.gz", tmp_path / "thick.nii.gz", thickness_mm=4.0)
    assert np.isfinite(load_volume(tmp_path / "thick.nii.gz").data).all()
    assert "1 voxels without a value set to 0." in capsys.readouterr().out


def test_the_image_itself_is_never_overwritten(image: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link.nii.gz").symlink_to(image)
    before = image.read_bytes()
    for out in (image, tmp_path / "folder" / ".." / image.name, tmp_path / "link.nii.gz"):
        with pytest.raises(InputError, match="would replace"):
            degrade(image, out, thickness_mm=5.0)
    assert image.read_bytes() == before


def test_the_sidecar_of_a_series_is_never_overwritten(tmp_path: Path) -> None:
    series = Volume(np.zeros((3, 3, 9, 2), np.float32), np.eye(4), tr_s=1.5)
    save_volume(tmp_path / "dsc.nii.gz", series)
    (tmp_path / "dsc.json").write_text('{"EchoTime": 0.03, "Manufacturer": "A"}', encoding="utf-8")
    with pytest.raises(InputError, match="sidecar"):
        degrade(tmp_path / "dsc.nii.gz", tmp_path / "dsc.nii", thickness_mm=3.0)
    assert read_json(tmp_path / "dsc.json")["Manufacturer"] == "A"


@pytest.mark.parametrize(
    ("words", "of"),
    [
        ("thinner", {"thickness_mm": 0.5}),
        ("unknown", {"thickness_mm": 5.0, "profile": "sinc"}),
        ("missing", {"thickness_mm": 5.0, "profile": "nowhere.csv"}),
        ("positive", {"thickness_mm": 5.0, "spacing_mm": -1.0}),
        ("out of the image", {"thickness_mm": 5.0, "offset_mm": 300.0}),
    ],
)
def test_what_makes_no_slices_is_refused_and_nothing_is_written(image: Path, tmp_path: Path, words, of) -> None:
    with pytest.raises(InputError, match=words):
        degrade(image, tmp_path / "thick.nii.gz", **of)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t1w.nii.gz"]


def test_an_image_that_is_not_there_and_a_name_that_is_no_nifti_are_refused(image: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="missing"):
        degrade(tmp_path / "none.nii.gz", tmp_path / "thick.nii.gz", thickness_mm=5.0)
    (tmp_path / "folder.nii").mkdir()
    (tmp_path / "folder.nii" / "kept").touch()
    for name in ("thick.png", "folder.nii"):
        with pytest.raises(InputError, match=f"{name} cannot be written"):
            degrade(image, tmp_path / name, thickness_mm=5.0)
    assert (tmp_path / "folder.nii" / "kept").exists()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("not a CSV", ""),
        ("not a CSV", 'position_mm,weight\n0,"1\n'),
        ("position_mm", "z,w\n0,0\n1,1\n2,0\n"),
        ("numbers", "position_mm,weight\n0,0\none,1\n2,0\n"),
        ("at least 3", "position_mm,weight\n0,0\n1,\n2,0\n"),
        ("increase", "position_mm,weight\n2,0\n1,1\n0,0\n"),
        ("half of its maximum", "position_mm,weight\n0,1\n1,1\n2,0\n"),
    ],
)
def test_a_profile_that_cannot_be_read_is_named(tmp_path: Path, words: str, text: str) -> None:
    (tmp_path / "profile.csv").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=words) as refused:
        read_slice_profile(tmp_path / "profile.csv")
    assert "profile.csv" in str(refused.value)


def test_spaces_and_further_columns_in_a_profile_do_no_harm(tmp_path: Path) -> None:
    text = "n, position_mm , weight\n1, -1, 0\n2, 0, 5\n3, 1, 0\n"
    (tmp_path / "profile.csv").write_text(text, encoding="utf-8-sig")
    np.testing.assert_array_equal(read_slice_profile(tmp_path / "profile.csv"), [[-1, 0], [0, 5], [1, 0]])


def test_the_command_refuses_in_one_sentence(image: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "reperfuse", "degrade", str(image), "--thickness-mm", "5", "--out", str(image)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("reperfuse: ") and done.stderr.count("\n") == 1


def test_help_says_units_and_which_axis_is_meant() -> None:
    said = " ".join(verb("--help").split())
    assert "[mm]" in said and "as stored" in said and "axial" in said
