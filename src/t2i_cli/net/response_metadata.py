"""What a t2i server says of an image it made: the request as it took it, and how it ran."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace

from t2i_cli import __version__
from t2i_cli.errors import RemoteError
from t2i_cli.net import error_body
from t2i_cli.net.concurrency import InFlightCall
from t2i_cli.provenance import GenerationInfo
from t2i_cli.request import ResolvedRequest
from t2i_cli.request_fields import FIELDS

METADATA_KEY = "t2i"
"""Where it lies in the answer, beside the image."""
NOTES_KEY = "notes"
"""Where its notes lie, beside both."""

_KNOWN = {f.name for f in fields(GenerationInfo)}


@dataclass(frozen=True, kw_only=True)
class ResponseMetadata:
    """An image's own account of itself; empty where the server gives none."""

    request: Mapping[str, object] = field(default_factory=dict)
    lock: Mapping[str, object] = field(default_factory=dict)
    seconds: float | None = None
    notes: Sequence[str] = ()

    def forward_notices(self, call: InFlightCall) -> None:
        """Tell what the server noted of the request, as a run on this machine would."""
        for note in self.notes:
            call.quote(note)

    def check_request(self, request: ResolvedRequest) -> None:
        """Raise RemoteError if the image is of another request than the one that was sent."""
        for name in (name for name, known in FIELDS.items() if known.echoed):
            wanted = FIELDS[name].json_value(getattr(request, name))
            made = self.request.get(name, wanted)
            if wanted is not None and made != wanted:
                raise RemoteError(
                    f"The server made the image with {name} {made!r}, not {wanted!r}.",
                    hint="Leave the option out, or ask the server's owner.",
                )

    def seed_confirmed(self, request: ResolvedRequest) -> bool:
        """Whether the server says that it used the request's seed."""
        return self.request.get("seed") == request.seed

    def generation_info(self, request: ResolvedRequest, **place: object) -> GenerationInfo:
        """The server's lock with where it was: backend, endpoint, deployed model."""
        told = {name: value for name, value in self.lock.items() if name in _KNOWN}
        measures = told.get("measures")
        told["measures"] = tuple(measures) if isinstance(measures, list) else ()
        if not isinstance(told.get("libraries"), dict):
            told["libraries"] = {"t2i": __version__}
        told.setdefault("model", request.model)
        sure = {"seed_confirmed": self.seed_confirmed(request)}
        return GenerationInfo(**(told | sure | place))  # type: ignore[arg-type]


def true_size(call: InFlightCall, size: tuple[int, int]) -> ResolvedRequest:
    """The request with the size, in pixels, that its image has, and a note where it is another.

    Raises RemoteError where the user asked for a size that the image does not have.
    """
    request, made = call.request, {"width": size[0], "height": size[1]}
    other = {name for name in made if getattr(request, name) not in (None, made[name])}
    if not other:
        return request
    wanted = f"{request.width or size[0]}x{request.height or size[1]}"
    message = f"The server makes {size[0]}x{size[1]} where {wanted} is asked for."
    if other & request.user_set:
        raise RemoteError(message, hint=f"Ask for {size[0]}x{size[1]}, or leave the size out.")
    call.tell(message)
    return replace(request, width=size[0], height=size[1])


def parse_response_metadata(entry: object) -> ResponseMetadata:
    """The account beside an image in an answer, whoever sent it."""
    record = entry.get(METADATA_KEY) if isinstance(entry, dict) else None
    if not isinstance(entry, dict) or not isinstance(record, dict):
        return ResponseMetadata()
    notes = entry.get(NOTES_KEY)
    request, lock, seconds = (record.get(name) for name in ("request", "lock", "seconds"))
    return ResponseMetadata(
        request=request if isinstance(request, dict) else {},
        lock=lock if isinstance(lock, dict) else {},
        seconds=float(seconds) if isinstance(seconds, int | float) else None,
        notes=[error_body.sanitise(str(note)) for note in notes] if isinstance(notes, list) else (),
    )
