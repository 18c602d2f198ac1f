"""Puts embeddings (textual inversions) into a pipeline's tokenizers and text encoders.

The pipeline's own tokenizers and tables of vectors are kept, and come back as they were: a copy of
each takes their place. diffusers' pipelines write out a token of several vectors by its name
(`maybe_convert_prompt`), as `token token_1 token_2`.
"""

import copy
from collections.abc import Sequence

from t2i_cli.errors import InputError, ModelError
from t2i_cli.models import adapter_fit
from t2i_cli.models.adapter_file import AdapterFile
from t2i_cli.models.libraries import LibraryObject
from t2i_cli.request_adapters import Adapter

Embeddings = Sequence[tuple[Adapter, AdapterFile]]
_GENERIC = {"emb_params", "<token>"}


class TokenEmbeddings:
    """The embeddings of one pipeline; `state` tells those in use from others."""

    def __init__(self, pipe: LibraryObject) -> None:
        self._pipe = pipe
        self._own: dict[str, tuple[LibraryObject, LibraryObject]] = {}
        self.state: tuple[tuple[str, str], ...] = ()

    def differ(self, wanted: Embeddings) -> bool:
        """Whether these are others than those in use."""
        return _state(wanted) != self.state

    def use(self, wanted: Embeddings) -> None:
        """Use these, and no others. Raises InputError for a token that is taken."""
        self._restore()
        vectors: dict[str, dict[str, LibraryObject]] = {}
        widths = {
            name: int(encoder.get_input_embeddings().weight.shape[-1])
            for name in ("text_encoder", "text_encoder_2")
            if (encoder := getattr(self._pipe, name, None)) is not None
        }
        for adapter, file in wanted:
            for key, tensor in _tensors(file).items():
                part = adapter_fit.embedding_encoder(key, tensor.shape[-1], widths)
                if part is None:
                    raise ModelError(f"{file.path} fits no text encoder of the model.")
                token = adapter_token(adapter, file)
                for number, vector in enumerate(tensor.reshape(-1, tensor.shape[-1])):
                    name = f"{token}_{number}" if number else token
                    vectors.setdefault(part, {})[name] = vector
        for part, by_token in vectors.items():
            self._extend(part, by_token)
        self.state = _state(wanted)

    def _extend(self, part: str, vectors: dict[str, LibraryObject]) -> None:
        """Give a text encoder and its tokenizer these tokens."""
        import torch

        tokenizer_name = part.replace("text_encoder", "tokenizer")
        encoder, tokenizer = getattr(self._pipe, part), getattr(self._pipe, tokenizer_name)
        table = encoder.get_input_embeddings()
        self._own[part] = tokenizer, table
        known = tokenizer.get_vocab()
        # CLIP's tokenizers mark the end of a word, SentencePiece its beginning.
        words = {token: {token, f"{token.lower()}</w>", f"\u2581{token}"} for token in vectors}
        if taken := next((token for token, forms in words.items() if forms & known.keys()), None):
            raise InputError(
                f"The token {taken!r} is a word that the model knows already.",
                hint="--embedding FILE:<other> names another one.",
                field="embeddings",
            )
        extended = copy.deepcopy(tokenizer)
        extended.add_tokens(list(vectors))
        ids = extended.convert_tokens_to_ids(list(vectors))
        rows = max(table.weight.shape[0], max(ids) + 1)
        with torch.no_grad():
            larger = torch.nn.Embedding(
                rows, table.weight.shape[1], device=table.weight.device, dtype=table.weight.dtype
            )
            larger.weight.zero_()
            larger.weight[: table.weight.shape[0]] = table.weight
            for place, vector in zip(ids, vectors.values(), strict=True):
                larger.weight[place] = vector.to(table.weight)
        larger.requires_grad_(False)
        encoder.set_input_embeddings(larger)
        setattr(self._pipe, tokenizer_name, extended)

    def _restore(self) -> None:
        """The pipeline's own tokenizers and tables."""
        for part, (tokenizer, table) in self._own.items():
            encoder = getattr(self._pipe, part)
            # Its weights may have moved to another device meanwhile.
            encoder.set_input_embeddings(table.to(encoder.get_input_embeddings().weight.device))
            setattr(self._pipe, part.replace("text_encoder", "tokenizer"), tokenizer)
        self._own.clear()
        self.state = ()


def adapter_token(adapter: Adapter, file: AdapterFile) -> str:
    """The word that stands for an embedding: as given, as the file says, or the file's name."""
    if adapter.token:
        return adapter.token
    names = set(file.vectors) - _GENERIC
    if len(file.vectors) == 1 and names and not names & {"clip_l", "clip_g"}:
        return names.pop()
    return file.path.stem.replace(" ", "_")


def _state(wanted: Embeddings) -> tuple[tuple[str, str], ...]:
    return tuple((str(each.digest), adapter_token(each, file)) for each, file in wanted)


def _tensors(file: AdapterFile) -> dict[str, LibraryObject]:
    """The embedding's tensors. Raises ModelError."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        found: dict[str, LibraryObject] = load_file(str(file.path))
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{file.path} cannot be read.") from error
    return found
