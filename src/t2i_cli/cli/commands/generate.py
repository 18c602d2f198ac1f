"""`t2i generate`: one prompt, a few images, by any backend."""

import sys
from typing import TYPE_CHECKING

from t2i_cli.cli import options
from t2i_cli.console import console
from t2i_cli.errors import InputError
from t2i_cli.request import GenerateRequest, ResolvedRequest, resolve_size
from t2i_cli.settings import store

if TYPE_CHECKING:
    from t2i_cli.backend import Backend
    from t2i_cli.output.image_writer import ImageWriter


def generate(
    prompt: options.PromptArg = None,
    prompt_option: options.PromptOpt = None,
    model: options.ModelOpt = None,
    negative_prompt: options.NegativePromptOpt = None,
    steps: options.StepsOpt = None,
    guidance: options.GuidanceOpt = None,
    seed: options.SeedOpt = None,
    count: options.CountOpt = 1,
    width: options.WidthOpt = None,
    height: options.HeightOpt = None,
    size: options.SizeOpt = None,
    scheduler: options.SchedulerOpt = None,
    output: options.OutputOpt = None,
    format: options.FormatOpt = None,
    overwrite: options.OverwriteOpt = False,
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
    keep_alive: options.KeepAliveOpt = None,
    revision: options.RevisionOpt = None,
    trust_remote_code: options.TrustRemoteCodeOpt = False,
    no_safety_checker: options.NoSafetyCheckerOpt = False,
    offline: options.OfflineOpt = False,
    show: options.ShowOpt = False,
    dry_run: options.DryRunOpt = False,
    lenient: options.LenientOpt = False,
    json: options.JsonOpt = False,
    quiet: options.QuietOpt = False,
    verbose: options.VerboseOpt = False,
) -> None:
    """Make an image from a prompt."""
    console.configure(json=json, quiet=quiet, verbose=verbose)
    if offline:
        store.set_offline()
    from t2i_cli import generate
    from t2i_cli.backends.factory import create_backend, default_model

    width, height = resolve_size(width, height, size)
    request = GenerateRequest(
        prompt=_prompt(prompt, prompt_option),
        negative_prompt=negative_prompt,
        model=model or default_model(backend),
        revision=revision,
        steps=steps,
        guidance_scale=guidance,
        scheduler=scheduler,
        width=width,
        height=height,
    )
    place = generate.OutputOptions(
        target=output or store.get_setting("output"),
        format=format or store.get_setting("format"),
        overwrite=overwrite,
        show=show,
    )
    engine = create_backend(
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
        keep_alive=keep_alive,
        trust_remote_code=trust_remote_code,
        no_safety_checker=no_safety_checker,
        offline=offline,
        lenient=lenient,
        worker=not dry_run,
        format=place.aim.format,
    )
    order = generate.GenerationJob(request=request, seeds=seed or [], count=count)
    if dry_run:
        _dry_run(*generate.prepare_requests(order, engine, place, console, lenient=lenient), engine)
    else:
        generate.generate_images(order, engine, place, console, lenient=lenient)
        _mention_warmth(backend, keep_alive)


def _mention_warmth(backend: str | None, keep_alive: str | None) -> None:
    local = store.resolve_setting("backend", backend) in {None, "local"}
    if local and store.resolve_setting("keep_alive", keep_alive) is None:
        from t2i_cli.worker import tips

        tips.show_tip_once(console)


def _prompt(argument: str | None, option: str | None) -> str:
    if argument is not None and option is not None:
        raise InputError("The prompt is given twice; use the argument or -p.", field="prompt")
    text = option if argument is None else argument
    if text is None:
        raise InputError(
            "There is no prompt.", hint='Give one, as t2i generate "a red star", or - for stdin.'
        )
    if text != "-":
        return text
    try:
        return sys.stdin.buffer.read().decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise InputError("The prompt on standard input is not UTF-8.", field="prompt") from error


def _dry_run(requests: list[ResolvedRequest], sink: "ImageWriter", backend: "Backend") -> None:
    """Print what would be made, with what it needs."""
    plan = backend.estimate(requests[0])
    files = [None if path is None else str(path) for path in sink.paths]
    if console.json:
        images = [request.to_json() for request in requests]
        console.result_json({"requests": images, "files": files, "plan": plan})
        return
    for request, file in zip(requests, files, strict=True):
        console.result(f"file: {file or 'standard output'}")
        for name, value in request.to_json().items():
            if value is not None:
                console.result(f"  {name}: {value}")
    for name, value in plan.items():
        console.result(f"{name}: {value}")
