"""Create a backend from a command's options and the settings."""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import TYPE_CHECKING

from t2i_cli import durations
from t2i_cli.backend import Backend
from t2i_cli.errors import InputError
from t2i_cli.image_formats import ImageFormat
from t2i_cli.net.retry import RetryPolicy
from t2i_cli.settings import defaults, store
from t2i_cli.settings.options import (
    BackendOptions,
    CallOptions,
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

_BACKENDS_BY_OPTIONS = {
    HttpServerOptions: ("http",),
    EndpointOptions: ("vertex",),
    InferenceProviderOptions: ("hf",),
    CallOptions: ("http", "vertex", "gemini", "hf"),
    DeviceOptions: ("local",),
    CostOptions: ("gemini", "hf"),
}
"""The backends that each group of options applies to."""
_LOCATION_BACKENDS = ("vertex", "gemini")
"""The backends in a project and a region of Google Cloud."""


def create_backend(
    options: BackendOptions | None = None,
    *,
    keep_alive: str | None = None,
    batch_size: int | None = 1,
    strict: bool = False,
    format: ImageFormat = "png",
    lenient: bool | None = False,
    worker: bool = False,
) -> Backend:
    """Create the backend of the options, else of the settings, else the local one.

    `batch_size` is the number of images per batch; `None` measures which size is fastest. `strict`
    is for the same bits on each machine of a kind. `format` is the image files' format, which
    remote backends may transfer images in. `lenient` is `None` for a command without that option.
    With `worker`, the local backend uses the warm worker if `keep_alive` is not zero. Raises
    InputError if an option does not apply to the backend.
    """
    options = options or BackendOptions()
    name = store.resolve_setting("backend", options.backend) or "local"
    # Every backend accepts a batch size of 1, so that value is not checked.
    size = None if batch_size == 1 else batch_size
    local_values = {"keep_alive": keep_alive, "batch_size": size, "strict": strict or None}
    _check_options(name, options, local_values, lenient)
    match name:
        case "http":
            return _http_backend(options)
        case "vertex":
            return _vertex_backend(options, format)
        case "gemini":
            return _gemini_backend(options, format)
        case "hf":
            return _hf_backend(options)
    local_options = _local_options(options.device, lenient, batch_size, strict=strict)
    seconds = durations.parse_duration(store.resolve_setting("keep_alive", keep_alive) or "0s")
    if worker and seconds:
        from t2i_cli.worker.backend import WorkerBackend

        return WorkerBackend(local_options, seconds, create_local_backend, format)
    return create_local_backend(local_options)


def default_model(backend: str | None) -> str | None:
    """The model of the settings for the local backend, else `None`: servers have their own."""
    local = (store.resolve_setting("backend", backend) or "local") == "local"
    return store.get_setting("model") if local else None


def _check_options(
    backend: str, options: BackendOptions, local: Mapping[str, object], lenient: bool | None
) -> None:
    """Raise InputError for an option that does not apply to the backend; warn if `lenient`."""
    given: list[tuple[str, tuple[str, ...]]] = []
    groups = (
        options.http,
        options.hf,
        options.endpoint,
        options.calls,
        options.cost,
        options.device,
    )
    for group in groups:
        changed = [
            field.name for field in fields(group) if getattr(group, field.name) != field.default
        ]
        given += [(name, _backends_of(group, name)) for name in changed]
    given += [(name, ("local",)) for name, value in local.items() if value is not None]
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
    )


def create_local_backend(options: "LocalOptions") -> Backend:
    """Create a local backend in this process; it can stop an idle worker to free memory."""
    from t2i_cli.backends.local import LocalBackend
    from t2i_cli.worker.spawn import evict_idle_worker

    return LocalBackend(options, evict_idle_worker)


def _http_backend(options: BackendOptions) -> Backend:
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
            retry_policy=_retry_policy(options.calls),
            concurrency=_concurrency(options.calls),
            on_note=console.note,
        )
    )


def _hf_backend(options: BackendOptions) -> Backend:
    from t2i_cli.backends.hf import HfBackend, HfOptions

    return HfBackend(
        HfOptions(
            provider=store.resolve_setting("hf_provider", options.hf.provider) or "auto",
            bill_to=store.resolve_setting("hf_bill_to", options.hf.bill_to),
            retry_policy=_retry_policy(options.calls),
            concurrency=_concurrency(options.calls),
        )
    )


def _vertex_backend(options: BackendOptions, format: ImageFormat) -> Backend:
    from t2i_cli.backends.vertex import VertexBackend, VertexOptions

    endpoint = store.resolve_setting("vertex_endpoint", options.endpoint.endpoint)
    return VertexBackend(
        VertexOptions(
            endpoint=replace(options.endpoint, endpoint=endpoint),
            format=format,
            retry_policy=_retry_policy(options.calls),
            concurrency=_concurrency(options.calls),
        )
    )


def _gemini_backend(options: BackendOptions, format: ImageFormat) -> Backend:
    from t2i_cli.backends.gemini import GeminiBackend, GeminiOptions

    region = store.resolve_setting("gemini_region", options.endpoint.region)
    return GeminiBackend(
        GeminiOptions(
            place=replace(options.endpoint, region=region or defaults.GEMINI_REGION),
            model=store.get_setting("gemini_model"),
            format=format,
            retry_policy=_retry_policy(options.calls),
            concurrency=_concurrency(options.calls),
        )
    )


def _retry_policy(calls: CallOptions) -> RetryPolicy:
    retries = calls.retries
    if retries is None:
        retries = int(store.get_setting("retries") or defaults.RETRIES)
    timeout = calls.timeout or float(store.get_setting("timeout") or defaults.TIMEOUT)
    return RetryPolicy(retries=retries, timeout=timeout, from_options=True)


def _concurrency(calls: CallOptions) -> int | None:
    found = calls.concurrency or store.get_setting("concurrency")
    return int(found) if found else None
