"""Where a stage keeps what lets it resume: a folder that other data, parameters or code would never find."""

from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path

from reperfuse import tracking
from reperfuse.stages import layout


def resumable(arm: str, stage: str, said: Iterable[str], code: Iterable[str]) -> Path:
    """.reperfuse/<arm>/<fingerprint>/<stage> of the repository.

    The fingerprint is a hash of the processed data's index, of the folds, of `said` and of the `code`.

    Parameters
    ----------
    said
        Parameters and digests of what else decides the result.
    code
        Rooms of the package, folders or files; "" is all of it.
    """
    digest = sha256()
    for path in (layout.processed(arm) / "index.csv", layout.folds_csv(arm)):
        digest.update(path.read_bytes())
    for text in said:
        digest.update(text.encode())
    package = Path(__file__).parents[1]
    for room in code:
        for path in sorted([package / room] if room.endswith(".py") else (package / room).rglob("*.py")):
            digest.update(path.read_bytes())
    return tracking.repository_root() / ".reperfuse" / arm / digest.hexdigest()[:16] / stage
