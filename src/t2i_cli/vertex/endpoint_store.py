"""State file of known endpoints: the one in use, and the DNS names of dedicated ones.

With a stored DNS name, a call needs only the predict permission.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from t2i_cli.errors import StorageError, os_reason
from t2i_cli.files.state_files import (
    is_amount,
    is_count,
    is_text,
    open_regular,
    read_json,
    replace_text,
)
from t2i_cli.files.user_folders import NoHomeError, user_folder
from t2i_cli.net.google_answers import ENDPOINT_HOST
from t2i_cli.request_fields import SERVINGS
from t2i_cli.vertex.labels import Labels


@dataclass(frozen=True, kw_only=True)
class EndpointRecord:
    """An endpoint by its full resource name; `None` is unknown.

    `dns` is the dedicated host, "" for a shared endpoint; `model` a repository, alias or path;
    `replicas` the maximum number; `machine` Vertex AI's MachineSpec of each; `expires` in unix
    seconds; `spot` says whether Google may take the machines back.
    """

    name: str
    dns: str | None = None
    serving: str | None = None
    model: str | None = None
    deployed_model: str | None = None
    replicas: int | None = None
    machine: Mapping[str, object] | None = None
    expires: float | None = None
    spot: bool | None = None


def record_from_api(name: str, endpoint: Mapping[str, Any]) -> EndpointRecord:
    """The record of an Endpoint resource of Vertex AI, under the name that the user gives it."""
    labels = Labels.parse(endpoint.get("labels", {}))
    deployed: Mapping[str, Any] = next(iter(endpoint.get("deployedModels", [])), {})
    resources = deployed.get("dedicatedResources", {})
    replicas = resources.get("maxReplicaCount") or resources.get("minReplicaCount")
    dedicated = endpoint.get("dedicatedEndpointEnabled")
    return EndpointRecord(
        name=name,
        dns=endpoint.get("dedicatedEndpointDns", "") if dedicated else "",
        serving=labels.serving if labels and labels.serving in SERVINGS else None,
        model=labels.model or None if labels else None,
        deployed_model=deployed.get("id"),
        replicas=int(replicas) if replicas else None,
        machine=resources.get("machineSpec"),
        expires=labels.expires if labels else None,
        spot=resources.get("spot") is True if resources else None,
    )


def store_path() -> Path:
    """Path of the state file; it holds no secret and can be deleted at any time.

    Raises NoHomeError.
    """
    return user_folder("state") / "vertex.json"


def current_endpoint() -> EndpointRecord | None:
    """The endpoint in use: the one that `remote deploy` or `remote use` named last."""
    name, endpoints = _read()
    return endpoints.get(name or "")


def find_record(named: str) -> EndpointRecord | None:
    """The endpoint with that full name or number."""
    _, endpoints = _read()
    return next((k for n, k in endpoints.items() if named in {n, n.split("/")[-1]}), None)


def remember_endpoint(record: EndpointRecord, *, current: bool = False) -> None:
    """Store an endpoint, as the one in use if `current`. Raises StorageError."""
    with _locked():
        name, endpoints = _read()
        _write(record.name if current else name, endpoints | {record.name: record})


def forget_endpoint(named: str) -> None:
    """Remove an endpoint by its full name or number. Raises StorageError."""
    with _locked():
        gone = find_record(named.split("/")[-1])
        used, endpoints = _read()
        if gone and endpoints.pop(gone.name, None):
            _write(None if used == gone.name else used, endpoints)


def list_records() -> list[EndpointRecord]:
    """Every stored endpoint."""
    return list(_read()[1].values())


@contextmanager
def _locked() -> Iterator[None]:
    """Hold an exclusive lock against writers in other processes and threads.

    Raises StorageError.
    """
    from filelock import lock_descriptor

    file = store_path()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        # A separate file, since the state file is replaced. The lock ends with the process.
        lock = open_regular(Path(f"{file}.lock"), os.O_CREAT | os.O_RDWR, 0o600)
        try:
            lock_descriptor(lock)
            yield
        finally:
            os.close(lock)
    except OSError as error:
        raise StorageError(f"Cannot write {file}: {os_reason(error)}.") from error


def _read() -> tuple[str | None, dict[str, EndpointRecord]]:
    """The current endpoint's name, and records by full name; damaged content is skipped."""
    try:
        data = read_json(store_path())
    except (OSError, ValueError, NoHomeError):
        return None, {}
    if not isinstance(data, dict) or not isinstance(data.get("endpoints"), list):
        return None, {}
    found = [record for entry in data["endpoints"] if (record := _parse_record(entry))]
    name = data.get("current")
    return name if is_text(name) else None, {record.name: record for record in found}


def _parse_record(entry: object) -> EndpointRecord | None:
    """The record of a file's entry, `None` if it is damaged; ignores fields of newer versions."""
    if not isinstance(entry, dict) or not is_text(entry.get("name")):
        return None
    values = {
        field.name: entry[field.name] for field in fields(EndpointRecord) if field.name in entry
    }
    valid = all(
        value is None or name == "name" or _VALIDATORS[name](value)
        for name, value in values.items()
    )
    return EndpointRecord(**values) if valid else None


def _is_machine(value: object) -> bool:
    """Whether the fields of a MachineSpec that are read here are valid."""
    if not isinstance(value, dict):
        return False
    kind, accelerator, count = (
        value.get(name) for name in ("machineType", "acceleratorType", "acceleratorCount")
    )
    return all(one is None or is_text(one) for one in (kind, accelerator)) and (
        "acceleratorCount" not in value or is_count(count)
    )


_VALIDATORS: Mapping[str, Callable[[object], bool]] = {
    # It becomes part of a URL to which a token is sent.
    "dns": lambda value: isinstance(value, str) and bool(ENDPOINT_HOST.fullmatch(value)),
    "serving": lambda value: isinstance(value, str) and value in SERVINGS,
    "model": is_text,
    "deployed_model": is_text,
    "replicas": is_count,
    "machine": _is_machine,
    "expires": is_amount,
    "spot": lambda value: isinstance(value, bool),
}


def _write(name: str | None, endpoints: dict[str, EndpointRecord]) -> None:
    """Replace the file atomically; raises OSError."""
    data = {"current": name, "endpoints": [asdict(record) for record in endpoints.values()]}
    replace_text(store_path(), json.dumps(data, indent=1))
