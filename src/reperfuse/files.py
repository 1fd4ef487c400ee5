"""Files that are whole or absent: atomic writes, JSON, hashes."""

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from reperfuse.errors import InputError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says when a disk, a quota or the largest file allowed is used up: nobody's data are at fault."""


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """A temporary path beside `path` that takes its name only if the block ends well.

    The block may create a file or a folder there. A folder replaces an existing folder of the
    same name. A killed process leaves at most a hidden `.<name>.*.partial`, never a half `path`.

    Raises
    ------
    InputError
        If the folder cannot be written to.
    OSError
        One of `FULL` that names `path`, if there is no room for it.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        room = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
    except OSError as error:
        if error.errno in FULL:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise InputError(
            f"{path.parent} cannot be written to ({error.strerror}): choose another folder or mend its permissions."
        ) from error
    try:
        # The name is kept inside the room, because libraries choose a format by its ending.
        inside = room / path.name
        yield inside
        if path.is_dir() and not path.is_symlink():
            aside = room / f"{path.name}.replaced"
            os.replace(path, aside)
        os.replace(inside, path)
    except OSError as error:
        if error.errno in FULL:
            # A write that fails names no file by itself.
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        shutil.rmtree(room, ignore_errors=True)


def write_text(path: Path | str, text: str) -> None:
    """Write `text` (UTF-8) to `path`, whole or not at all."""
    with atomic_path(path) as inside:
        inside.write_text(text, encoding="utf-8")


def write_json(path: Path | str, content: Any) -> None:
    """Write `content` as readable JSON with sorted keys; NaN and infinity are refused."""
    write_text(path, json.dumps(content, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: Path | str) -> Any:
    """The content of a JSON file.

    Raises
    ------
    InputError
        If the file is missing or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing: run the stage that writes it first.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid JSON ({error}): restore it or write it again.") from error


def sha256_of(path: Path | str) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
