"""participants.tsv: what ingest knows of a subject's centre, and whatever people add to it by hand."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from reperfuse.errors import InputError

UNSAID = ("", "n/a")
"""How a cell says nothing; BIDS asks for n/a."""


def read_participants(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Names of the columns and the rows by them, in the file's order; both empty where there is no file.

    Raises
    ------
    InputError
        If the table has no column participant_id, an unnamed or twofold column or subject, or a row longer than its
        header.
    """
    if not path.exists():
        return [], []
    try:
        # Spreadsheets begin a file with a mark of byte order.
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: save it as tab-separated UTF-8, or remove it.") from error
    table = [[cell.strip() for cell in line.split("\t")] for line in lines if line.strip()]
    columns = table[0] if table else []
    if "participant_id" not in columns:
        raise InputError(f"{path} has no column participant_id (tab-separated): mend its first line, or remove it.")
    if "" in columns or len(set(columns)) < len(columns):
        raise InputError(f"{path} has a column without a name or one name twice: mend its first line.")
    rows = []
    for cells in table[1:]:
        if len(cells) > len(columns):
            raise InputError(f"{path} has {len(cells)} cells for {len(columns)} columns at {cells[0]}: mend that row.")
        rows.append(dict(zip(columns, cells + ["n/a"] * (len(columns) - len(cells)), strict=True)))
    names = [row["participant_id"] for row in rows]
    if "" in names:
        raise InputError(f"{path} has a row without participant_id: name the subject, or remove the row.")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"{path} has {twice} twice: keep one row.")
    return columns, rows


def participants_text(
    columns: Sequence[str], rows: Iterable[Mapping[str, str]], centres: Mapping[str, str], formerly: Mapping[str, str]
) -> str:
    """The table with a row for every subject of `centres`, sorted by name; nothing written by hand is lost.

    A centre in `rows` stays, unless it is the one that ingest gave `formerly`. Further columns and the rows of other
    subjects stay as they are.

    >>> rows = [{"participant_id": "sub-1", "centre": "Basel", "age": "71"}]
    >>> centres = {"sub-1": "n/a", "sub-2": "R001"}
    >>> participants_text(["participant_id", "centre", "age"], rows, centres, {}).splitlines()[1:]
    ['sub-1\\tBasel\\t71', 'sub-2\\tR001\\tn/a']
    """
    named = [*columns] or ["participant_id"]
    named += [] if "centre" in named else ["centre"]
    by_name = {row["participant_id"]: dict(row) for row in rows}
    for name, centre in centres.items():
        row = by_name.setdefault(name, {"participant_id": name})
        if row.get("centre", "") in (*UNSAID, formerly.get(name)):
            row["centre"] = centre
    lines = ["\t".join(named)]
    lines += ["\t".join(by_name[name].get(column) or "n/a" for column in named) for name in sorted(by_name)]
    return "\n".join(lines) + "\n"
