"""`t2i serve`: the API, the page, and what Vertex runs in its container."""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from t2i_cli.cli import options
from t2i_cli.console import console
from t2i_cli.errors import InputError
from t2i_cli.server.options import API_KEY_VARIABLE, ServerLimits, ServerOptions
from t2i_cli.settings import store

if TYPE_CHECKING:
    import socket

    from t2i_cli.backend import Backend
    from t2i_cli.events import OnEvent
    from t2i_cli.server.api.vertex import VertexContainer

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 7860
_USUAL = ServerLimits()


def serve(
    model: options.ModelOpt = None,
    host: Annotated[
        str | None,
        typer.Option("--host", help=f"Address; others than loopback need a key. [{DEFAULT_HOST}]"),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option("--port", min=0, max=65535, help=f"0 finds a free one. [{DEFAULT_PORT}]"),
    ] = None,
    uds: Annotated[
        Path | None,
        typer.Option("--uds", help="Unix socket, in a folder of your own, in place of a port."),
    ] = None,
    api_key_file: Annotated[
        Path | None,
        typer.Option("--api-key-file", help="File with the key that clients need; or T2I_API_KEY."),
    ] = None,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option("--allowed-host", help="Host name to answer to, or *; may be repeated."),
    ] = None,
    cors_origin: Annotated[
        list[str] | None,
        typer.Option("--cors-origin", help="Site whose pages may ask; may be repeated."),
    ] = None,
    queue: Annotated[
        int, typer.Option("--queue", min=0, help="Jobs that may wait; more get 429.")
    ] = _USUAL.queue,
    max_batch: Annotated[
        int, typer.Option("--max-batch", min=1, help="Waiting images that may share a pass.")
    ] = _USUAL.max_batch,
    request_timeout: Annotated[
        float,
        typer.Option(
            "--request-timeout",
            min=0.001,
            callback=options.finite,
            help="Seconds for a job, waiting too.",
        ),
    ] = _USUAL.timeout or 0.0,
    max_images: Annotated[
        int, typer.Option("--max-images", min=1, help="Images that one job may ask for.")
    ] = _USUAL.images,
    max_pixels: Annotated[
        int, typer.Option("--max-pixels", min=1, help="Width times height of an image, at most.")
    ] = _USUAL.pixels,
    max_steps: Annotated[
        int, typer.Option("--max-steps", min=1, help="Denoising steps of an image, at most.")
    ] = _USUAL.steps,
    log_prompts: Annotated[
        bool, typer.Option("--log-prompts", help="Write every prompt to stderr.")
    ] = False,
    backend: options.BackendOpt = None,
    url: options.UrlOpt = None,
    dialect: options.DialectOpt = None,
    endpoint: options.EndpointOpt = None,
    project: options.ProjectOpt = None,
    region: options.RegionOpt = None,
    api_endpoint: options.ApiEndpointOpt = None,
    serving: options.ServingOpt = None,
    retries: options.RetriesOpt = None,
    timeout: options.TimeoutOpt = None,
    concurrency: options.ConcurrencyOpt = None,
    device: options.DeviceOpt = None,
    dtype: options.DtypeOpt = None,
    memory: options.MemoryOpt = None,
    attention_slicing: options.AttentionSlicingOpt = None,
    clear_cache: options.ClearCacheOpt = False,
    revision: options.RevisionOpt = None,
    trust_remote_code: options.TrustRemoteCodeOpt = False,
    no_safety_checker: options.NoSafetyCheckerOpt = False,
    offline: options.OfflineOpt = False,
    json: options.JsonOpt = False,
    quiet: options.QuietOpt = False,
    verbose: options.VerboseOpt = False,
) -> None:
    """Serve a model over HTTP: OpenAI's images API, a page at /, and more; see /docs."""
    console.configure(json=json, quiet=quiet, verbose=verbose)
    if offline:
        store.set_offline()
    key = _key(api_key_file)
    hosts, origins = tuple(allowed_host or ()), tuple(cors_origin or ())
    container, listening = _place(host, port, uds, key, hosts, origins)
    from t2i_cli.backends.factory import create_backend, default_model
    from t2i_cli.server.app import create_app
    from t2i_cli.server.engine import Engine
    from t2i_cli.server.runner import ServerLog, run_server

    local = (store.resolve_setting("backend", backend) or "local") == "local"
    made = create_backend(
        backend=backend,
        url=url,
        dialect=dialect,
        endpoint=endpoint,
        project=project,
        region=region,
        api_endpoint=api_endpoint,
        serving=serving,
        retries=retries,
        timeout=timeout,
        concurrency=concurrency,
        device=device,
        dtype=dtype,
        memory=memory,
        attention_slicing=attention_slicing,
        clear_cache=clear_cache,
        trust_remote_code=trust_remote_code,
        no_safety_checker=no_safety_checker,
        offline=offline,
        lenient=None,
        # This machine finds out how many images a pass should have.
        batch_size=None if local else 1,
    )
    limits = ServerLimits(
        queue=queue,
        max_batch=max_batch,
        timeout=request_timeout,
        images=max_images,
        pixels=max_pixels,
        steps=max_steps,
    )
    access = ServerOptions(
        api_key=key,
        allowed_hosts=hosts,
        cors_origins=origins,
        container=container,
    )
    named = model or default_model(backend)
    uri = container.storage_uri if container and local and not named else None
    with (
        ExitStack() as end,
        listening as listener,
        console.redirect_stdout(),
        ServerLog(console, log_prompts) as log,
    ):
        found = _fetching(uri, made, end) if uri else named
        engine = Engine(made, found, limits, revision=revision)
        engine.line.observers.append(log)
        app = create_app(engine, access)
        run_server(app, engine, listener, on_ready=lambda: _announce(listener, engine.spec.name))


def _key(file: Path | None) -> str | None:
    """The key from the file or the environment; raises InputError for one that cannot be sent."""
    source = str(file) if file else API_KEY_VARIABLE
    try:
        key = file.read_text(encoding="utf-8").strip() if file else os.environ.get(API_KEY_VARIABLE)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"Cannot read the key in '{file}': {error}.") from error
    if key is None:
        return None
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise InputError(f"{source} holds no key: letters, digits and signs, without spaces.")
    return key


def _place(
    host: str | None,
    port: int | None,
    uds: Path | None,
    key: str | None,
    hosts: tuple[str, ...],
    origins: tuple[str, ...],
) -> "tuple[VertexContainer | None, AbstractContextManager[socket.socket]]":
    """What Vertex said, if it runs this, and the socket to be; raises InputError.

    `hosts` and `origins` are those that may be named in a request.
    """
    from t2i_cli.server import runner, security
    from t2i_cli.server.api.vertex import VertexContainer

    security.check_names(hosts, origins)
    if container := VertexContainer.from_environment(os.environ):
        if hosts:
            raise InputError(
                "What Vertex runs (AIP_HTTP_PORT) answers to every host.", field="allowed_host"
            )
        if (host, port, uds) != (None, None, None):
            raise InputError("Vertex says where to listen (AIP_HTTP_PORT).", field="host")
        return container, runner.listen_tcp("0.0.0.0", container.port)  # noqa: S104 - as Vertex demands
    if uds is not None:
        if host is not None or port is not None:
            raise InputError("Give --uds, or --host and --port.", field="uds")
        return None, runner.listen_unix(uds)
    host = host or DEFAULT_HOST
    if key is None and not runner.is_loopback_host(host):
        raise InputError(
            f"Others can reach {host}: that needs a key.",
            hint=f"Set {API_KEY_VARIABLE} or give --api-key-file, or listen on {DEFAULT_HOST}.",
            field="host",
        )
    return None, runner.listen_tcp(host, DEFAULT_PORT if port is None else port)


def _fetching(uri: str, backend: "Backend", end: ExitStack) -> "Callable[[OnEvent], str]":
    """What brings the model that Vertex has laid there, and names it; `end` removes the copy."""
    from t2i_cli.backends.local import LocalBackend
    from t2i_cli.server import gcs_download

    def find(on_event: "OnEvent") -> str:
        folder = gcs_download.download_artifacts(uri, on_event, end)
        if isinstance(backend, LocalBackend) and gcs_download.is_bucket_uri(uri):
            # The copy's own place would differ from replica to replica, and be in every image.
            backend.register_folder(uri, folder)
            return uri
        return str(folder)

    return find


def _announce(listener: "socket.socket", model: str) -> None:
    """Say where the model is served, on standard output."""
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
