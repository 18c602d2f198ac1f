"""`t2i generate`: one prompt, a few images, on this machine."""

import sys
from typing import TYPE_CHECKING

from t2i_cli import options, settings
from t2i_cli.console import console
from t2i_cli.errors import InputError
from t2i_cli.request import GenerateRequest, ResolvedRequest, chosen_size, with_seeds

if TYPE_CHECKING:
    from t2i_cli.backends import Backend
    from t2i_cli.sink import FileSink


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
    device: options.DeviceOpt = None,
    dtype: options.DtypeOpt = None,
    memory: options.MemoryOpt = None,
    attention_slicing: options.AttentionSlicingOpt = None,
    clear_cache: options.ClearCacheOpt = False,
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
        settings.go_offline()
    width, height = chosen_size(width, height, size)
    request = GenerateRequest(
        prompt=_prompt(prompt, prompt_option),
        negative_prompt=negative_prompt,
        model=model or settings.get("model"),
        revision=revision,
        steps=steps,
        guidance_scale=guidance,
        scheduler=scheduler,
        width=width,
        height=height,
    )
    from t2i_cli import oneshot
    from t2i_cli.backends.choice import choose

    engine = choose(
        backend=backend,
        device=device,
        dtype=dtype,
        memory=memory,
        attention_slicing=attention_slicing,
        clear_cache=clear_cache,
        trust_remote_code=trust_remote_code,
        no_safety_checker=no_safety_checker,
        offline=offline,
        lenient=lenient,
    )
    place = oneshot.Output(
        target=output or settings.get("output"),
        format=format or settings.get("format"),
        overwrite=overwrite,
        show=show,
    )
    asked = with_seeds(request, seed or [], count)
    if dry_run:
        _dry_run(*oneshot.settle(asked, engine, place, console, lenient=lenient), engine)
    else:
        oneshot.make(asked, engine, place, console, lenient=lenient)


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


def _dry_run(requests: list[ResolvedRequest], sink: "FileSink", backend: "Backend") -> None:
    """Print what would be made, with what it needs."""
    plan = backend.needs(requests[0])
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
