"""Endpoints that this machine remembers: the one in use, and the DNS names of dedicated ones.

With the DNS name at hand, a call needs no permission but to predict.
"""

import json
import os
import re
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
from t2i_cli.request_fields import SERVINGS
from t2i_cli.vertex.labels import Labels

_HOST = re.compile(r"(?:[A-Za-z0-9.-]+(?::[0-9]{1,5})?)?")


@dataclass(frozen=True, kw_only=True)
class EndpointRecord:
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


def record_from_api(name: str, endpoint: Mapping[str, Any]) -> EndpointRecord:
    """What Vertex AI's answer says of an endpoint, under the name that the user gives it."""
    labels = Labels.of(endpoint.get("labels", {}))
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
    )


def store_path() -> Path:
    """The file; it holds no secret, and can be deleted at any time."""
    from platformdirs import user_state_path

    return user_state_path("t2i", appauthor=False) / "vertex.json"


def current_endpoint() -> EndpointRecord | None:
    """The endpoint in use: what `remote deploy` made last or `remote use` chose."""
    name, endpoints = _read()
    return endpoints.get(name or "")


def find_record(named: str) -> EndpointRecord | None:
    """The endpoint of that full name or number."""
    _, endpoints = _read()
    return next((k for n, k in endpoints.items() if named in {n, n.split("/")[-1]}), None)


def remember_endpoint(known: EndpointRecord, *, current: bool = False) -> None:
    """Keep an endpoint, as the one in use if `current`."""
    with _held():
        name, endpoints = _read()
        _write(known.name if current else name, endpoints | {known.name: known})


def forget_endpoint(named: str) -> None:
    """Drop an endpoint that is gone, by its full name or number."""
    with _held():
        gone = find_record(named.split("/")[-1])
        used, endpoints = _read()
        if gone and endpoints.pop(gone.name, None):
            _write(None if used == gone.name else used, endpoints)


def list_records() -> list[EndpointRecord]:
    """Every endpoint that is remembered."""
    return list(_read()[1].values())


@contextmanager
def _held() -> Iterator[None]:
    """Keep other processes and threads from writing the file until the block ends."""
    from filelock import lock_descriptor

    file = store_path()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        # Not the file itself, which is replaced; the system drops the lock of who dies.
        lock = open_regular(Path(f"{file}.lock"), os.O_CREAT | os.O_RDWR, 0o600)
        try:
            lock_descriptor(lock)
            yield
        finally:
            os.close(lock)
    except OSError as error:
        raise StorageError(f"Cannot write {file}: {os_reason(error)}.") from error


def _read() -> tuple[str | None, dict[str, EndpointRecord]]:
    """The name in use, and what is known by full name; a damaged file or entry counts as none."""
    try:
        record = read_json(store_path())
    except (OSError, ValueError):
        return None, {}
    if not isinstance(record, dict) or not isinstance(record.get("endpoints"), list):
        return None, {}
    found = [known for entry in record["endpoints"] if (known := _known(entry))]
    name = record.get("current")
    return name if is_text(name) else None, {known.name: known for known in found}


def _known(entry: object) -> EndpointRecord | None:
    """An endpoint as the file has it, `None` for a damaged entry; a newer t2i's may say more."""
    if not isinstance(entry, dict) or not is_text(entry.get("name")):
        return None
    values = {
        field.name: entry[field.name] for field in fields(EndpointRecord) if field.name in entry
    }
    whole = all(
        value is None or name == "name" or _VALID[name](value) for name, value in values.items()
    )
    return EndpointRecord(**values) if whole else None


def _is_machine(value: object) -> bool:
    """Whether it is a MachineSpec as far as it is read here."""
    if not isinstance(value, dict):
        return False
    kind, accelerator, count = (
        value.get(name) for name in ("machineType", "acceleratorType", "acceleratorCount")
    )
    return all(one is None or is_text(one) for one in (kind, accelerator)) and (
        "acceleratorCount" not in value or is_count(count)
    )


_VALID: Mapping[str, Callable[[object], bool]] = {
    # It comes into an address that is sent a token.
    "dns": lambda value: isinstance(value, str) and bool(_HOST.fullmatch(value)),
    "serving": lambda value: isinstance(value, str) and value in SERVINGS,
    "model": is_text,
    "deployed_model": is_text,
    "replicas": is_count,
    "machine": _is_machine,
    "expires": is_amount,
}


def _write(name: str | None, endpoints: dict[str, EndpointRecord]) -> None:
    """Replace the file whole; raises OSError."""
    record = {"current": name, "endpoints": [asdict(known) for known in endpoints.values()]}
    replace_text(store_path(), json.dumps(record, indent=1))
