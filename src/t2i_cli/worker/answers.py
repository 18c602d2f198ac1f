"""Reads and checks what a worker answers, in the t2i dialect."""

import base64
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t2i_cli import errors
from t2i_cli.backend import EncodedImage, Failure, GeneratedImage
from t2i_cli.errors import T2IError
from t2i_cli.events import EVENT_NAMES, Event, OnEvent
from t2i_cli.files.state_files import is_amount, is_count, is_text, parse_json
from t2i_cli.image_formats import EXTENSIONS, ImageFormat
from t2i_cli.model_spec import ModelSpec
from t2i_cli.models import adapter_sources
from t2i_cli.models.described_spec import check_spec_values
from t2i_cli.net.generation_record import sound_info
from t2i_cli.net.lazy_image import LazyImage
from t2i_cli.part_source import PART_FIELDS
from t2i_cli.provenance import GenerationInfo
from t2i_cli.request import ResolvedRequest
from t2i_cli.request_fields import FIELDS, MAX_IMAGE_SIDE
from t2i_cli.worker.client import WorkerExchange
from t2i_cli.worker.state import WorkerExitingError, WorkerUnavailableError

WorkerRequest = tuple[int, ResolvedRequest]
"""A request and its position in the run."""
_TERMINATED_CODE = "terminated"
"""Error code of a worker that is exiting."""
_INTERNAL_CODES = ("bug",)
"""Error codes of bugs in the worker: a run without it shows the bug with its traceback."""
_QUOTA_CODE = "quota"
"""Error code of a worker whose queue is full."""


@contextmanager
def _checking_answer() -> Iterator[None]:
    """Raise WorkerUnavailableError for an answer that is not of the form that a worker sends."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise WorkerUnavailableError("The warm worker's answer cannot be read.") from error


@dataclass(frozen=True, kw_only=True)
class WorkerActivity:
    """What a worker does; `idle`, in seconds, is None while it starts or works."""

    idle: float | None
    keep_alive: float
    waiting: int


def worker_activity(exchange: WorkerExchange) -> WorkerActivity:
    """The answer to a request for the status. Raises WorkerUnavailableError if it is none."""
    response = exchange.json()
    with _checking_answer():
        found = WorkerActivity(
            idle=response["idle"], keep_alive=response["keep_alive"], waiting=response["waiting"]
        )
        valid = (
            exchange.ok
            and (found.idle is None or is_amount(found.idle))
            and is_amount(found.keep_alive)
            and is_count(found.waiting)
        )
        if not valid:
            raise ValueError("no status")
    return found


_SETTLED_HERE = (
    *(*PART_FIELDS, "composition", "file_digest", "copy_folder"),
    *("own_name", "defaults"),
    *("adapters", "adapter_folder", "adapters_offline"),
)
"""What of a model's spec this process finds by itself: no worker is asked for such a model."""


def worker_model(exchange: WorkerExchange) -> ModelSpec:
    """The spec of the worker's model. Raises T2IError if there is no such model."""
    response = exchange.json()
    if not exchange.ok:
        raise _parse_error(exchange, response)
    with _checking_answer():
        check_spec_values(response)
        for name in _SETTLED_HERE:
            response.pop(name, None)
        folder = response.pop("folder")
        refuses = tuple((name, why) for name, why in response.pop("refuses"))
        if not all(name in FIELDS and is_text(why) for name, why in refuses):
            raise ValueError("no refusal")
        sizes = tuple((width, height) for width, height in response.pop("sizes", ()))
        return ModelSpec(**response, folder=folder and Path(folder), refuses=refuses, sizes=sizes)


def build_body(members: Sequence[WorkerRequest], format: ImageFormat) -> dict[str, object]:
    """The body of a generate request for these images."""
    omitted = {"model", "revision", *(name for name, one in FIELDS.items() if one.expanded)}
    whole = [adapter_sources.with_whole_paths(request) for _, request in members]
    requests = [
        {k: v for k, v in request.to_json().items() if v is not None and k not in omitted}
        for request in whole
    ]
    return {"requests": requests, "format": format}


def read_outcomes(
    exchange: WorkerExchange, members: Sequence[WorkerRequest], on_event: OnEvent
) -> Iterator[GeneratedImage | Failure]:
    """Yield one outcome for each of `members`, the requests sent.

    Raises T2IError if the worker rejected them, WorkerUnavailableError if it cannot run them.
    """
    if not exchange.ok:
        raise _parse_error(exchange, exchange.json(), (*_INTERNAL_CODES, _QUOTA_CODE))
    missing = set(range(len(members)))
    pixels = max((r.width or MAX_IMAGE_SIDE) * (r.height or MAX_IMAGE_SIDE) for _, r in members)
    for name, text in exchange.events(2**22 + 6 * pixels):  # base64 takes 4 bytes a pixel
        with _checking_answer():
            message = _parse_message(exchange, members, name, _parse_object(text))
            if isinstance(message, GeneratedImage | Failure):
                missing.remove([index for index, _ in members].index(message.index))
        if isinstance(message, GeneratedImage | Failure):
            yield message
        elif message is not None:
            on_event(message)


def _memory(value: object) -> dict[str, int] | None:
    """The memory that an image took, in MiB by name; earlier workers do not tell it."""
    if value is None:
        return None
    if not isinstance(value, dict) or not all(map(is_count, value.values())):
        raise ValueError("no memory")
    return value


def _parse_message(
    exchange: WorkerExchange, members: Sequence[WorkerRequest], name: str, data: dict[str, Any]
) -> GeneratedImage | Failure | Event | None:
    """An outcome or event, None for others; an invalid one raises whatever its values cause."""
    if name == "image":
        index, request = _member(members, data["index"])
        width, height, seconds = data["width"], data["height"], data["seconds"]
        format, info = data["format"], sound_info(data["lock"])
        if (
            not (is_count(width, MAX_IMAGE_SIDE) and is_count(height, MAX_IMAGE_SIDE))
            or not (width and height and is_amount(seconds))
            or format not in EXTENSIONS
            or not {"backend", "model"} <= info.keys()
        ):
            raise ValueError("no image")
        return LazyImage(
            index=index,
            request=request,
            info=GenerationInfo(**info),  # type: ignore[arg-type]
            seconds=float(seconds),
            file_size=(width, height),
            file=EncodedImage(format=format, data=base64.b64decode(data["image"], validate=True)),
            memory=_memory(data.get("memory")),
        )
    if name == "failure":
        index, request = _member(members, data["index"])
        return Failure(index=index, request=request, error=_parse_error(exchange, data))
    if kind := _EVENTS.get(name):
        if "indices" in data:
            data["indices"] = tuple(_member(members, place)[0] for place in data["indices"])
        if not all(_is_event_value(key, value) for key, value in data.items()):
            raise ValueError("no event")
        return kind(**data)
    return None


def _parse_object(text: str) -> dict[str, Any]:
    value = parse_json(text.encode())
    if not isinstance(value, dict):
        raise ValueError("no object")
    return value


def _member(members: Sequence[WorkerRequest], position: object) -> WorkerRequest:
    """The request at a position of the call. Raises ValueError for none."""
    if not is_count(position, len(members) - 1):
        raise ValueError("no position")
    return members[position]


def _is_event_value(key: str, value: object) -> bool:
    """Whether it is of the type that the events' fields of this name have."""
    if key == "indices":
        return isinstance(value, tuple)
    if key == "seconds":
        return is_amount(value)
    return is_count(value) if key in _COUNTS else isinstance(value, str)


_COUNTS = {"done", "total", "step", "steps"}


_EVENTS: dict[str, Callable[..., Event]] = {name: kind for kind, name in EVENT_NAMES.items()}


def _parse_error(
    exchange: WorkerExchange,
    response: Mapping[str, Any],
    unavailable_codes: Collection[str] = _INTERNAL_CODES,
) -> T2IError:
    """The error in a response, if a run without the worker would raise it as well.

    Else raises WorkerExitingError or WorkerUnavailableError.
    """
    record = response.get("error")
    error = errors.error_from_json(record) if isinstance(record, dict) else None
    if error is not None and error.code == _TERMINATED_CODE:
        raise WorkerExitingError(exchange.runtime_dir)
    if error is None or error.code in unavailable_codes:
        raise WorkerUnavailableError("The warm worker cannot take this run.")
    return error
