"""By which method a part's weights were quantised when they were saved, before they are loaded."""

import re
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from t2i_cli.errors import ModelError
from t2i_cli.files.state_files import parse_json
from t2i_cli.models import (
    class_facts,
    diffusers_folder,
    safetensors_header,
    single_file_parts,
    sources,
)
from t2i_cli.models.safetensors_header import WeightsHeader
from t2i_cli.models.sources import Part

_MAX_NAME = 40
_WEIGHT = re.compile(r"\.(weight|weight\._data|_weight_qdata)$")
"""The ends of names of weights: plain ones and bitsandbytes', quanto's, torchao's."""
_PACKAGES = {
    # torchao's tensors were saved as pickles before.
    "torchao": ("torchao", (0, 16)),
    "quanto": ("optimum-quanto", (0, 2, 6)),
    # Weights in 8 bits could not be moved between devices before.
    "bitsandbytes": ("bitsandbytes", (0, 48)),
    "gguf": ("gguf", (0,)),
}
"""The packages that compute weights of a method, and the first version that does."""
_QUANTO_OWN = "quanto_qmap.json"
"""The file that optimum-quanto writes beside weights that it saves without diffusers."""
_DTYPES = {"float32", "float16", "bfloat16"}
_TORCHAO_DTYPE = "bfloat16"
"""What torchao's weights are made from where their files do not say."""


class SavedQuantization(NamedTuple):
    """How a part was quantised: the method by its name, and the form of its weights, if known.

    `form` is torchao's class of config, quanto's dtype, or bitsandbytes' 8bit, nf4 or fp4.
    """

    method: str
    form: str | None = None

    @property
    def text(self) -> str:
        """Both, for people."""
        return f"{self.method} {self.form}" if self.form else self.method


def saved_quantization(part: Part) -> SavedQuantization | None:
    """What the part's config or its file's format says; `None` if it is not quantised.

    Raises ModelError for a damaged config.
    """
    if part.file and single_file_parts.is_gguf(part.file.path):
        return SavedQuantization("gguf")
    found = _config(part)
    if found is None:
        return None
    method = str(found.get("quant_method") or "bitsandbytes")[:_MAX_NAME]
    # Early versions of bitsandbytes' config have no method, or one for each number of bits.
    if method.startswith("bitsandbytes"):
        four = found.get("load_in_4bit", method.endswith("4bit"))
        kind = found.get("bnb_4bit_quant_type", "fp4") if four else "8bit"
        return SavedQuantization("bitsandbytes", _short_text(kind))
    if method == "torchao":
        return SavedQuantization(method, _torchao_form(found.get("quant_type")))
    return SavedQuantization(method, _short_text(found.get("weights_dtype", found.get("weights"))))


def saved_method(part: Part) -> str | None:
    """The name of the method; `None` if the part is not quantised. Raises ModelError."""
    found = saved_quantization(part)
    return found.method if found else None


def quantized_parts(folder: Path) -> dict[str, SavedQuantization]:
    """The parts that are saved quantised, by name. Raises ModelError."""
    found = {part.name: saved_quantization(part) for part in sources.list_parts(folder)}
    return {name: saved for name, saved in found.items() if saved}


def saved_methods(folder: Path) -> set[str]:
    """The methods of all parts that are saved quantised. Raises ModelError."""
    return {saved.method for saved in quantized_parts(folder).values()}


def package_versions(folder: Path) -> dict[str, str]:
    """The installed packages that compute the saved weights, with their versions."""
    names = sorted(_PACKAGES[method][0] for method in saved_methods(folder) & _PACKAGES.keys())
    return {name: version(name) for name in names}


def check_methods(folder: Path) -> None:
    """Raise ModelError for weights saved in a way that the installed libraries do not read.

    Packages that are missing altogether are named elsewhere.
    """
    for part in sources.list_parts(folder):
        if _QUANTO_OWN in part.file_names():
            raise ModelError(
                f"The {part.name} in {folder} was saved by optimum-quanto itself ({_QUANTO_OWN}), "
                "in a form that diffusers and transformers do not load.",
                hint="Look for a copy that was saved by diffusers.",
            )
        saved = saved_quantization(part)
        if saved is None or part.file or part.library not in {"diffusers", "transformers"}:
            continue
        module = f"{part.library}.quantizers.auto"
        known = class_facts.table_keys(module, "AUTO_QUANTIZER_MAPPING")
        if known and not known & {saved.method, f"{saved.method}_4bit"}:
            raise ModelError(
                f"The {part.name} in {folder} is quantised in a way that {part.library} "
                f"{version(part.library)} does not load ({saved.text}).",
                hint="Look for a copy that is quantised otherwise, or not.",
            )
        if saved.method == "torchao" and saved.form is None:
            raise ModelError(
                f"The {part.name} in {folder} was quantised by an early version of torchao, whose "
                "form of weights is no longer read.",
                hint="Look for a copy that was saved with torchao 0.16 or newer.",
            )
        _check_version(part, saved.method)


def saved_dtype(folder: Path) -> tuple[str, str] | None:
    """The dtype that saved weights compute in, if they do in one only, and the name of their part.

    torchao's 8-bit integers adapt to their input; its other weights are made for one dtype. Of
    files that are not there yet the usual one is assumed. Raises ModelError.
    """
    for part in sources.list_parts(folder):
        saved = saved_quantization(part)
        if saved and saved.method == "torchao" and not str(saved.form).startswith("Int8"):
            return _torchao_dtype(part), part.name
    return None


def layer_shapes(header: WeightsHeader) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The layers that a file has weights of, quantised or not, with the shapes of these.

    The shape is empty where weights are packed, several to a number.
    """
    for name, tensor in header.tensors.items():
        if found := _WEIGHT.search(name):
            packed = tensor.dtype == "U8" or (len(tensor.shape) == 2 and tensor.shape[1] == 1)
            yield name[: found.start()], () if packed else tensor.shape


def _config(part: Part) -> Mapping[str, object] | None:
    found = diffusers_folder.component_config(part.folder.parent, part.name)
    quantization = found.get("quantization_config")
    if quantization is None or isinstance(quantization, dict):
        return quantization
    raise ModelError(
        f"The config of the {part.name} in {part.folder.parent} is damaged: its "
        "quantization_config is no object.",
        hint="Copy or download it again.",
    )


def _short_text(value: object) -> str | None:
    return value[:_MAX_NAME] if isinstance(value, str) else None


def _torchao_form(quant_type: object) -> str | None:
    """The class of the config; `None` for the short names that early versions wrote."""
    found = quant_type.get("default") if isinstance(quant_type, dict) else None
    return _short_text(found.get("_type")) if isinstance(found, dict) else None


def _torchao_dtype(part: Part) -> str:
    """The dtype that torchao's tensors say they stand for, in their files' metadata."""
    for path in part.weight_paths(_TORCHAO_DTYPE) if part.weights(_TORCHAO_DTYPE) else []:
        texts = safetensors_header.read_header(path).metadata.values() if path.is_file() else ()
        for text in texts:
            if '"torch.dtype"' in text and (dtype := _tensor_dtype(text)):
                return dtype
    return _TORCHAO_DTYPE


def _tensor_dtype(text: str) -> str | None:
    try:
        found = parse_json(text.encode())
    except ValueError:
        return None
    for key in ("_data", "dtype", "_data"):
        found = found.get(key) if isinstance(found, dict) else None
    return found if isinstance(found, str) and found in _DTYPES else None


def _check_version(part: Part, method: str) -> None:
    """Raise ModelError if the method's package is installed, and too old."""
    package, least = _PACKAGES.get(method, ("", ()))
    try:
        found = version(package) if package else ""
    except PackageNotFoundError:
        return
    if package and tuple(int(n) for n in re.findall(r"\d+", found)[:3]) < least:
        raise ModelError(
            f"The {part.name} in {part.folder.parent} is quantised by {method}, which needs "
            f"{package} {'.'.join(map(str, least))} or newer, and {found} is installed.",
            hint=f"`pip install --upgrade {package}` brings a newer one.",
        )
