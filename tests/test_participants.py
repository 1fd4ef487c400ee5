"""participants.tsv: what people wrote outlives every ingest."""

import shutil

import pytest
from lesion_files import ATLAS, RELEASED, write_set

from reperfuse.cohort.bids import lesion_cohort
from reperfuse.cohort.inbox import ingest_lesion
from reperfuse.cohort.participants import participants_text, read_participants
from reperfuse.errors import InputError


@pytest.fixture
def table(tmp_path):
    """participants.tsv of a tree that holds sub-strokecase0001 of unknown centre and sub-r001s001 of R001."""
    write_set(tmp_path / "inbox", "sub-strokecase0001", RELEASED)
    write_set(tmp_path / "inbox", "sub-r001s001", ATLAS)
    ingest(tmp_path)
    return tmp_path / "bids/participants.tsv"


def ingest(folder):
    return list(ingest_lesion(folder / "inbox", folder / "bids", folder / "quarantine"))


def rows_of(path):
    return {row["participant_id"]: row for row in read_participants(path)[1]}


def centres(table):
    cohort = lesion_cohort(table.parent)
    return dict(zip(cohort.participant_id, cohort.centre, strict=True))


def test_a_centre_filled_in_by_hand_lasts_and_reaches_the_cohort(table, tmp_path):
    assert centres(table) == {"sub-r001s001": "R001", "sub-strokecase0001": "unknown"}
    table.write_text(table.read_text().replace("sub-strokecase0001\tn/a", "sub-strokecase0001\tMunich"))
    ingest(tmp_path)
    assert centres(table) == {"sub-r001s001": "R001", "sub-strokecase0001": "Munich"}


def test_a_centre_by_hand_outlives_a_new_version_of_its_subject(table, tmp_path):
    table.write_text("participant_id\tcentre\nsub-strokecase0001\tMunich\nsub-r001s001\tBasel\n")
    for name, layout in (("sub-strokecase0001", RELEASED), ("sub-r001s001", ATLAS)):
        shutil.rmtree(tmp_path / "inbox")
        write_set(tmp_path / "inbox", name, layout, ses="ses-0002")
        assert not ingest(tmp_path)[0].unchanged
    assert centres(table) == {"sub-r001s001": "Basel", "sub-strokecase0001": "Munich"}


def test_further_columns_last_and_who_joins_gets_a_row(table, tmp_path):
    table.write_text(
        "participant_id\tage\tcentre\tnihss at admission\n"
        "sub-strokecase0001\t71\tMunich\t4\n"
        "sub-r001s001\t58\tR001\t\n"
        "sub-later\t64\tBern\t11\n"
    )
    write_set(tmp_path / "inbox", "sub-r002s001", {k: v.replace("R001", "R002") for k, v in ATLAS.items()})
    ingest(tmp_path)
    assert table.read_text() == (
        "participant_id\tage\tcentre\tnihss at admission\n"
        "sub-later\t64\tBern\t11\n"
        "sub-r001s001\t58\tR001\tn/a\n"
        "sub-r002s001\tn/a\tR002\tn/a\n"
        "sub-strokecase0001\t71\tMunich\t4\n"
    )
    clock = table.stat().st_mtime_ns
    ingest(tmp_path)
    assert table.stat().st_mtime_ns == clock


def test_a_table_of_ones_own_gets_the_column_centre(table, tmp_path):
    table.write_text("participant_id\tsex\nsub-r001s001\tF\n")
    with pytest.raises(InputError, match="no column centre: run `reperfuse ingest` again"):
        lesion_cohort(table.parent)
    ingest(tmp_path)
    assert rows_of(table) == {
        "sub-r001s001": {"participant_id": "sub-r001s001", "sex": "F", "centre": "R001"},
        "sub-strokecase0001": {"participant_id": "sub-strokecase0001", "sex": "n/a", "centre": "n/a"},
    }


def test_a_table_may_be_there_before_the_first_ingest(tmp_path):
    write_set(tmp_path / "inbox")
    (tmp_path / "bids").mkdir()
    (tmp_path / "bids/participants.tsv").write_text("participant_id\tcentre\nsub-strokecase0001\tMunich\n")
    ingest(tmp_path)
    assert centres(tmp_path / "bids/participants.tsv") == {"sub-strokecase0001": "Munich"}


def test_a_centre_that_ingest_gave_follows_the_inbox_and_one_by_hand_does_not(tmp_path):
    names = {"t1w": "t1w_stx", "mask": "LesionSmooth_stx"}
    write_set(tmp_path / "inbox", "031768", {key: f"Site1/{{sub}}_{name}.nii.gz" for key, name in names.items()})
    ingest(tmp_path)
    table = tmp_path / "bids/participants.tsv"
    for by_hand, expected in ((None, "Site2"), ("Basel", "Basel")):
        if by_hand:
            table.write_text(f"participant_id\tcentre\nsub-031768\t{by_hand}\n")
        old = next((tmp_path / "inbox").glob("Site*"))
        old.rename(old.with_name("Site2" if old.name == "Site1" else "Site3"))
        ingest(tmp_path)
        assert rows_of(table)["sub-031768"]["centre"] == expected


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (b"subject\tcentre\nsub-r001s001\tBasel\n", "has no column participant_id"),
        (b"participant_id,centre\nsub-r001s001,Basel\n", "has no column participant_id"),
        (b"", "has no column participant_id"),
        (b"participant_id\tcentre\tcentre\nsub-r001s001\tBasel\tBern\n", "one name twice"),
        (b"participant_id\tcentre\nsub-r001s001\tBasel\t71\n", "3 cells for 2 columns at sub-r001s001"),
        (b"participant_id\tcentre\nsub-r001s001\tBasel\nsub-r001s001\tBern\n", "sub-r001s001 twice"),
        (b"participant_id\tcentre\n\tBasel\n", "a row without participant_id"),
        ("participant_id\tcentre\nsub-r001s001\tZürich\n".encode("utf-16"), "is not UTF-8 text"),
    ],
)
def test_a_damaged_table_is_one_sentence_and_nothing_is_written(table, tmp_path, text, sentence):
    table.write_bytes(text)
    write_set(tmp_path / "inbox", "sub-r002s001", ATLAS)
    with pytest.raises(InputError, match=sentence) as told:
        ingest(tmp_path)
    assert str(table) in str(told.value)
    assert table.read_bytes() == text
    assert not (tmp_path / "bids/sub-r002s001").exists()
    with pytest.raises(InputError, match=sentence):
        lesion_cohort(table.parent)


def test_a_table_from_a_spreadsheet_is_read(table, tmp_path):
    text = "participant_id\tcentre\tage\r\nsub-strokecase0001\t Zürich \t71\r\nsub-r001s001\tBasel\r\n\r\n"
    table.write_bytes(b"\xef\xbb\xbf" + text.encode())
    ingest(tmp_path)
    assert table.read_text(encoding="utf-8") == (
        "participant_id\tcentre\tage\nsub-r001s001\tBasel\tn/a\nsub-strokecase0001\tZürich\t71\n"
    )


def test_writing_what_was_read_changes_nothing(tmp_path):
    text = 'participant_id\tcentre\tnote\nsub-1\tBern\tsaid "yes"\nsub-2\tn/a\tn/a\n'
    path = tmp_path / "participants.tsv"
    path.write_text(text)
    assert participants_text(*read_participants(path), {"sub-1": "n/a", "sub-2": "n/a"}, {}) == text
