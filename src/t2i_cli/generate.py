"""A few requests made now, from the command line: what `generate` does on any backend."""

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace

from t2i_cli.backend import Backend, GeneratedImage
from t2i_cli.driver import generate_and_save
from t2i_cli.errors import InputError, InternalError, PartialError, T2IError
from t2i_cli.models.request_resolution import resolve_request
from t2i_cli.output import filenames
from t2i_cli.output.image_writer import ImageWriter, SavedImage
from t2i_cli.request import GenerateRequest, ResolvedRequest, expand_seeds
from t2i_cli.terminal.console import Console
from t2i_cli.terminal.preview import terminal_viewer
from t2i_cli.terminal.progress import Progress


@dataclass(frozen=True, kw_only=True)
class GenerationJob:
    """A request to make with each of `seeds`, or `count` times."""

    request: GenerateRequest
    seeds: Sequence[int] = ()
    count: int = 1


@dataclass(frozen=True, kw_only=True)
class OutputDestination:
    """Where images go, and how: the options of the commands that make a few."""

    target: str | None = None
    format: str | None = None
    overwrite: bool = False
    show: bool = False

    @property
    def aim(self) -> filenames.OutputTemplate:
        """The template and the format of the files; raises InputError."""
        folder = self.target is not None and os.path.isdir(self.target)
        return filenames.parse_output(self.target, self.format, is_folder=folder)


def prepare_requests(
    order: GenerationJob,
    backend: Backend,
    output: OutputDestination,
    console: Console,
    *,
    lenient: bool,
) -> tuple[list[ResolvedRequest], ImageWriter]:
    """The requests and the files they will be; raises for all that can be known to be wrong."""
    asked = replace(order.request, seed=order.seeds[0]) if order.seeds else order.request
    settled = resolve_request(asked, backend.describe(asked), lenient=lenient, on_note=console.warn)
    requests = expand_seeds(settled, order.seeds, order.count)
    target = output.aim
    if target.template is None and console.json:
        raise InputError("Standard output holds the image or the JSON, not both.", field="output")
    sink = ImageWriter(
        filenames.output_paths(target, requests), target.format, overwrite=output.overwrite
    )
    sink.check()
    backend.check(requests[0])
    return requests, sink


def generate_images(
    order: GenerationJob,
    backend: Backend,
    output: OutputDestination,
    console: Console,
    *,
    lenient: bool,
) -> None:
    """Make the images and print where each went; raises if any of them failed."""
    show = terminal_viewer(output.show, lenient, console)
    requests, sink = prepare_requests(order, backend, output, console, lenient=lenient)
    sink.prepare()
    failures: list[T2IError] = []

    def save(generated: GeneratedImage) -> SavedImage:
        saved = sink.save(generated)
        if show:
            progress.pause()
            show(generated.image)
        return saved

    try:
        with console.redirect_stdout(), Progress(console, len(requests)) as progress:
            for outcome in generate_and_save(requests, backend, save, progress, threading.Event()):
                if isinstance(outcome, SavedImage):
                    _report(outcome, console)
                    continue
                if isinstance(outcome.error, InternalError) and outcome.error.__cause__:
                    raise outcome.error.__cause__  # a bug shows its traceback
                failures.append(outcome.error)
                if len(requests) > 1:
                    console.error(outcome.error)
                    console.cause(outcome.error)
    finally:
        sink.close()
        backend.close()
    if failures:
        raise _verdict(failures, len(requests))


def _report(saved: SavedImage, console: Console) -> None:
    if console.json:
        console.result_json(saved.to_json())
    elif saved.path is not None:
        console.result(str(saved.path))


def _verdict(failures: Sequence[T2IError], total: int) -> T2IError:
    """The error that stands for all of them, with the exit code they share if none succeeded."""
    first = failures[0]
    if total == 1:
        return first
    if len(failures) == total and len({type(failure) for failure in failures}) == 1:
        return type(first)(f"None of the {total} images could be made.")
    return PartialError(f"{len(failures)} of {total} images failed.")
