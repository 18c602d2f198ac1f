"""Makes the images of `t2i generate` on any backend and saves them."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import TYPE_CHECKING

from t2i_cli.backend import Backend, Failure, GeneratedImage
from t2i_cli.buckets.bucket_url import is_bucket_url, parse_bucket_url, without_file_scheme
from t2i_cli.cost_limit import limit_costs
from t2i_cli.driver import generate_and_save, with_notes
from t2i_cli.durations import format_estimate
from t2i_cli.errors import InputError, InternalError, PartialError, T2IError
from t2i_cli.files.user_paths import expand_option
from t2i_cli.image_costs import ImageCosts, check_cost_limit, exact_usd, format_usd, is_billed
from t2i_cli.image_price import ImagePrice
from t2i_cli.models.adapter_resolution import settle_prompt
from t2i_cli.models.prompt_support import check_prompt_texts
from t2i_cli.models.request_resolution import resolve_request
from t2i_cli.output import filenames
from t2i_cli.output.image_writer import ImageWriter, SavedImage
from t2i_cli.prompts.literal_syntax import literal_syntax_notes
from t2i_cli.prompts.styles import StyleFile, expand_styles
from t2i_cli.prompts.wildcards import WildcardFolder
from t2i_cli.request import GenerateRequest, ResolvedRequest, expand_seeds
from t2i_cli.terminal.console import Console
from t2i_cli.terminal.cost_consent import confirm_costs
from t2i_cli.terminal.download_consent import asks_for_downloads, confirm_download
from t2i_cli.terminal.preview import terminal_viewer
from t2i_cli.terminal.progress import Progress
from t2i_cli.terminal.streams import stdout_is_closed

if TYPE_CHECKING:
    from PIL.Image import Image

    from t2i_cli.output.bucket_writer import BucketImageWriter


@dataclass(frozen=True, kw_only=True)
class GenerationJob:
    """A request to be made with each of `seeds`, or else `count` times.

    `wildcards` has the values of wildcards in prompts, `styles` what the request's styles add.
    """

    request: GenerateRequest
    seeds: Sequence[int] = ()
    count: int = 1
    wildcards: WildcardFolder | None = None
    styles: StyleFile | None = None


@dataclass(frozen=True, kw_only=True)
class OutputDestination:
    """Output options: `target` is the --output option, `show` draws images in the terminal."""

    target: str | None = None
    format: str | None = None
    overwrite: bool = False
    show: bool = False

    @property
    def template(self) -> filenames.OutputTemplate:
        """The path template and format of the files; raises InputError."""
        target = self.target
        if target is not None and is_bucket_url(target):
            parse_bucket_url(target)
            if not target.endswith("/") and not PurePath(target).suffix:
                from t2i_cli.output.bucket_writer import is_bucket_folder

                if is_bucket_folder(target):
                    target = target.replace("{", "{{").replace("}", "}}") + "/"
            return filenames.parse_output(target, self.format)
        target = None if target is None else expand_option(without_file_scheme(target))
        folder = target is not None and os.path.isdir(target)
        return filenames.parse_output(target, self.format, is_folder=folder)


def prepare_requests(
    job: GenerationJob,
    backend: Backend,
    output: OutputDestination,
    console: Console,
    *,
    lenient: bool,
) -> tuple[list[ResolvedRequest], "ImageWriter | BucketImageWriter", list[str]]:
    """Resolve and check requests and output paths before anything is made. Raises T2IError.

    Returns the requests, the writer of their images, and notes on them all.
    """
    request = replace(job.request, seed=job.seeds[0]) if job.seeds else job.request
    notes: list[str] = []
    size_notes: list[str] = []
    spec = backend.describe(request)
    resolved = resolve_request(
        expand_styles(request, job.styles, spec.own_negative_prompt),
        spec,
        lenient=lenient,
        on_note=notes.append,
        on_size_note=size_notes.append,
    )
    for note in notes:
        console.warn(note)
    for note in size_notes:
        console.note(note)
    requests = expand_seeds(resolved, job.seeds, job.count)
    if job.wildcards:
        filled = (job.wildcards.fill_request(request) for request in requests)
        requests = [settle_prompt(request, spec) for request in filled]
        for settled in requests:
            check_prompt_texts(settled)
    for note in literal_syntax_notes(requests):
        console.note(note)
    template = output.template
    if template.template is None and stdout_is_closed():
        raise InputError("Standard output is closed.", hint="-o FILE takes a file.", field="output")
    if template.template is None and console.json:
        raise InputError("Standard output holds the image or the JSON, not both.", field="output")
    writer = _make_writer(template, requests, overwrite=output.overwrite)
    writer.check()
    backend.check(requests[0])
    return requests, writer, [*notes, *size_notes]


def _make_writer(
    template: filenames.OutputTemplate, requests: Sequence[ResolvedRequest], *, overwrite: bool
) -> "ImageWriter | BucketImageWriter":
    """The writer of the images, to files or to URLs. Raises InputError."""
    if template.template is None or not is_bucket_url(template.template):
        paths = filenames.output_paths(template, requests)
        return ImageWriter(paths, template.format, overwrite=overwrite)
    from t2i_cli.output.bucket_writer import BucketImageWriter

    urls = filenames.output_names(template, requests)
    return BucketImageWriter(urls, template.format, overwrite=overwrite)


def generate_images(
    job: GenerationJob,
    backend: Backend,
    output: OutputDestination,
    console: Console,
    *,
    lenient: bool,
    yes: bool = False,
    max_cost: float | None = None,
) -> None:
    """Make and save the images, and print their paths; raises T2IError if any of them failed.

    `yes` agrees to a download and to the price of the images; `max_cost` limits that, in USD.
    """
    show = terminal_viewer(output.show, lenient, console)
    requests, writer, notes = prepare_requests(job, backend, output, console, lenient=lenient)
    if asks_for_downloads(console, yes=yes):
        plan = backend.estimate(requests[0]) | {"model": requests[0].model}
        confirm_download([plan], console, yes=yes)
    prices = checked_prices(requests, backend, max_cost)
    confirm_costs(ImageCosts(prices), console, agreed=yes or max_cost is not None)
    limited = limit_costs(backend, prices, max_cost)
    writer.prepare()
    results = _Results(console, prices, show)

    def save(generated: GeneratedImage) -> SavedImage:
        saved = writer.save(with_notes(generated, notes))
        results.remember(generated)
        return saved

    try:
        with console.redirect_stdout(), results.progress:
            generate_and_save(requests, limited or backend, save, results.report, results.progress)
    finally:
        results.summarize()
        writer.close()
    if limited and limited.reached:
        raise results.limit_error(limited.limit)
    if results.failures:
        raise _combined_error(results.failures, len(requests))


def checked_prices(
    requests: Sequence[ResolvedRequest], backend: Backend, max_cost: float | None
) -> list[ImagePrice | None]:
    """The price of each image. Raises InputError if `max_cost`, in USD, cannot be kept."""
    prices = [backend.image_price(request) for request in requests]
    if max_cost is not None:
        check_cost_limit(prices, max_cost)
    return prices


class _Results:
    """Prints the outcomes of a run; `show` draws its images, which wait for their turn.

    `prices` are those of all images.
    """

    def __init__(
        self,
        console: Console,
        prices: Sequence[ImagePrice | None],
        show: "Callable[[Image], None] | None",
    ) -> None:
        total = len(prices)
        self.progress = Progress(console, total)
        self._prices = prices
        self._costs = ImageCosts()
        self.failures: list[T2IError] = []
        self._console = console
        self._total = total
        self._show = show
        self._to_show: dict[int, Image] = {}
        self._made = 0
        self._started = time.monotonic()

    def remember(self, generated: GeneratedImage) -> None:
        """Keep an image that is saved until it is shown, if images are; from any thread."""
        if self._show:
            self._to_show[generated.index] = generated.image

    def report(self, outcome: SavedImage | Failure) -> None:
        """Print an image's path, or the error of one of several; a bug's cause is raised."""
        self.progress.finish_image(outcome.index)
        price = self._prices[outcome.index]
        if is_billed(outcome.error if isinstance(outcome, Failure) else None):
            self._costs.add(price)
        if isinstance(outcome, SavedImage):
            self._made += 1
            with self.progress.paused():
                if self._show:
                    self._show(self._to_show.pop(outcome.index))
                _report(outcome, price, self._console)
            return
        if isinstance(outcome.error, InternalError) and outcome.error.__cause__:
            raise outcome.error.__cause__  # a bug shows its traceback
        self.failures.append(outcome.error)
        if self._total > 1:
            with self.progress.paused():
                self._console.error(outcome.error)
                self._console.cause(outcome.error)

    def summarize(self) -> None:
        """Say how many images were made, if any was."""
        if self._console.json or not (self._made or self._costs.images):
            return
        seconds = time.monotonic() - self._started
        text = _summary(self._made, self._total, seconds)
        if self._costs.images:
            text += f", for {self._costs.sum_text()} (estimate; {self._costs.sources})"
        self._console.note(text)

    def limit_error(self, limit: float) -> PartialError:
        """The error of a run in which images are left because of --max-cost."""
        left = self._total - self._made - len(self.failures)
        failed = f", {len(self.failures)} failed" * bool(self.failures)
        return PartialError(
            f"{self._made} of {self._total} images were made{failed}, {left} left: "
            f"--max-cost {format_usd(exact_usd(limit))} is reached with {self._costs.sum_text()}."
        )


def _report(saved: SavedImage, price: ImagePrice | None, console: Console) -> None:
    if console.json:
        cost = {"usd": price.usd, "price_source": price.source} if price else {}
        console.result_json(saved.to_json() | cost)
    elif saved.path is not None:
        console.result(str(saved.path))


def _summary(made: int, total: int, seconds: float) -> str:
    """How many images were made, and in what time."""
    images = "1 image" if total == 1 else f"{total} images"
    return f"{images if made == total else f'{made} of {images}'} in {format_estimate(seconds)}"


def _combined_error(failures: Sequence[T2IError], total: int) -> T2IError:
    """Combine failures to one error; if all images failed alike, with their exit code."""
    first = failures[0]
    if total == 1:
        return first
    if len(failures) == total and len({type(failure) for failure in failures}) == 1:
        hint = first.hint if len({failure.hint for failure in failures}) == 1 else None
        return type(first)(f"None of the {total} images could be made.", hint=hint)
    return PartialError(f"{len(failures)} of {total} images failed.")
