"""Which backend makes the images: `choose()`, from a command's options and the settings."""

from t2i_cli import settings
from t2i_cli.backends import Backend


def choose(
    *,
    backend: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    memory: str | None = None,
    attention_slicing: bool | None = None,
    clear_cache: bool = False,
    trust_remote_code: bool = False,
    no_safety_checker: bool = False,
    offline: bool = False,
    lenient: bool = False,
    batch_size: int | None = 1,
) -> Backend:
    """The backend of that name, else of the settings, else this machine. Raises InputError."""
    match settings.pick("backend", backend):
        case _:
            from t2i_cli.backends.local import LocalBackend, LocalOptions

            return LocalBackend(
                LocalOptions(
                    device=device or settings.get("device"),
                    dtype=dtype or settings.get("dtype"),
                    memory=settings.pick("memory", memory) or "auto",
                    attention_slicing=attention_slicing,
                    clear_cache=clear_cache,
                    trust_remote_code=trust_remote_code,
                    safety_checker=not no_safety_checker,
                    offline=offline,
                    lenient=lenient,
                    batch_size=batch_size,
                )
            )
