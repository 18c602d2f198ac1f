"""Checks a deployment's options by themselves: neither credentials nor Google are needed."""

import math
import re
from dataclasses import dataclass

from t2i_cli.durations import parse_duration
from t2i_cli.errors import InputError
from t2i_cli.settings.options import DeploymentSpec
from t2i_cli.vertex import (
    containers,
    garden_containers,
    machine_types,
    model_memory,
)
from t2i_cli.vertex.machine_types import PriceTable, ReplicaHardware
from t2i_cli.vertex.model_memory import ModelMemory
from t2i_cli.vertex.model_source import ModelSource

_IDLE_RANGE = range(300, 28801)
"""Seconds of idle time before scaling to zero that Vertex AI allows."""
_ACCOUNT = re.compile(r"[^@\s]+@[^@\s]+\.gserviceaccount\.com")
MAX_REPLICAS = 1000
"""More than any project's quota; Google has no limit of its own."""


@dataclass(frozen=True, kw_only=True)
class CheckedOptions:
    """A deployment's options, each valid; `idle` and `ttl` are in seconds, `memory` is the need."""

    name: str
    serving: str
    image: str | None
    source: ModelSource
    hardware: ReplicaHardware
    memory: ModelMemory | None
    prices: PriceTable
    idle: int | None
    ttl: int


def check_values(spec: DeploymentSpec) -> tuple[int, int | None]:
    """The seconds of TTL and idle time; checks all that is wrong whatever the model and region.

    Raises InputError.
    """
    ttl = _duration("--ttl", spec.ttl)
    idle = None if spec.scale_to_zero is None else _duration("--scale-to-zero", spec.scale_to_zero)
    _check_replicas(spec, idle)
    for account_option in (spec.service_account, spec.scheduler_account):
        if account_option and not is_service_account(account_option):
            raise InputError(
                f"{account_option} is no service account: they end in .gserviceaccount.com."
            )
    if spec.max_cost is not None and not (spec.max_cost >= 0 and math.isfinite(spec.max_cost)):
        raise InputError("--max-cost must be USD, as 5 or 2.50.")
    _check_name(spec.name)
    machine_types.check_hardware_names(spec.machine_type, spec.accelerator)
    if spec.serving is not None:
        containers.check_serving(spec.serving)
    return ttl, idle


def check_options(spec: DeploymentSpec, region: str) -> CheckedOptions:
    """The options with what follows from them; may ask the Hub whether the model needs a token.

    Raises InputError, ModelError, or what the Hub's failure is.
    """
    ttl, idle = check_values(spec)
    prices = machine_types.load_prices()
    serving, image = containers.choose_container(spec.serving, spec.image)
    source = containers.find_source(spec.model, serving)
    if serving == "model-garden":
        garden_containers.find_container(source)
        _check_reader(source, spec.service_account)
    memory = model_memory.catalog_memory(source.spec)
    if memory is None and source.folder and serving != "torchserve":
        memory = model_memory.folder_memory(source.folder)
    return CheckedOptions(
        name=spec.name or _default_name(source),
        serving=serving,
        image=image if serving == "t2i" else None,
        source=source,
        hardware=machine_types.choose_hardware(
            spec.machine_type, spec.accelerator, source.spec, region=region, memory=memory
        ),
        memory=memory,
        prices=prices,
        idle=idle,
        ttl=ttl,
    )


def is_service_account(account: str) -> bool:
    """Whether the address is that of a service account, not of a person."""
    return _ACCOUNT.fullmatch(account) is not None


def weights_reader(options: CheckedOptions, artifacts: str | None, account: str | None) -> str:
    """Who reads which weights, for people; `artifacts` is their gs:// address if they have one.

    https://cloud.google.com/vertex-ai/docs/general/custom-service-account
    """
    if artifacts is None:
        in_image = options.serving == "t2i" and options.source.spec.repo is None
        return "nobody: they are in the image" if in_image else "the container, from the Hub"
    if options.serving == "model-garden":
        bucket = artifacts.removeprefix("gs://").split("/")[0]
        return f"the container as {account}; it needs roles/storage.objectViewer on gs://{bucket}"
    whose = f", as {account}" if account else ""
    return f"Vertex AI's service agent, which copies them; the container reads the copy{whose}"


def _check_replicas(spec: DeploymentSpec, idle: int | None) -> None:
    """Raise InputError for numbers of replicas, or an idle time, that Vertex AI does not take."""
    if idle is not None and idle not in _IDLE_RANGE:
        raise InputError("--scale-to-zero must be from 5m to 8h, which Vertex AI takes.")
    if idle is not None and spec.min_replicas != 1:
        raise InputError("--scale-to-zero leaves no replica running; leave --min-replicas out.")
    if not 1 <= spec.min_replicas <= spec.max_replicas:
        raise InputError("--min-replicas must be at least 1, and no more than --max-replicas.")
    if spec.max_replicas > MAX_REPLICAS:
        raise InputError(f"--max-replicas must be at most {MAX_REPLICAS}.")


def _check_reader(source: ModelSource, account: str | None) -> None:
    """Raise InputError if a ready-made container may not read the weights from their bucket."""
    if account or not (source.needs_upload or source.uri):
        return
    where = source.uri or "the bucket that they are uploaded to"
    raise InputError(
        f"Google's ready-made container may not read the weights of {source.label_name} from "
        f"{where}: without an account of yours it runs as one of Google's, which has no access.",
        hint="--service-account ACCOUNT names one with roles/storage.objectViewer on it; "
        "--serving t2i needs none (`t2i remote build`).",
        field="service_account",
    )


def _duration(option: str, text: str) -> int:
    """An option's duration in seconds; raises InputError."""
    seconds = parse_duration(text)
    if not seconds:
        raise InputError(f"{option} {text} is no duration; write it as 90m or 2h.")
    return seconds


def _default_name(source: ModelSource) -> str:
    """The deployment's name, derived from the model's."""
    short = source.spec.name.split("/")[-1].lower()
    return re.sub("[^a-z0-9]+", "-", short).strip("-")[:40].rstrip("-") or "model"


def _check_name(name: str | None) -> None:
    """Raise InputError if a deployment's name has another form than labels and resources take."""
    if name is not None and not re.fullmatch("[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?", name):
        raise InputError(
            f"--name {name} must be 1 to 40 lowercase letters, digits and inner hyphens."
        )
