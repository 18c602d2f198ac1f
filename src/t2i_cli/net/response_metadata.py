"""Metadata that a t2i server returns with an image: resolved request, generation info, notes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from t2i_cli import __version__
from t2i_cli.errors import RemoteError
from t2i_cli.files.state_files import is_amount
from t2i_cli.net import error_body
from t2i_cli.net.concurrency import InFlightCall
from t2i_cli.net.generation_record import sound_info
from t2i_cli.provenance import GenerationInfo
from t2i_cli.request import ResolvedRequest
from t2i_cli.request_fields import FIELDS

METADATA_KEY = "t2i"
"""Key of the metadata in a response, beside the image."""
NOTES_KEY = "notes"
"""Key of the notes in a response, beside the image."""


@dataclass(frozen=True, kw_only=True)
class ResponseMetadata:
    """The metadata of one image; empty if the server sends none. `seconds` is generation time."""

    request: Mapping[str, object] = field(default_factory=dict)
    info: Mapping[str, object] = field(default_factory=dict)
    seconds: float | None = None
    notes: Sequence[str] = ()

    def forward_notices(self, call: InFlightCall) -> None:
        """Pass the server's notes on the request to the user, as a local run does."""
        for note in self.notes:
            call.note_request(note)

    def check_request(self, request: ResolvedRequest) -> None:
        """Raise RemoteError if the server's request differs from the one that was sent."""
        for name in (name for name, known in FIELDS.items() if known.echoed):
            wanted = FIELDS[name].json_value(getattr(request, name))
            echoed = self.request.get(name, wanted)
            if wanted is not None and echoed != wanted:
                raise RemoteError(
                    f"The server made the image with {name} {echoed!r}, not {wanted!r}.",
                    hint="Leave the option out, or ask the server's owner.",
                )

    def seed_confirmed(self, request: ResolvedRequest) -> bool:
        """Whether the server confirms that it used the request's seed."""
        return self.request.get("seed") == request.seed

    def generation_info(self, request: ResolvedRequest, **origin: object) -> GenerationInfo:
        """The server's generation info, with its `origin`: backend, endpoint, deployed model."""
        values = sound_info(self.info)
        values.setdefault("libraries", {"t2i": __version__})
        values.setdefault("model", request.model)
        confirmed = {"seed_confirmed": self.seed_confirmed(request)}
        return GenerationInfo(**(values | confirmed | origin))  # type: ignore[arg-type]


def with_actual_size(call: InFlightCall, size: tuple[int, int]) -> ResolvedRequest:
    """The request with the image's actual `size`: width and height in pixels.

    Notes a difference to the request. Raises RemoteError if the user set a different size.
    """
    request, actual = call.request, {"width": size[0], "height": size[1]}
    different = {name for name in actual if getattr(request, name) not in (None, actual[name])}
    if not different:
        return request
    wanted = f"{request.width or size[0]}x{request.height or size[1]}"
    message = f"The server makes {size[0]}x{size[1]} where {wanted} is asked for."
    if different & request.user_set:
        raise RemoteError(message, hint=f"Ask for {size[0]}x{size[1]}, or leave the size out.")
    call.note_request(message)
    return replace(request, width=size[0], height=size[1])


def note_further_images(call: InFlightCall, server: str, further: int) -> None:
    """Note that an answer of the `server` holds `further` images beside the one asked for."""
    if further:
        call.note(
            f"{server} answers with {further + 1} images where one is asked for: the first is "
            f"kept, {further} not."
        )


def parse_response_metadata(entry: object) -> ResponseMetadata:
    """The metadata in a response's entry for one image; empty if it is missing or malformed."""
    record = entry.get(METADATA_KEY) if isinstance(entry, dict) else None
    if not isinstance(entry, dict) or not isinstance(record, dict):
        return ResponseMetadata()
    notes = entry.get(NOTES_KEY)
    request, info, seconds = (record.get(name) for name in ("request", "lock", "seconds"))
    return ResponseMetadata(
        request=request if isinstance(request, dict) else {},
        info=info if isinstance(info, dict) else {},
        seconds=float(seconds) if is_amount(seconds) else None,
        notes=[error_body.sanitise(str(note)) for note in notes] if isinstance(notes, list) else (),
    )
