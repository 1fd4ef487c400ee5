"""What the services ask of each other over plain HTTP: who is well, what is deployed, which runs lost their worker.

No Prefect client: importing one would cost the supervisor a second and 100 MB.
"""

import base64
import http.client
import json
import urllib.parse
from collections.abc import Collection
from typing import Any

from reperfuse.errors import InputError

POOL = "reperfuse"

STAMP = "reperfuse_deployed"
"""Prefect variable with the digest of what was deployed: kept in the database that holds the deployments."""

WORKER = "prefect.worker.name"
"""Label by which Prefect remembers who took a run."""

UNFINISHED = ("PENDING", "RUNNING", "CANCELLING")

PAGE = 200
"""Records per question; what Prefect's server gives at most."""


def answered(url: str, method: str = "GET", body: Any = None, auth: str = "") -> tuple[int, Any]:
    """Status and JSON of an answer; (0, None) where nobody answers.

    Parameters
    ----------
    url
        `http://host:port/path`.
    body
        Sent as JSON; nothing when None.
    auth
        `user:password`; no authorization when empty.
    """
    place = urllib.parse.urlsplit(url)
    headers = {"Content-Type": "application/json"}
    if auth:
        headers["Authorization"] = f"Basic {base64.b64encode(auth.encode()).decode()}"
    # http.client goes straight there; urllib would ask a proxy.
    connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=10)
    try:
        connection.request(method, place.path or "/", None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        content = answer.read()
    except (OSError, http.client.HTTPException):
        return 0, None
    finally:
        connection.close()
    try:
        return answer.status, json.loads(content or b"null")
    except ValueError:
        return answer.status, None


def prefect(settings: dict[str, str], method: str, path: str, body: Any = None) -> Any:
    """What Prefect's API at `settings["PREFECT_API_URL"]` says; None for what is not there.

    Raises
    ------
    InputError
        If it does not answer, or refuses.
    """
    url = settings["PREFECT_API_URL"] + path
    status, content = answered(url, method, body, settings.get("PREFECT_API_AUTH_STRING", ""))
    if status == 404:
        return None
    if not 200 <= status < 300:
        raise InputError(f"{url} answers {status or 'nothing'}: see the log of Prefect's server.")
    return content


def workers_online(settings: dict[str, str]) -> dict[str, str]:
    """Name to last heartbeat (ISO 8601, UTC) of the workers that Prefect's server takes for alive."""
    known = prefect(settings, "POST", f"/work_pools/{POOL}/workers/filter", {}) or []
    return {one["name"]: one["last_heartbeat_time"] for one in known if one["status"] == "ONLINE"}


def is_deployed(settings: dict[str, str], digest: str, names: Collection[str]) -> bool:
    """Whether the server has the work pool and the deployments `names`, made from the files with this `digest`."""
    stamp = prefect(settings, "GET", f"/variables/name/{STAMP}")
    if stamp is None or stamp["value"] != digest or prefect(settings, "GET", f"/work_pools/{POOL}") is None:
        return False
    there = {one["name"] for one in prefect(settings, "POST", "/deployments/filter", {"limit": PAGE})}
    return set(names) <= there


def note_deployed(settings: dict[str, str], digest: str) -> None:
    """Remember in the server's own database what was deployed."""
    if prefect(settings, "GET", f"/variables/name/{STAMP}") is None:
        prefect(settings, "POST", "/variables/", {"name": STAMP, "value": digest})
    else:
        prefect(settings, "PATCH", f"/variables/name/{STAMP}", {"value": digest})


def crash_runs(settings: dict[str, str], workers: Collection[str | None]) -> int:
    """Number of unfinished runs that one of `workers` had taken, which are marked as crashed; None is nobody yet.

    Prefect leaves the runs of a dead worker `Running` for ever, and the next run of the deployment waits for
    their place until the lease runs out. DVC and the resumable state make it cheap to run them again.
    """
    unfinished = {"state": {"type": {"any_": list(UNFINISHED)}}}
    runs = prefect(settings, "POST", "/flow_runs/filter", {"flow_runs": unfinished, "limit": PAGE})
    lost = {run["id"]: run for run in runs if run["labels"].get(WORKER) in workers and run["work_pool_name"] == POOL}
    # A flow called by a flow has no worker of its own; parents come before children.
    for run in sorted(runs, key=lambda run: run["created"]):
        if parent := run["parent_task_run_id"]:
            called_by = prefect(settings, "GET", f"/task_runs/{parent}")
            if called_by and called_by["flow_run_id"] in lost:
                lost[run["id"]] = run
    reason = "Its worker stopped while it ran; run it again, it goes on where it was."
    for run in lost.values():
        state = {"type": "CRASHED", "name": "Crashed", "message": reason}
        prefect(settings, "POST", f"/flow_runs/{run['id']}/set_state", {"state": state, "force": True})
    return len(lost)
