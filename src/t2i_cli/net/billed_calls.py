"""Calls that bill each image: none is made twice, and what was paid for is kept."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from t2i_cli.errors import RemoteError, T2IError, TimedOutError
from t2i_cli.net.concurrency import InFlightCall
from t2i_cli.net.http_client import FailedCall, translate_error
from t2i_cli.net.retry import RetryableError
from t2i_cli.request import ResolvedRequest


def error_of_billed_call(failed: FailedCall, hint: str) -> RetryableError | T2IError:
    """The error for a call without a response; retryable only if it cannot have run.

    `hint` says what may be billed, where it may have run.
    """
    error = translate_error(failed)
    if failed.never_sent:
        return error
    if isinstance(error, TimedOutError):
        return TimedOutError(error.message, hint=f"--timeout allows more. {hint}")
    if isinstance(error, RetryableError):
        return RemoteError(f"The connection to {failed.host} broke before the answer.", hint=hint)
    return error


def with_billed_size(call: InFlightCall, size: tuple[int, int], maker: str) -> ResolvedRequest:
    """The request with the size that the image has: it is paid for, and so it is kept.

    Notes that the `maker` made another `size` (width and height in pixels) than asked for.
    """
    request = call.request
    if request.width is None or (request.width, request.height) == size:
        return request
    call.note_request(
        f"{maker} made {size[0]}x{size[1]} where {request.width}x{request.height} was asked for; "
        "the image is billed, and kept."
    )
    return replace(request, width=size[0], height=size[1])


@contextmanager
def telling_it_is_billed() -> Iterator[None]:
    """Have a RemoteError about an image that cannot be read say that it is billed."""
    try:
        yield
    except RemoteError as error:
        raise RemoteError(
            error.message, hint="The image is billed all the same. Try again."
        ) from error
