"""`t2i serve`: the HTTP server with its API and page, also inside Vertex AI's container."""

import os
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from t2i_cli.cli.options import (
    ConsoleOptions,
    DownloadOptions,
    ModelOpt,
    PartOptions,
    QuantizeOpt,
    RevisionOpt,
    StylesOpt,
)
from t2i_cli.errors import InputError, T2IError
from t2i_cli.request import GenerateRequest
from t2i_cli.request_fields import FIELDS
from t2i_cli.server.options import API_KEY_VARIABLE, ServerLimits, ServerOptions
from t2i_cli.settings import store
from t2i_cli.settings.options import BackendOptions
from t2i_cli.terminal.console import console

if TYPE_CHECKING:
    import socket

    from t2i_cli.backend import Backend
    from t2i_cli.events import OnEvent
    from t2i_cli.server.security import ApiKey
    from t2i_cli.server.vertex_container import VertexContainer

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 7860
UNHEALTHY_SECONDS = 30.0
"""For so long a container that cannot serve answers Vertex's health checks with the reason.

Then it ends, so that the deployment fails soon, rather than when its hour is over.
"""
_MAX_KEY_BYTES = 2**16


@dataclass(frozen=True, kw_only=True)
class ListenOptions:
    """The address on which the server listens."""

    PANEL: ClassVar = "Address"

    host: Annotated[
        str | None,
        typer.Option("--host", help=f"Address; others than loopback need a key. [{DEFAULT_HOST}]"),
    ] = None
    port: Annotated[
        int | None,
        typer.Option("--port", min=0, max=65535, help=f"0 finds a free one. [{DEFAULT_PORT}]"),
    ] = None
    uds: Annotated[
        Path | None,
        typer.Option("--uds", help="Unix socket, in a folder of your own, in place of a port."),
    ] = None


@dataclass(frozen=True, kw_only=True)
class AccessOptions:
    """Access control and logging."""

    PANEL: ClassVar = "Access"

    api_key_file: Annotated[
        Path | None,
        typer.Option(
            "--api-key-file",
            help="File with the key that clients need; or T2I_API_KEY. SIGHUP reads it again.",
        ),
    ] = None
    insecure_key_file: Annotated[
        bool,
        typer.Option(
            "--insecure-key-file", help="Take a key file that others can read, or a short key."
        ),
    ] = False
    allowed_host: Annotated[
        list[str] | None,
        typer.Option("--allowed-host", help="Host name to answer to, or *; may be repeated."),
    ] = None
    cors_origin: Annotated[
        list[str] | None,
        typer.Option("--cors-origin", help="Site whose pages may ask; may be repeated."),
    ] = None
    log_prompts: Annotated[
        bool, typer.Option("--log-prompts", help="Write every prompt to stderr.")
    ] = False


def serve(
    listen: ListenOptions,
    access: AccessOptions,
    limits: ServerLimits,
    backend: BackendOptions,
    consent: DownloadOptions,
    console_options: ConsoleOptions,
    part_options: PartOptions,
    model: ModelOpt = None,
    revision: RevisionOpt = None,
    quantize: QuantizeOpt = None,
    styles: StylesOpt = None,
) -> None:
    """Serve a model over HTTP: OpenAI's images API, a page at /, and more; see /docs."""
    console.configure(**vars(console_options))
    if backend.device.offline:
        store.set_offline()
    options = ServerOptions(
        api_key=_read_api_key(access),
        allowed_hosts=tuple(access.allowed_host or ()),
        cors_origins=tuple(access.cors_origin or ()),
    )
    container, listening = _listening_socket(listen, options)
    options = replace(options, container=container)
    from t2i_cli.backends.factory import (
        backend_name,
        create_backend,
        default_model,
        loads_models,
    )
    from t2i_cli.cli.style_option import chosen_styles
    from t2i_cli.server.app import create_app
    from t2i_cli.server.engine import Engine
    from t2i_cli.server.runner import ServerLog, run_server

    with ExitStack() as cleanup:
        listener = cleanup.enter_context(listening)
        name = backend_name(backend)
        local = name == "local"
        if style_file := chosen_styles(styles):
            style_file.names  # noqa: B018 - one that cannot be read is told before a model is loaded
        # Backends that load models choose their batch size; others get one request at a time.
        batch_size = None if loads_models(name) else 1
        image_backend = create_backend(backend, lenient=None, batch_size=batch_size)
        if backend.cost.max_cost is not None:
            from t2i_cli.cost_limit import CostLimitedBackend

            image_backend = CostLimitedBackend(
                image_backend, backend.cost.max_cost, fails_rest=True
            )
        if not loads_models(name):
            # A call of a server makes one image, and each is to end by itself.
            limits = replace(limits, max_batch=1)
        model_name = model or default_model(name)
        if quantize and not loads_models(name):
            raise InputError("--quantize is for a model that t2i loads.", field="quantize")
        parts = part_options.given()
        if parts and not loads_models(name):
            flag = FIELDS[next(iter(parts))].flags[0]
            raise InputError(f"{flag} is for a model that t2i loads.", field=next(iter(parts)))
        if local and not container:
            named = {"model": model_name, "revision": revision, "quantize": quantize, **parts}
            asked = GenerateRequest(prompt="-", **named)  # type: ignore[arg-type]
            _confirm_download(image_backend, asked, yes=consent.yes)
        storage_uri = container.storage_uri if container and local and not model_name else None
        cleanup.enter_context(console.redirect_stdout())
        log = cleanup.enter_context(ServerLog(console, access.log_prompts))
        model_source = (
            _artifact_loader(
                storage_uri,
                image_backend,
                cleanup,
                store.resolve_setting("device", backend.device.device),
            )
            if storage_uri
            else model_name
        )
        engine = Engine(
            *(image_backend, model_source, limits),
            revision=revision,
            quantize=quantize,
            parts=parts,
            styles=style_file,
        )
        engine.batcher.observers.append(log)
        app = create_app(engine, options)
        failures: list[T2IError | BrokenPipeError] = []
        reported: list[T2IError] = []

        def announce() -> None:
            try:
                _announce(listener, engine.spec.shown_name)
            except (T2IError, BrokenPipeError) as error:  # standard output cannot be written to
                failures.append(error)
                signal.raise_signal(signal.SIGTERM)

        def report(error: T2IError) -> float:
            if container is None:
                return 0
            reported.append(error)
            console.error(error)
            console.note(
                f"{container.health_route} answers 503 with this for {UNHEALTHY_SECONDS:.0f} s; "
                "then the server ends."
            )
            return UNHEALTHY_SECONDS

        try:
            run_server(
                app,
                engine,
                listener,
                on_ready=announce,
                on_hangup=_key_reload(access, app.state.api_key),
                on_failure=report,
                root_log=console.has_structured_log,
            )
        except T2IError as error:
            if error not in reported:
                raise
            raise typer.Exit(error.exit_code) from error
    if failures:
        raise failures[0]


def _confirm_download(backend: "Backend", request: GenerateRequest, *, yes: bool) -> None:
    """Ask before the model is downloaded, if that takes gigabytes. Raises T2IError."""
    from t2i_cli.models.request_resolution import resolve_request
    from t2i_cli.terminal import download_consent

    if download_consent.asks_for_downloads(console, yes=yes):
        resolved = resolve_request(request, backend.describe(request))
        plan = backend.estimate(resolved) | {"model": resolved.model}
        download_consent.confirm_download([plan], console, yes=yes)


def _read_api_key(access: AccessOptions) -> str | None:
    """The API key from the file or the environment; raises InputError if it is not valid."""
    from t2i_cli.server.key_file import MIN_KEY_LENGTH, check_key, read_key_file

    if access.api_key_file:
        return read_key_file(access.api_key_file, insecure=access.insecure_key_file)
    if access.insecure_key_file:
        raise InputError("--insecure-key-file is for --api-key-file.", field="insecure_key_file")
    key = os.environ.get(API_KEY_VARIABLE)
    if key is None:
        return None
    if len(check_key(key, API_KEY_VARIABLE)) < MIN_KEY_LENGTH:
        console.warn(f"The key in {API_KEY_VARIABLE} has fewer than {MIN_KEY_LENGTH} characters.")
    return key


def _key_reload(access: AccessOptions, api_key: "ApiKey") -> "Callable[[], None] | None":
    """What SIGHUP does: read the key file again. A file with no good key changes nothing."""
    if access.api_key_file is None:
        return None

    def reload() -> None:
        try:
            api_key.value = _read_api_key(access)
        except InputError as error:
            console.warn(f"{error.message} The key stays as it was.")
        else:
            console.note(f"Read the key in '{access.api_key_file}' again.")

    return reload


def _listening_socket(
    listen: ListenOptions, options: ServerOptions
) -> "tuple[VertexContainer | None, AbstractContextManager[socket.socket]]":
    """Vertex's container settings, if in a container, and the socket; raises InputError."""
    from t2i_cli.server import listeners, security
    from t2i_cli.server.vertex_container import VertexContainer

    security.check_names(options.allowed_hosts, options.cors_origins)
    if container := VertexContainer.from_environment(os.environ):
        if options.allowed_hosts:
            raise InputError(
                "What Vertex runs (AIP_HTTP_PORT) answers to every host.", field="allowed_host"
            )
        if listen != ListenOptions():
            raise InputError("Vertex says where to listen (AIP_HTTP_PORT).", field="host")
        return container, listeners.listen_tcp("0.0.0.0", container.port)  # noqa: S104 - as Vertex demands
    if listen.uds is not None:
        if listen.host is not None or listen.port is not None:
            raise InputError("Give --uds, or --host and --port.", field="uds")
        return None, listeners.listen_unix(listen.uds)
    host = listen.host or DEFAULT_HOST
    if options.api_key is None and not listeners.is_loopback_host(host):
        raise InputError(
            f"Others can reach {host}: that needs a key.",
            hint=f"Set {API_KEY_VARIABLE} or give --api-key-file, or listen on {DEFAULT_HOST}.",
            field="host",
        )
    return None, listeners.listen_tcp(host, DEFAULT_PORT if listen.port is None else listen.port)


def _artifact_loader(
    uri: str, backend: "Backend", cleanup: ExitStack, requested_device: str | None
) -> "Callable[[OnEvent], str]":
    """A function that downloads Vertex's model artifacts and returns the model's name.

    `cleanup` removes the copy.
    """
    from t2i_cli.backends.local import LocalBackend, device
    from t2i_cli.server import gcs_download

    def load(on_event: "OnEvent") -> str:
        device.find_device(requested_device)  # before gigabytes are fetched
        folder = gcs_download.download_artifacts(uri, on_event, cleanup)
        if isinstance(backend, LocalBackend) and gcs_download.is_bucket_uri(uri):
            # The folder differs between replicas, and would be recorded in every image.
            backend.register_folder(uri, folder)
            return uri
        return str(folder)

    return load


def _announce(listener: "socket.socket", model: str) -> None:
    """Print the address of the server on standard output."""
    address = listener.getsockname()
    if isinstance(address, str):
        where = f"unix:{address}"
    else:
        host = f"[{address[0]}]" if ":" in address[0] else address[0]
        where = f"http://{host}:{address[1]}"
    if console.json:
        console.result_json({"url": where, "model": model})
    else:
        console.result(where)
