"""The `t2i generate` command line that makes an image of a batch again."""

import shlex
from collections.abc import Mapping

from t2i_cli.errors import InputError
from t2i_cli.models.request_resolution import build_request
from t2i_cli.part_source import PART_FIELDS, parse_part_source
from t2i_cli.request_adapters import adapter_options
from t2i_cli.request_extras import extra_options
from t2i_cli.request_fields import FIELDS


def generate_command(record: Mapping[str, object], lora_dir: str | None = None) -> list[str] | None:
    """The command for a manifest's line, as words quoted for a POSIX shell; `None` without one.

    `lora_dir` is the folder whose LoRAs and embeddings have names, if the batch had one.
    It has every field that was settled, and the backend, device and precision that were used. A
    record that another program changed gives none, if a request could not be so.
    """
    request = record.get("request")
    if not isinstance(request, dict) or not _is_request(request):
        return None
    prompt = str(request["prompt"])
    words = ["t2i", "generate"]
    # An argument "-" is standard input, and one that begins with it would be an option.
    if prompt != "-":
        words += [f"--prompt={prompt}"] if prompt.startswith("-") else [prompt]
    else:
        words = ["printf", "%s", "-", "|", *words, "-"]
    for name, known in FIELDS.items():
        if (value := request.get(name)) is None or name == "prompt" or known.expanded:
            continue
        if name == "extras":
            texts = extra_options(value)
        elif name in PART_FIELDS:
            texts = [parsed.source] if (parsed := parse_part_source(value)) else []
        else:
            texts = adapter_options(value) if name in _ADAPTERS else [str(value)]
        for text in texts:
            words += ["--seed", text] if name == "seed" else _option(known.flags[0], text)
    words += _backend_options(record.get("lock"))
    if lora_dir and _names_adapters(request, record.get("lock")):
        words += _option("--lora-dir", lora_dir)
    extension = str(record.get("file") or "").rpartition(".")[2].lower()
    if format := {"jpg": "jpeg", "jpeg": "jpeg", "webp": "webp"}.get(extension):
        words += ["--format", format]
    return ["|" if word == "|" else shlex.quote(word) for word in words]


def _names_adapters(request: Mapping[str, object], lock: object) -> bool:
    """Whether a request may have an adapter by its name in a folder of this machine."""
    if isinstance(lock, dict) and lock.get("backend") in _WITH_NAMES_OF_THEIR_OWN:
        return False
    return any(request.get(name) for name in _ADAPTERS) or "<lora:" in str(request["prompt"])


def _is_request(request: Mapping[str, object]) -> bool:
    """Whether the fields are those of a request, each of its type, and can be told in options."""
    for name, value in request.items():
        known = FIELDS.get(name)
        if value is None:
            continue
        if known is None or isinstance(value, bool) or not (known.flags or name in _BY_HAND):
            return False
        if name in _STRUCTURES:
            kind: type | tuple[type, ...] = _STRUCTURES[name]
        else:
            kind = (int, float) if known.kind is float else known.kind
        if not isinstance(value, kind):
            return False
        # A carriage return ends the line where a terminal pastes it.
        if isinstance(value, str) and "\r" in value:
            return False
    try:
        build_request(
            {
                name: parse(value) if (parse := FIELDS[name].parse) else value
                for name, value in request.items()
                if value is not None
            }
        )
    except (InputError, TypeError):
        return False
    return True


_ADAPTERS = {"loras", "embeddings"}
_WITH_NAMES_OF_THEIR_OWN = {"http", "vertex", "hf", "gemini"}
"""Backends whose servers know the adapters."""
_STRUCTURES: Mapping[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("loras", "embeddings", "style"), list),
    "extras": dict,
    **dict.fromkeys(PART_FIELDS, (dict, str)),
}
"""The JSON types of fields that are no plain text or number."""
_BY_HAND = {"prompt", "seed"}
"""Fields whose options `t2i generate` declares itself."""


def _option(flag: str, value: str) -> list[str]:
    """An option and its value, which may be empty or begin with a hyphen."""
    return [flag, value] if value and not value.startswith("-") else [f"{flag}={value}"]


def _backend_options(lock: object) -> list[str]:
    """The options that choose what made the image."""
    if not isinstance(lock, dict):
        return []
    names = ("backend", "endpoint", "device", "dtype")
    backend, endpoint, device, dtype = (
        value if isinstance(value := lock.get(name), str) and value.isprintable() else ""
        for name in names
    )
    if backend in {"http", "vertex"}:
        place = _option("--url" if backend == "http" else "--endpoint", endpoint)
        return ["--backend", backend, *(place if endpoint else [])]
    if backend == "hf":
        # The address of the Hub's router ends with the provider.
        provider = endpoint.rpartition("/")[2]
        return ["--backend", backend, *(_option("--provider", provider) if provider else [])]
    options = _option("--device", device) if device else []
    options += _option("--dtype", dtype) if dtype else []
    # Another number of threads, as on another machine, would give other bits.
    made_alone = (lock.get("threads"), lock.get("batch_size")) == (1, 1)
    return options + (["--strict"] if made_alone else [])
