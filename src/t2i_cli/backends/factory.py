"""Create a backend from a command's options and the settings."""

import os
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from t2i_cli import durations
from t2i_cli.backend import Backend
from t2i_cli.errors import InputError
from t2i_cli.files.user_paths import expand_home
from t2i_cli.image_formats import ImageFormat
from t2i_cli.net.retry import RetryPolicy
from t2i_cli.settings import defaults, store
from t2i_cli.settings.options import (
    BackendOptions,
    CallOptions,
    ClusterOptions,
    CostOptions,
    DeviceOptions,
    EndpointOptions,
    HttpServerOptions,
    InferenceProviderOptions,
    LocationOptions,
)
from t2i_cli.terminal.console import console

if TYPE_CHECKING:
    from t2i_cli.backends.local import LocalOptions
    from t2i_cli.backends.ray import RayBackend

_BACKENDS_BY_OPTIONS = {
    HttpServerOptions: ("http",),
    EndpointOptions: ("vertex",),
    InferenceProviderOptions: ("hf",),
    CallOptions: ("http", "vertex", "gemini", "hf"),
    DeviceOptions: ("local", "ray"),
    ClusterOptions: ("ray",),
    CostOptions: ("gemini", "hf"),
}
"""The backends that each group of options applies to."""
_LOCATION_BACKENDS = ("vertex", "gemini")
"""The backends in a project and a region of Google Cloud."""
_LOCAL_MODELS = ("local", "ray")
"""The backends that load models themselves, from the Hub or from folders."""
ALL_DEVICES = "all"
"""The value of --device that stands for the ray backend on every GPU of this machine."""


def create_backend(
    options: BackendOptions | None = None,
    *,
    keep_alive: str | None = None,
    batch_size: int | None = 1,
    strict: bool = False,
    format: ImageFormat = "png",
    lenient: bool | None = False,
    worker: bool = False,
    plan_only: bool = False,
) -> Backend:
    """Create the backend of the options, else of the settings, else the local one.

    `batch_size` is the number of images per batch; `None` measures which size is fastest. `strict`
    is for the same bits on each machine of a kind. `format` is the image files' format, which
    remote backends may transfer images in. `lenient` is `None` for a command without that option.
    With `worker`, the local backend uses the warm worker if `keep_alive` is not zero. A backend
    for a plan alone (`plan_only`) does without the account and the server that an image needs.
    Raises InputError if an option does not apply to the backend.
    """
    options = options or BackendOptions()
    options = _settle_all_devices(options)
    name = backend_name(options)
    # Every backend accepts a batch size of 1, so that value is not checked.
    size = None if batch_size == 1 else batch_size
    other_values: list[tuple[str, object, tuple[str, ...]]] = [
        ("keep_alive", keep_alive, ("local",)),
        ("batch_size", size, _LOCAL_MODELS),
        ("strict", strict or None, _LOCAL_MODELS),
    ]
    _check_options(name, options, other_values, lenient)
    match name:
        case "http":
            return _http_backend(options, plan_only)
        case "vertex":
            return _vertex_backend(options, format, plan_only)
        case "gemini":
            return _gemini_backend(options, format, plan_only)
        case "hf":
            return _hf_backend(options, plan_only)
    local_options = _local_options(options.device, lenient, batch_size, strict=strict)
    if name == "ray":
        return _ray_backend(options, local_options, format)
    seconds = durations.parse_duration(store.resolve_setting("keep_alive", keep_alive) or "0s")
    if worker and seconds:
        from t2i_cli.worker.backend import WorkerBackend

        return WorkerBackend(local_options, seconds, create_local_backend, format)
    return create_local_backend(local_options)


def default_model(backend: str | None) -> str | None:
    """The model of the settings for backends that load models; `None` for servers' own."""
    return store.get_setting("model") if loads_models(backend) else None


def loads_models(backend: str | None) -> bool:
    """Whether the backend of that name, else of the settings, loads models itself."""
    return (store.resolve_setting("backend", backend) or "local") in _LOCAL_MODELS


def backend_name(options: BackendOptions) -> str:
    """The name of the backend that the options and the settings choose."""
    if options.device.device == ALL_DEVICES and options.backend is None:
        return "ray"
    return store.resolve_setting("backend", options.backend) or "local"


def _settle_all_devices(options: BackendOptions) -> BackendOptions:
    """The options with `--device all` as the ray backend that it stands for."""
    if options.device.device != ALL_DEVICES:
        return options
    if options.backend not in (None, "ray"):
        raise InputError(
            f"--device all is short for --backend ray, not for {options.backend}.", field="device"
        )
    return replace(options, backend="ray", device=replace(options.device, device=None))


def _check_options(
    backend: str,
    options: BackendOptions,
    others: Sequence[tuple[str, object, tuple[str, ...]]],
    lenient: bool | None,
) -> None:
    """Raise InputError for an option that does not apply to the backend; warn if `lenient`.

    `others` are values that are in no group, each with its name and the backends that it is for.
    """
    given: list[tuple[str, tuple[str, ...]]] = []
    groups = (
        options.http,
        options.hf,
        options.endpoint,
        options.calls,
        options.cost,
        options.device,
        options.cluster,
    )
    for group in groups:
        changed = [
            field.name for field in fields(group) if getattr(group, field.name) != field.default
        ]
        given += [(name, _backends_of(group, name)) for name in changed]
    given += [(name, backends) for name, value, backends in others if value is not None]
    for name, backends in given:
        if backend in backends:
            continue
        flag = f"--{name.replace('_', '-')}"
        if not lenient:
            without = "" if lenient is None else "; --lenient goes on without it"
            raise InputError(
                f"{flag} means nothing to the {backend} backend.",
                hint=f"It is for --backend {' or '.join(backends)}{without}.",
                field=name,
            )
        console.warn(f"{flag} means nothing to the {backend} backend. It is left out.")


def _backends_of(group: object, name: str) -> tuple[str, ...]:
    """The backends that an option applies to."""
    if isinstance(group, LocationOptions) and name in {
        each.name for each in fields(LocationOptions)
    }:
        return _LOCATION_BACKENDS
    return _BACKENDS_BY_OPTIONS[type(group)]


def _local_options(
    options: DeviceOptions, lenient: bool | None, batch_size: int | None, *, strict: bool
) -> "LocalOptions":
    from t2i_cli.backends.local import LocalOptions

    compile_mode = store.resolve_setting("compile", options.compile) or "auto"
    if strict and compile_mode == "auto":
        # Compiled code differs in the last bits, and when `auto` begins with it depends on times.
        compile_mode = "off"
    return LocalOptions(
        device=store.resolve_setting("device", options.device),
        dtype=store.resolve_setting("dtype", options.dtype),
        memory=store.resolve_setting("memory", options.memory) or "auto",
        attention_slicing=options.attention_slicing,
        clear_cache=options.clear_cache,
        trust_remote_code=options.trust_remote_code,
        safety_checker=not options.no_safety_checker,
        offline=options.offline,
        lenient=lenient,
        batch_size=batch_size,
        strict=strict,
        compile=compile_mode,  # type: ignore[arg-type]
        lora_dir=_folder(store.resolve_setting("lora_dir", options.lora_dir)),
    )


def _folder(name: str | None) -> str | None:
    """A folder by its whole path: workers have working folders of their own."""
    return None if name is None else str(Path(expand_home(name)).absolute())


def create_local_backend(options: "LocalOptions") -> Backend:
    """Create a local backend in this process; it can stop an idle worker to free memory."""
    from t2i_cli.backends.local import LocalBackend
    from t2i_cli.worker.spawn import evict_idle_worker

    return LocalBackend(options, evict_idle_worker)


def _ray_backend(
    options: BackendOptions, local: "LocalOptions", format: ImageFormat
) -> "RayBackend":
    from t2i_cli.backends.ray import RayBackend, RayOptions
    from t2i_cli.backends.ray.options import LOCAL_ADDRESS, check_worker_device

    cluster = options.cluster
    check_worker_device(local.device, cluster.gpus_per_worker)
    workers = store.resolve_setting("ray_workers", cluster.workers) or "auto"
    share = store.resolve_setting("ray_gpus_per_worker", cluster.gpus_per_worker)
    timeout = store.resolve_setting("ray_worker_timeout", cluster.worker_timeout)
    # RAY_ADDRESS is Ray's own variable, which is set in the jobs of a cluster.
    address = store.resolve_setting("ray_address", cluster.address) or os.environ.get("RAY_ADDRESS")
    return RayBackend(
        RayOptions(
            local=local,
            address=address or LOCAL_ADDRESS,
            workers=None if workers == "auto" else int(workers),
            gpus_per_worker=float(share or 1),
            format=format,
            worker_timeout=float(timeout or defaults.WORKER_TIMEOUT),
        ),
        create_local_backend,
    )


def _http_backend(options: BackendOptions, plan_only: bool) -> Backend:
    from t2i_cli.backends.http import HttpBackend, HttpOptions
    from t2i_cli.backends.http import options as http

    url = http.parse_base_url(options.http.url or store.get_setting("http_url"))
    key = http.api_key_for(url)
    if key and http.is_plaintext(url):
        console.warn(f"The API key goes to {url} unencrypted; https:// would hide it.")
    return HttpBackend(
        HttpOptions(
            url=url,
            key=key,
            dialect=store.resolve_setting("http_dialect", options.http.dialect),
            retry_policy=_retry_policy(options.calls, plan_only),
            concurrency=_concurrency(options.calls),
            plan_only=plan_only,
            on_note=console.note,
        )
    )


def _hf_backend(options: BackendOptions, plan_only: bool) -> Backend:
    from t2i_cli.backends.hf import HfBackend, HfOptions

    return HfBackend(
        HfOptions(
            provider=store.resolve_setting("hf_provider", options.hf.provider) or "auto",
            bill_to=store.resolve_setting("hf_bill_to", options.hf.bill_to),
            retry_policy=_retry_policy(options.calls, plan_only),
            concurrency=_concurrency(options.calls),
            plan_only=plan_only,
        )
    )


def _vertex_backend(options: BackendOptions, format: ImageFormat, plan_only: bool) -> Backend:
    from t2i_cli.backends.vertex import VertexBackend, VertexOptions

    endpoint = store.resolve_setting("vertex_endpoint", options.endpoint.endpoint)
    return VertexBackend(
        VertexOptions(
            endpoint=replace(options.endpoint, endpoint=endpoint),
            format=format,
            retry_policy=_retry_policy(options.calls, plan_only),
            concurrency=_concurrency(options.calls),
            plan_only=plan_only,
        )
    )


def _gemini_backend(options: BackendOptions, format: ImageFormat, plan_only: bool) -> Backend:
    from t2i_cli.backends.gemini import GeminiBackend, GeminiOptions

    region = store.resolve_setting("gemini_region", options.endpoint.region)
    return GeminiBackend(
        GeminiOptions(
            place=replace(options.endpoint, region=region or defaults.GEMINI_REGION),
            model=store.get_setting("gemini_model"),
            format=format,
            retry_policy=_retry_policy(options.calls, plan_only),
            concurrency=_concurrency(options.calls),
            plan_only=plan_only,
        )
    )


def _retry_policy(calls: CallOptions, plan_only: bool) -> RetryPolicy:
    retries = calls.retries
    if retries is None:
        retries = int(store.get_setting("retries") or defaults.RETRIES)
    timeout = calls.timeout or float(store.get_setting("timeout") or defaults.TIMEOUT)
    return RetryPolicy(
        retries=retries, timeout=timeout, from_options=True, retry_unreachable=not plan_only
    )


def _concurrency(calls: CallOptions) -> int | None:
    found = calls.concurrency or store.get_setting("concurrency")
    return int(found) if found else None
