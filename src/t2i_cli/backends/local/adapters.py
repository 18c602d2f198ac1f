"""Switches the LoRAs and embeddings of a loaded pipeline, each of which is read once.

A pass has those of its requests and no others. Between passes with LoRAs a few stay loaded; a pass
without any gives the networks back as they were loaded, bit by bit, with their memory.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from importlib import metadata
from pathlib import Path
from typing import NamedTuple, Protocol

from t2i_cli.backends.local import lora_loading, prompt_embedding_cache
from t2i_cli.backends.local.token_embeddings import TokenEmbeddings
from t2i_cli.errors import ModelError, T2IError
from t2i_cli.files.user_paths import expand_home
from t2i_cli.models import libraries
from t2i_cli.models.adapter_file import AdapterFile, keys_text
from t2i_cli.models.libraries import LibraryObject
from t2i_cli.models.weights import DTYPE_BYTES
from t2i_cli.request_adapters import Adapter

MAX_LOADED = 4
"""LoRAs that stay loaded while passes use others; the least recently used goes first."""


class ReadAdapter(NamedTuple):
    """An adapter of a request, and what its file holds."""

    adapter: Adapter
    file: AdapterFile


@contextmanager
def named_by_source(adapter: Adapter, path: Path) -> Iterator[None]:
    """Name an adapter in errors as the request does: a server's clients learn none of its paths."""
    try:
        yield
    except T2IError as error:
        if path != Path(expand_home(adapter.source)):
            error.message = error.message.replace(str(path), adapter.source)
            error.hint = error.hint and error.hint.replace(str(path), adapter.source)
            error.args = (error.message,)
        raise


class AdapterPipeline(Protocol):
    """What switching needs to know of a loaded pipeline."""

    pipe: LibraryObject
    dtype: str

    @property
    def model_name(self) -> str:
        """The model's name, for errors."""

    def layers_changing(self, *, structure: bool) -> AbstractContextManager[None]:
        """The context in which layers are added or removed, or only their weights are set."""


class _LoadedLora(NamedTuple):
    name: str
    bytes: int
    in_text_encoder: bool


class AdapterSwitch:
    """The adapters of one loaded pipeline."""

    def __init__(self, loaded: AdapterPipeline) -> None:
        self._loaded = loaded
        self._loras: OrderedDict[str, _LoadedLora] = OrderedDict()
        self._active: tuple[tuple[str, float], ...] | None = ()
        self._embeddings = TokenEmbeddings(loaded.pipe)
        self._count = 0

    @property
    def bytes(self) -> int:
        """The size of the LoRAs that are loaded, used or not."""
        return sum(each.bytes for each in self._loras.values())

    def package_version(self) -> dict[str, str]:
        """The version of the library that computes LoRAs, where there are any."""
        return {"peft": metadata.version("peft")} if self._active else {}

    def activate(self, adapters: Sequence[ReadAdapter]) -> None:
        """Use these adapters and no others. Raises T2IError for one that cannot be loaded."""
        loras = {
            str(each.adapter.digest): each
            for each in adapters
            if each.adapter.kind == "lora" and each.adapter.weight
        }
        wanted = tuple((digest, each.adapter.weight) for digest, each in loras.items())
        embeddings = [each for each in adapters if each.adapter.kind == "embedding"]
        if wanted != self._active:
            self._activate_loras(loras, wanted)
        if self._embeddings.differ([(each.adapter, each.file) for each in embeddings]):
            with self._loaded.layers_changing(structure=True):
                for each in embeddings:
                    with named_by_source(each.adapter, each.file.path):
                        _check_numbers(each.file)
                self._embeddings.use([(each.adapter, each.file) for each in embeddings])
        reading = [one for one in wanted if self._loras[one[0]].in_text_encoder]
        state = (tuple(reading), self._embeddings.state) if reading or embeddings else None
        prompt_embedding_cache.set_encoder_state(self._loaded.pipe, state)

    def _activate_loras(
        self, loras: dict[str, ReadAdapter], wanted: tuple[tuple[str, float], ...]
    ) -> None:
        """Load what is missing, unload what is too much, and set the weights."""
        missing = [digest for digest in loras if digest not in self._loras]
        unused = [digest for digest in self._loras if digest not in loras]
        surplus = unused[: max(0, len(unused) + len(loras) - max(MAX_LOADED, len(loras)))]
        changes = bool(missing or surplus or not wanted)
        with self._loaded.layers_changing(structure=changes), libraries.suppress_warnings():
            # After an error it is not known what is in use.
            self._active = None
            if not wanted:
                lora_loading.unload_loras(self._loaded.pipe)
                self._loras.clear()
            for digest in missing:
                with named_by_source(loras[digest].adapter, loras[digest].file.path):
                    self._load(digest, loras[digest].file)
            if wanted:
                names = [self._loras[digest].name for digest, _ in wanted]
                self._loaded.pipe.set_adapters(names, [weight for _, weight in wanted])
            for digest in surplus if wanted else ():
                self._loaded.pipe.delete_adapters(self._loras.pop(digest).name)
        for digest in loras:
            self._loras.move_to_end(digest)
        self._active = wanted

    def _load(self, digest: str, file: AdapterFile) -> None:
        _check_numbers(file)
        pipe, self._count = self._loaded.pipe, self._count + 1
        # No dot, and no name of a layer: networks have it inside the names of their weights.
        name = f"t2i_{self._count}_{digest[:8]}"
        try:
            lora_loading.load_lora(pipe, file, name, self._loaded.model_name)
        except Exception:
            if not self._loras:
                lora_loading.unload_loras(pipe)
            raise
        parts = lora_loading.loaded_parts(pipe, name)
        self._loras[digest] = _LoadedLora(
            name,
            file.elements * DTYPE_BYTES[self._loaded.dtype],
            any(part.startswith("text_encoder") for part in parts),
        )


def _check_numbers(file: AdapterFile) -> None:
    """Raise ModelError for a file with values that are no numbers, of which no picture comes."""
    import torch
    from safetensors import safe_open

    with safe_open(str(file.path), framework="pt") as tensors:
        bad = [
            key
            for key in tensors.keys()
            if not bool(torch.isfinite(tensors.get_tensor(key).float()).all())
        ]
    if bad:
        raise ModelError(
            f"{file.path} is damaged: {keys_text(bad)} with values that are no numbers (NaN) or "
            "infinite.",
            hint="Copy or download it again.",
        )
