"""`t2i generate`: images of one prompt, on any backend."""

import sys
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

from t2i_cli.cli.options import (
    BatchSizeOptions,
    ConsentOptions,
    ConsoleOptions,
    OutputOptions,
    PromptOptions,
    RequestOptions,
    RunOptions,
)
from t2i_cli.errors import InputError, T2IError
from t2i_cli.request import ResolvedRequest
from t2i_cli.settings import store
from t2i_cli.settings.options import BackendOptions, KeepAliveOptions
from t2i_cli.terminal.console import console

if TYPE_CHECKING:
    from t2i_cli.generate import GenerationJob


def generate(
    prompt: PromptOptions,
    request: RequestOptions,
    output: OutputOptions,
    backend: BackendOptions,
    batch_sizes: BatchSizeOptions,
    keep_alive: KeepAliveOptions,
    consent: ConsentOptions,
    run: RunOptions,
    console_options: ConsoleOptions,
) -> None:
    """Make an image from a prompt."""
    console.configure(**vars(console_options))
    if backend.device.offline:
        store.set_offline()
    from t2i_cli import generate
    from t2i_cli.backends.factory import backend_name, default_model
    from t2i_cli.backends.local import unavailable
    from t2i_cli.cli.style_option import chosen_styles
    from t2i_cli.models.request_resolution import build_request
    from t2i_cli.prompts.wildcards import WildcardFolder

    fields = {"model": default_model(backend_name(backend))} | request.given()
    job = generate.GenerationJob(
        request=build_request(fields | {"prompt": _read_prompt(prompt)}),
        seeds=prompt.given_seeds(),
        count=prompt.count,
        wildcards=WildcardFolder(prompt.wildcards) if prompt.wildcards else None,
        styles=chosen_styles(prompt.styles),
    )
    options = backend, batch_sizes, keep_alive, consent
    try:
        _make_images(job, output, options, run)
    except T2IError as error:
        # A user who named no model may not know yet that there is one here.
        is_first_word = fields["model"] is None and unavailable.is_model_unavailable(error)
        if run.dry_run or not is_first_word or not console.asks:
            raise
        question = "Make it with postcard, the small model inside t2i?"
        if not console.ask(f"{error.message} {question}"):
            raise
        _make_images(
            replace(job, request=replace(job.request, model="postcard")), output, options, run
        )


def _make_images(
    job: "GenerationJob",
    output: OutputOptions,
    options: tuple[BackendOptions, BatchSizeOptions, KeepAliveOptions, ConsentOptions],
    run: RunOptions,
) -> None:
    """Make the job's images, or print what would be made. Raises T2IError."""
    from t2i_cli import generate
    from t2i_cli.backends.factory import backend_name, create_backend
    from t2i_cli.image_costs import estimated_cost, estimated_cost_text
    from t2i_cli.output import filenames

    backend, batch_sizes, keep_alive, consent = options
    max_cost = backend.cost.max_cost
    output_options = generate.OutputDestination(
        target=output.output or store.get_setting("output"),
        format=output.format or store.get_setting("format"),
        overwrite=output.overwrite,
        show=output.show,
    )
    image_backend = create_backend(
        backend,
        keep_alive=keep_alive.keep_alive,
        batch_size=batch_sizes.largest(),
        strict=batch_sizes.strict,
        format=output_options.template.format,
        lenient=run.lenient,
        worker=not run.dry_run,
        plan_only=run.dry_run,
    )
    with closing(image_backend):
        if run.dry_run:
            requests, writer, notes = generate.prepare_requests(
                job, image_backend, output_options, console, lenient=run.lenient
            )
            if "seed" in requests[0].user_set:
                files = [None if path is None else str(path) for path in writer.paths]
            else:
                files = filenames.paths_without_seed(output_options.template, requests)
                if job.wildcards:
                    console.note("A seed is drawn for each run, and values of wildcards with it.")
            prices = generate.checked_prices(requests, image_backend, max_cost)
            plan = image_backend.estimate(requests[0])
            if console.json:
                plan |= estimated_cost(prices, max_cost)
            elif price := estimated_cost_text(prices, max_cost):
                plan["price"] = price
            _print_dry_run(requests, files, notes, plan)
            return
        generate.generate_images(
            *(job, image_backend, output_options, console),
            lenient=run.lenient,
            yes=consent.yes,
            max_cost=max_cost,
        )
    _show_keep_alive_tip(backend_name(backend), keep_alive.keep_alive)


def _show_keep_alive_tip(backend: str, keep_alive: str | None) -> None:
    if backend == "local" and store.resolve_setting("keep_alive", keep_alive) is None:
        from t2i_cli.worker import tips

        tips.show_tip_once(console)


def _read_prompt(options: PromptOptions) -> str:
    if options.prompt is not None and options.prompt_option is not None:
        raise InputError("The prompt is given twice; use the argument or -p.", field="prompt")
    text = options.prompt_option if options.prompt is None else options.prompt
    if text is None:
        raise InputError(
            "There is no prompt.", hint='Give one, as t2i generate "a red star", or - for stdin.'
        )
    if text != "-":
        return text
    from t2i_cli.prompts.decoding import decode_text

    try:
        return decode_text(sys.stdin.buffer.read()).strip()
    except InputError as error:
        message = f"The prompt on standard input: {error.message}"
        raise InputError(message, field="prompt") from error


def _print_dry_run(
    requests: list[ResolvedRequest],
    files: list[str | None],
    notes: list[str],
    plan: dict[str, object],
) -> None:
    """Print the requests, their files, and the backend's estimate with the price.

    A seed that is not given is not told: the run draws its own.
    """
    images = [request.to_json() for request in requests]
    if "seed" not in requests[0].user_set:
        images = [image | {"seed": None} for image in images]
    if console.json:
        console.result_json({"requests": images, "files": files, "notes": notes, "plan": plan})
        return
    for image, file in zip(images, files, strict=True):
        console.result(f"file: {file or 'standard output'}")
        for name, value in image.items():
            if name == "seed" and value is None:
                console.result("  seed: drawn at random")
            elif value is not None:
                console.result(f"  {name}: {value}")
    for name, value in plan.items():
        console.result(f"{name}: {value}")
