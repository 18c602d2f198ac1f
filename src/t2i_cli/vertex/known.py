"""Endpoints that this machine remembers: the one in use, and the DNS names of dedicated ones.

With the DNS name at hand, a call needs no permission but to predict.
"""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from t2i_cli.errors import StorageError, os_reason
from t2i_cli.setting_table import SERVINGS
from t2i_cli.vertex.labels import Labels


@dataclass(frozen=True, kw_only=True)
class Known:
    """An endpoint by its full resource name; `None` is what was not learnt.

    `dns` is the dedicated host, "" for a shared endpoint; `model` a repository, alias or path;
    `replicas` the most there can be; `machine` Vertex AI's MachineSpec of each; `expires` in unix
    seconds.
    """

    name: str
    dns: str | None = None
    serving: str | None = None
    model: str | None = None
    deployed_model: str | None = None
    replicas: int | None = None
    machine: Mapping[str, object] | None = None
    expires: float | None = None


def of(name: str, endpoint: Mapping[str, Any]) -> Known:
    """What Vertex AI's answer says of an endpoint, under the name that the user gives it."""
    labels = Labels.of(endpoint.get("labels", {}))
    deployed: Mapping[str, Any] = next(iter(endpoint.get("deployedModels", [])), {})
    resources = deployed.get("dedicatedResources", {})
    replicas = resources.get("maxReplicaCount") or resources.get("minReplicaCount")
    dedicated = endpoint.get("dedicatedEndpointEnabled")
    return Known(
        name=name,
        dns=endpoint.get("dedicatedEndpointDns", "") if dedicated else "",
        serving=labels.serving if labels and labels.serving in SERVINGS else None,
        model=labels.model or None if labels else None,
        deployed_model=deployed.get("id"),
        replicas=int(replicas) if replicas else None,
        machine=resources.get("machineSpec"),
        expires=labels.expires if labels else None,
    )


def path() -> Path:
    """The file; it holds no secret, and can be deleted at any time."""
    from platformdirs import user_state_path

    return user_state_path("t2i", appauthor=False) / "vertex.json"


def current() -> Known | None:
    """The endpoint in use: what `remote deploy` made last or `remote use` chose."""
    name, endpoints = _read()
    return endpoints.get(name or "")


def find(named: str) -> Known | None:
    """The endpoint of that full name or number."""
    _, endpoints = _read()
    return next((k for n, k in endpoints.items() if named in {n, n.split("/")[-1]}), None)


def remember(known: Known, *, current: bool = False) -> None:
    """Keep an endpoint, as the one in use if `current`."""
    with _held():
        name, endpoints = _read()
        _write(known.name if current else name, endpoints | {known.name: known})


def forget(named: str) -> None:
    """Drop an endpoint that is gone, by its full name or number."""
    with _held():
        gone = find(named.split("/")[-1])
        used, endpoints = _read()
        if gone and endpoints.pop(gone.name, None):
            _write(None if used == gone.name else used, endpoints)


def all_known() -> list[Known]:
    """Every endpoint that is remembered."""
    return list(_read()[1].values())


@contextmanager
def _held() -> Iterator[None]:
    """Keep other processes and threads from writing the file until the block ends."""
    import fcntl

    file = path()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        # Not the file itself, which is replaced; the system drops the lock of who dies.
        lock = os.open(f"{file}.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)
    except OSError as error:
        raise StorageError(f"Cannot write {file}: {os_reason(error)}.") from error


def _read() -> tuple[str | None, dict[str, Known]]:
    """The name in use, and what is known by full name; a broken file counts as none."""
    try:
        record = json.loads(path().read_text(encoding="utf-8"))
        names = {field.name for field in fields(Known)}
        found = [Known(**{k: v for k, v in r.items() if k in names}) for r in record["endpoints"]]
        return record["current"], {known.name: known for known in found}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None, {}


def _write(name: str | None, endpoints: dict[str, Known]) -> None:
    """Replace the file whole; raises OSError."""
    file = path()
    record = {"current": name, "endpoints": [asdict(known) for known in endpoints.values()]}
    descriptor, beside = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            json.dump(record, stream, indent=1)
        os.replace(beside, file)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(beside)
