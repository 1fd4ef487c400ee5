"""What leaves the inbox carries no person: keyed pseudonyms, sidecars by allow-list, and a check that fails closed."""

import gzip
import hashlib
import json
import math
import os
import re
import secrets
import struct
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from reperfuse.errors import InputError
from reperfuse.imaging.volume import NIFTI_ENDINGS, Volume, times_sidecar

KEY_VARIABLE = "REPERFUSE_PSEUDONYM_KEY"
"""Environment variable that holds the secret of a project whose checkouts must agree on pseudonyms."""

SHORTEST_KEY = 16
"""Fewer characters than this could be guessed by trial."""

LONG_NUMBER = 5
"""A number of fewer digits may be a count or a time by chance; it is an identifier only as a text of its own."""

DIGEST = re.compile(r"[0-9a-f]{64}")
"""A SHA-256 in hexadecimal; it may contain a date by chance and reveals nothing."""

DATE = re.compile(
    r"(?<![0-9A-Za-z.])(?:19|20)\d\d([-/.]?)(?:0[1-9]|1[0-2])\1(?:0[1-9]|[12]\d|3[01])(?:\d{6})?(?![0-9A-Za-z])"
    r"|(?<![0-9A-Za-z.])(?:0?[1-9]|[12]\d|3[01])([-/.])(?:0?[1-9]|1[0-2])\2(?:19|20)\d\d(?![0-9A-Za-z])"
)
"""Days as DICOM, ISO and people write them, with or without a time behind."""

UID = re.compile(r"(?<![0-9.])[0-2](?:\.(?:0|[1-9]\d*)){5,}(?![0-9.])|(?<![0-9.])2\.25\.\d{20,}")
"""DICOM unique identifiers: at least six components, or 2.25 and a long number."""


def pseudonym(patient: str, key: bytes) -> str:
    """`sub-` and ten hexadecimal digits that stand for a patient and cannot be turned back without the key.

    The digits are a BLAKE2b keyed with `key` of the identifier, blanks around it removed.

    Raises
    ------
    ValueError
        If patient or key is empty: all patients would share one pseudonym, or anyone could compute it.

    Examples
    --------
    >>> pseudonym("P001", b"a secret of some length") == pseudonym(" P001 ", b"a secret of some length")
    True
    """
    if not patient.strip() or not key:
        raise ValueError("A pseudonym needs an identifier and a key.")
    # BLAKE2b takes keys of up to 64 bytes; hashing first takes any.
    digest = hashlib.blake2b(patient.strip().encode(), key=hashlib.sha256(key).digest(), digest_size=5)
    return f"sub-{digest.hexdigest()}"


def pseudonym_key(root: Path | str) -> bytes:
    """The secret behind the pseudonyms: of the environment, else of this checkout, made the first time it is asked for.

    REPERFUSE_PSEUDONYM_KEY wins; else `root`/.reperfuse/pseudonym.key, created readable for its owner only. Two
    processes that ask at once get the same key.

    Raises
    ------
    InputError
        If the key is too short, or its file cannot be read or made.
    """
    given = os.environ.get(KEY_VARIABLE)
    if given is not None:
        if len(given.strip()) < SHORTEST_KEY:
            raise InputError(
                f"{KEY_VARIABLE} has fewer than {SHORTEST_KEY} characters: set a longer secret or unset it."
            )
        return given.strip().encode()
    path = Path(root) / ".reperfuse" / "pseudonym.key"
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            # Written under another name and linked: no reader ever sees half a key, and the first one stays.
            handle, draft = tempfile.mkstemp(dir=path.parent, prefix=".pseudonym.")  # mode 0600
            try:
                with os.fdopen(handle, "w", encoding="ascii") as file:
                    file.write(secrets.token_hex(32) + "\n")
                os.link(draft, path)
            except FileExistsError:
                pass
            finally:
                os.unlink(draft)
        key = path.read_bytes().strip()
    except OSError as error:
        raise InputError(
            f"{path} cannot be read or made ({error.strerror}): mend permissions or set {KEY_VARIABLE}."
        ) from error
    if len(key) < SHORTEST_KEY:
        raise InputError(f"{path} is damaged: restore it, or delete it to give all patients new pseudonyms.")
    return key


def dsc_sidecar(volume: Volume, source_hashes: Iterable[str]) -> dict[str, Any]:
    """What the JSON beside a de-identified perfusion image says, and nothing else.

    EchoTime, RepetitionTime, FrameTimes [s from the first frame], SourceSHA256 (sorted) and ConversionNotes.

    Parameters
    ----------
    source_hashes
        SHA-256 of the source files, or one of a whole series, see `series_sha256`.

    Raises
    ------
    ValueError
        If a hash is something else, such as a file name.
    """
    hashes = sorted(set(source_hashes))
    for value in hashes:
        if not DIGEST.fullmatch(value):
            raise ValueError("source_hashes are hexadecimal SHA-256 digests.")
    return {**times_sidecar(volume), "SourceSHA256": hashes, "ConversionNotes": list(volume.notes)}


def series_sha256(file_hashes: Iterable[str]) -> str:
    """One SHA-256 for a series from those of its files, whatever their order."""
    return hashlib.sha256("\n".join(sorted(file_hashes)).encode()).hexdigest()


def assert_anonymous(content: Path | str | Mapping[str, Any], forbidden: Iterable[str]) -> None:
    """Return only if neither a forbidden value nor anything like a date or a DICOM UID is in a file or mapping.

    Looked at: the file's own name, keys and values of JSON, text of .tsv, .csv, .txt, .md and .bval files, and of NIfTI
    the text fields, extensions and gzip header. Other kinds of file are refused, since they cannot be judged.

    Parameters
    ----------
    content
        A mapping or a file.
    forbidden
        Identifiers, names, dates and places of the source; empty ones are passed over. A DICOM name is taken apart at
        its carets. Case does not matter.

    Raises
    ------
    InputError
        Naming the file and the kind of trace, never the trace itself.
    """
    parts = sorted({part for value in forbidden for part in _parts(value)})
    if isinstance(content, Mapping):
        where, texts = "The sidecar", _texts(content)
    else:
        path = Path(content)
        where, texts = str(path), _texts_of_file(path)
    for text in texts:
        if DIGEST.fullmatch(text):
            continue
        trace = _trace(text, parts)
        if trace:
            raise InputError(f"{where} still holds {trace} of its source: keep it back and report how it was made.")


def _parts(value: Any) -> Iterator[str]:
    """A forbidden value and, of a DICOM name, its components of three letters or more."""
    whole = str(value).strip().lower()
    if whole:
        yield whole
    for part in re.split(r"[\^=\s,]+", whole):
        if len(part) >= 3:
            yield part


def _trace(text: str, forbidden: list[str]) -> str | None:
    """What kind of trace is in `text`; None if it is clean."""
    lower = text.lower()
    for value in forbidden:
        # "12" is part of every other number and a count in every other sentence: so short, it must be all there is.
        if len(value) < LONG_NUMBER and value.isdigit():
            found = lower.strip() == value
        elif value.isdigit() or len(value) < 4:
            found = re.search(rf"(?<![0-9a-z]){re.escape(value)}(?![0-9a-z])", lower) is not None
        else:
            found = value in lower
        if found:
            return "a name, number or place"
    if DATE.search(text):
        return "a date"
    if UID.search(text):
        return "a unique identifier"
    return None


def _texts(content: Any) -> Iterator[str]:
    """Every key and value of a JSON content as text, without numbers that are fractions or short: measurements."""
    if isinstance(content, Mapping):
        for key, value in content.items():
            yield str(key)
            yield from _texts(value)
    elif isinstance(content, list | tuple):
        for value in content:
            yield from _texts(value)
    elif isinstance(content, str):
        yield content
    elif isinstance(content, int | float) and 10 ** (LONG_NUMBER - 1) <= abs(content) < math.inf:
        yield str(int(content)) if content == int(content) else ""


def _texts_of_file(path: Path) -> Iterator[str]:
    """The texts a file carries, its name first."""
    yield path.name
    try:
        if path.name.endswith(NIFTI_ENDINGS):
            yield from _texts_of_nifti(path)
        elif path.suffix == ".json":
            yield from _texts(json.loads(path.read_text(encoding="utf-8")))
        elif path.suffix in (".tsv", ".csv", ".txt", ".md", ".bval"):
            for line in path.read_text(encoding="utf-8").splitlines():
                yield from (cell for cell in re.split(r"[\t,]", line) if not re.fullmatch(r"\d{1,4}", cell.strip()))
        else:
            raise InputError(f"{path} is of a kind that cannot be checked for names: keep it out of the data set.")
    except (OSError, EOFError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path} cannot be read to check it for names: write it again.") from error


def _texts_of_nifti(path: Path) -> Iterator[str]:
    """Text fields of a NIfTI header, its extensions, and what gzip wrote about the file."""
    raw = path.read_bytes()[:64] if path.name.endswith(".gz") else b""
    if raw and raw[3] != 0:
        yield raw[10:].split(b"\0")[0].decode("latin-1")
    if raw and raw[3] & ~0x08:
        raise InputError(f"{path} has a gzip header with extra fields: write it again.")
    opener: Any = gzip.open if raw else open
    with opener(path, "rb") as file:
        header = file.read(544)
        small = header[:4] in (b"\x5c\x01\0\0", b"\0\0\x01\x5c")
        little = header[:4] in (b"\x5c\x01\0\0", b"\x1c\x02\0\0")
        if not small and header[:4] not in (b"\x1c\x02\0\0", b"\0\0\x02\x1c"):
            raise InputError(f"{path} is not NIfTI: keep it out of the data set.")
        # NIfTI-1: data_type, db_name, descrip, aux_file, intent_name; NIfTI-2: descrip, aux_file, intent_name.
        spans = (
            [(4, 14), (14, 32), (148, 228), (228, 252), (328, 344)] if small else [(240, 320), (320, 344), (508, 524)]
        )
        for start, stop in spans:
            yield header[start:stop].split(b"\0")[0].decode("latin-1")
        size = 348 if small else 540
        # Extensions, or whatever else lies between the header and the data.
        order = "<" if little else ">"
        form, place = (f"{order}f", 108) if small else (f"{order}q", 168)
        offset = int(struct.unpack_from(form, header, place)[0])
        file.seek(0)
        if any(file.read(max(offset, size + 4))[size:]):
            raise InputError(
                f"{path} has an extension between header and data, which may hold anything: save it without."
            )
