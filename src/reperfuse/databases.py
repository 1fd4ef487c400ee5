"""Databases by URL: what they are called in a sentence, and a lock that every machine at one shares."""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from typing import TYPE_CHECKING

from reperfuse.errors import InputError

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

POSTGRESQL = re.compile(r"postgresql(\+\w+)?://")
"""How the URL of a PostgreSQL database begins, as SQLAlchemy takes it."""

AWAY = ("Connection refused", "starting up", "shutting down")
"""What PostgreSQL's client says of a server that may be back in a moment."""

RESTART_PATIENCE_S = 30.0
"""How long such a server is waited for [s]."""

LOCK_PATIENCE_S = 120
"""How long a holder of a lock may do nothing in its transaction before the server takes the lock away [s]: a machine
that lost its power cannot say so, and what is done under a lock takes seconds."""


def without_password(url: str) -> str:
    """`url` as it may be shown and kept: with stars for the password.

    Examples
    --------
    >>> without_password("postgresql://ada:s3cr@t@host/db?sslpassword=b&sslmode=require")
    'postgresql://ada:***@host/db?sslpassword=***&sslmode=require'
    >>> without_password("sqlite:////srv/mlruns/mlflow.db")
    'sqlite:////srv/mlruns/mlflow.db'
    """
    hidden = re.sub(r"(://[^:/@]*):.*@", r"\1:***@", url)
    return re.sub(r"([?&](?:ssl)?password=)[^&]*", r"\1***", hidden)


@contextmanager
def database_lock(url: str, name: str) -> Iterator[None]:
    """Holds off everyone who asks the PostgreSQL database at `url` for the lock `name`, on whatever machine.

    It is an advisory lock of a transaction on a connection of its own: the server lets it go when the process ends,
    however it ends.

    Raises
    ------
    InputError
        If the database does not answer, or the URL is none.
    """
    from sqlalchemy import create_engine, text
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError
    from sqlalchemy.pool import NullPool

    try:
        # Not pooled: a connection would outlive a fork, and be found cut after hours in which nobody spoke.
        engine = create_engine(url, poolclass=NullPool)
    except (ArgumentError, NoSuchModuleError, ImportError, ValueError):
        # Their words repeat the URL, and with it the password.
        raise InputError(
            f"{without_password(url)} is no database URL: write postgresql://USER@HOST/DATABASE."
        ) from None
    with _connected(engine, without_password(url)) as connection:
        connection.execute(text(f"SET LOCAL idle_in_transaction_session_timeout = '{LOCK_PATIENCE_S}s'"))
        key = int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), signed=True)
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": key})
        yield


def _connected(engine: "Engine", shown: str) -> "Connection":
    """A connection, for which a server that is just starting again is awaited."""
    from sqlalchemy.exc import OperationalError

    give_up = time.monotonic() + RESTART_PATIENCE_S
    while True:
        try:
            return engine.connect()
        except OperationalError as error:
            reason = " ".join(str(error.orig).split())
            if time.monotonic() > give_up or not any(words in reason for words in AWAY):
                raise InputError(
                    f"{shown} does not answer ({reason}): start that database, or mend the URL."
                ) from error
        time.sleep(0.5)
