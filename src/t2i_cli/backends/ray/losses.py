"""What is told of workers that were lost, and of what they had in hand."""

from dataclasses import dataclass

from t2i_cli.errors import RemoteError, T2IError, error_reason
from t2i_cli.events import Notice

MAX_LOST_LOADS = 2
"""Workers that may be lost while they load a model before that is an error."""


class LostConnectionError(RemoteError):
    """The connection to Ray is lost, and everything with it that runs made there."""


@dataclass(frozen=True)
class RunEnded:
    """No outcome of a run follows; `error` is why, unless it was asked to end."""

    error: T2IError | None = None


def loss_reason(error: BaseException) -> str:
    """Why a worker was lost, from what Ray raised, as the end of a sentence."""
    text = str(error)
    kind = type(error).__name__
    if kind == "OutOfMemoryError" or "running low on memory" in text:
        return "its machine ran out of memory"
    if kind.startswith("Node") or "node has died" in text or "node was terminated" in text:
        return "its machine left the cluster"
    if "ActorDied" in kind or kind in {"RayActorError", "WorkerCrashedError"}:
        if "creation task" in text or "__init__" in text:
            return error_reason(Exception(text.strip().splitlines()[-1])).rstrip(".")
        return "its process ended"
    cause = getattr(error, "cause", None)
    return error_reason(cause if isinstance(cause, Exception) else Exception(text)).rstrip(".")


def is_connection_loss(error: BaseException) -> bool:
    """Whether Ray raised this because it is connected no more."""
    import grpc

    return isinstance(error, ConnectionError | grpc.RpcError | LostConnectionError)


def lost_connection_error(reason: str) -> LostConnectionError:
    """The error of a connection that broke."""
    return LostConnectionError(f"The connection to Ray was lost: {reason.rstrip('.')}.")


def own_node_error(started_here: bool) -> LostConnectionError:
    """The error of a driver whose own node of Ray is none of the cluster's any more."""
    return LostConnectionError(
        "The Ray that was started on this machine has ended unexpectedly."
        if started_here
        else "The node of the Ray cluster that this command is connected to has ended.",
        hint="`dmesg` shows whether this machine ran out of memory." if started_here else None,
    )


def loss_notice(node: str, reason: str, requests: int) -> Notice:
    """What is told of a lost worker."""
    images = "its image goes" if requests == 1 else f"its {requests} images go"
    passed_on = f"; {images} to others" if requests else ""
    return Notice(message=f"A worker on {node} was lost: {reason}{passed_on}.")


def request_error(reason: str) -> T2IError:
    """The error of a request that was lost with each worker that had it."""
    return RemoteError(f"Three workers were lost while they made it; the last one: {reason}.")


def load_error(reason: str) -> T2IError:
    """The error of a model that no worker could load."""
    return RemoteError(f"Workers were lost while they loaded the model: {reason}.")
