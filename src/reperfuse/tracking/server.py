"""The MLflow server over this repository's store: its UI for a person, its API for another machine.

It serves the store that the stages write directly. Without a password, artifacts stay files beside the database,
which both sides read; with one (REPERFUSE_PASSWORD), every request needs it and artifacts travel through the server,
so that a machine that shares no disk can use it.
"""

import errno
import ipaddress
import os
import re
import secrets
import socket
import sys
from pathlib import Path

from reperfuse.errors import InputError
from reperfuse.files import write_text
from reperfuse.tracking.store import artifact_root, client, repository_root, store_name, tracking_uri

LOOPBACK = "127.0.0.1"

USER = "reperfuse"
"""Name that goes with REPERFUSE_PASSWORD."""

_UI_MODE = "workflowType=machine_learning"  # runs and models first; MLflow's own default is prompts and traces


def password_for(host: str) -> str | None:
    """REPERFUSE_PASSWORD, which a server on any address but this machine's own must have; None without one.

    Raises
    ------
    InputError
        If `host` can be reached from elsewhere and there is no password, or the password is weak.
    """
    password = os.environ.get("REPERFUSE_PASSWORD") or None
    if password is None and not _is_loopback(host):
        raise InputError(
            f"{host} can be reached from other machines: "
            "set REPERFUSE_PASSWORD (12 characters or more), or leave --host out."
        )
    # The shell, .env files and HTTP each read quotes, $ and \ in their own way.
    if password is not None and not re.fullmatch(r"[A-Za-z0-9!#%&()*+,./:;<=>?@^_{|}~\[\]-]{12,}", password):
        raise InputError("REPERFUSE_PASSWORD needs 12 characters or more, ASCII, no space, quotes, $ or \\.")
    return password


def free_port(host: str, wanted: int | None, usual: int) -> int:
    """`wanted` if nothing listens there; without a wish, `usual` or else any free port.

    Raises
    ------
    InputError
        If the wanted port is taken or no port at all, or `host` is no address of this machine.
    """
    for port in (wanted,) if wanted else (usual, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
                return int(probe.getsockname()[1])
            except OverflowError:
                raise InputError(f"{port} is no port: name one from 1 to 65535.") from None
            except OSError as error:
                if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
                    raise InputError(
                        f"{host} is no IPv4 address or name of this machine: name one that is, or 0.0.0.0 for all."
                    ) from None
                problem = error.strerror
    raise InputError(
        f"Port {wanted or usual} on {host} is taken or closed to us ({problem}): "
        "name another one, or see `make status` for what of this checkout is up."
    )


def serve_ui(port: int, host: str = LOOPBACK) -> None:
    """Become the MLflow server over this store, until Ctrl-C.

    Raises
    ------
    InputError
        If the port is taken, the store is a server, which has a UI of its own, or the password is missing.
    """
    uri = tracking_uri()
    if uri.startswith(("http://", "https://")):
        raise InputError(f"MLFLOW_TRACKING_URI={store_name()} is a server with a UI of its own: open it in a browser.")
    password = password_for(host)
    free_port(host, port, port)
    client()  # makes the store where there is none, and says in a sentence when it is of another version
    command, environment = server_command(port, host, password), server_environment(port, host, password)
    if password:
        _prepare_accounts(password, environment)
    print(f"MLflow on http://{host}:{port}/#/experiments?{_UI_MODE} (Ctrl-C ends it)", flush=True)
    environment = {name: value for name, value in (os.environ | environment).items() if name != "REPERFUSE_PASSWORD"}
    # In place of this process, so that a signal ends it and leaves nothing behind.
    os.execve(command[0], command, environment)


def server_command(port: int, host: str, password: str | None) -> list[str]:
    """The full `mlflow server` command; which store, and what is secret, it learns from its environment."""
    command = [sys.executable, "-m", "mlflow", "server", "--host", host, "--port", str(port), "--workers", "1"]
    root = str(artifact_root())
    if password:
        return [*command, "--app-name", "basic-auth", "--serve-artifacts", "--artifacts-destination", root]
    return [*command, "--no-serve-artifacts", "--default-artifact-root", root]


def server_environment(port: int, host: str, password: str | None) -> dict[str, str]:
    """What the server has to know and `ps` must not show, and the names under which browsers may ask for it."""
    names = _names_of_this_machine() | ({host} if host != "0.0.0.0" else set())
    known = {
        # A database URL may hold a password of its own.
        "MLFLOW_BACKEND_STORE_URI": tracking_uri(),
        "PYTHONWARNINGS": "ignore",
        "MLFLOW_LOGGING_LEVEL": "ERROR",
        # MLflow answers only to names it knows, and lets only pages of these places change anything.
        "MLFLOW_SERVER_ALLOWED_HOSTS": ",".join(entry for name in sorted(names) for entry in (name, f"{name}:*")),
        "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS": ",".join(f"http://{name}:{port}" for name in sorted(names)),
    }
    known |= {name: os.environ[name] for name in known if "_ALLOWED_" in name and name in os.environ}
    if not password:
        return known
    return known | {
        "MLFLOW_AUTH_CONFIG_PATH": str(_accounts_folder() / "mlflow-auth.ini"),
        "MLFLOW_AUTH_ADMIN_USERNAME": USER,
        "MLFLOW_AUTH_ADMIN_PASSWORD": password,
        # It signs the form for new users; who has the form open during a restart loads it again.
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(32),
    }


def _prepare_accounts(password: str, environment: dict[str, str]) -> None:
    """Write the settings of MLflow's accounts, and give ours the present password: MLflow reads it only once."""
    folder = _accounts_folder()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    database = f"sqlite:///{folder / 'mlflow-accounts.db'}"
    lines = [
        "[mlflow]",
        "default_permission = READ",
        f"database_uri = {database}".replace("%", "%%"),
        f"admin_username = {USER}",
    ]
    write_text(environment["MLFLOW_AUTH_CONFIG_PATH"], "\n".join(lines) + "\n")
    (folder / "mlflow-auth.ini").chmod(0o600)
    os.environ.update({name: value for name, value in environment.items() if name.startswith("MLFLOW_AUTH_")})
    from mlflow.server.auth.sqlalchemy_store import SqlAlchemyStore

    accounts = SqlAlchemyStore()
    accounts.init_db(database)
    if accounts.has_user(USER) and not accounts.authenticate_user(USER, password):
        accounts.update_user(USER, password=password)


def _accounts_folder() -> Path:
    return repository_root() / ".reperfuse" / "services"


def _names_of_this_machine() -> set[str]:
    """Every name and IPv4 address under which a browser may reach this machine."""
    import psutil

    addresses = {
        address.address
        for interface in psutil.net_if_addrs().values()
        for address in interface
        if address.family == socket.AF_INET
    }
    return {"localhost", LOOPBACK, socket.gethostname(), socket.getfqdn(), *addresses}


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
