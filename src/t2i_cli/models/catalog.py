"""The catalogue: models with a short name (alias), and the only place with their facts.

Sizes, licences, steps and guidance are those of the models' public cards and file lists on the Hub,
in copies read on 26 November 2026. The size of sd15 is that of its full precision, of sdxl that of
its fp16 files; the others have one precision.
"""

import errno
import os
import re
import stat
from dataclasses import replace
from pathlib import Path

from t2i_cli import postcard
from t2i_cli.errors import InputError, ModelError, os_reason
from t2i_cli.files.user_paths import expand_home
from t2i_cli.known_names import closest_name
from t2i_cli.model_spec import ModelSpec
from t2i_cli.models import hub_sources, user_catalog
from t2i_cli.request_fields import DEFAULT_MODEL as DEFAULT_MODEL

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_GB = 10**9

_MODELS = (
    ModelSpec(
        name="postcard",
        folder=postcard.FOLDER,
        pipeline="StableDiffusionPipeline",
        summary="Flat postcards; inside t2i, for trying it out and for tests.",
        licence="Apache-2.0",
        steps=20,
        guidance_scale=2.0,
        width=128,
        height=128,
        flow=False,
    ),
    ModelSpec(
        name="sd15",
        repo="stable-diffusion-v1-5/stable-diffusion-v1-5",
        pipeline="StableDiffusionPipeline",
        summary="Stable Diffusion 1.5: small, quick, known everywhere.",
        licence="CreativeML Open RAIL-M",
        download_bytes=int(5.5 * _GB),
        steps=30,
        guidance_scale=7.5,
        width=512,
        height=512,
        flow=False,
    ),
    ModelSpec(
        name="sdxl",
        repo="stabilityai/stable-diffusion-xl-base-1.0",
        pipeline="StableDiffusionXLPipeline",
        summary="Stable Diffusion XL: 1024 pixels, many fine-tuned relatives.",
        licence="CreativeML Open RAIL++-M",
        download_bytes=int(6.9 * _GB),
        steps=30,
        guidance_scale=5.0,
        width=1024,
        height=1024,
        flow=False,
    ),
    ModelSpec(
        name="sd35-medium",
        repo="stabilityai/stable-diffusion-3.5-medium",
        pipeline="StableDiffusion3Pipeline",
        summary="Stable Diffusion 3.5 Medium: follows longer prompts, writes short words.",
        licence="Stability AI Community License",
        download_bytes=int(16.3 * _GB),
        gated=True,
        steps=40,
        guidance_scale=4.5,
        width=1024,
        height=1024,
        multiple=16,
        flow=True,
    ),
    ModelSpec(
        name="flux-schnell",
        repo="black-forest-labs/FLUX.1-schnell",
        pipeline="FluxPipeline",
        summary="FLUX.1 schnell: twelve billion parameters, four steps.",
        licence="Apache-2.0",
        download_bytes=int(33.7 * _GB),
        gated=True,
        steps=4,
        guidance_argument=None,
        negative_prompt=False,
        width=1024,
        height=1024,
        multiple=16,
        flow=True,
    ),
    ModelSpec(
        name="flux-dev",
        repo="black-forest-labs/FLUX.1-dev",
        pipeline="FluxPipeline",
        summary="FLUX.1 dev: twelve billion parameters, many fine-tuned relatives.",
        licence="FLUX.1 [dev] Non-Commercial License",
        download_bytes=int(33.7 * _GB),
        gated=True,
        steps=50,
        guidance_scale=3.5,
        negative_prompt=False,
        width=1024,
        height=1024,
        multiple=16,
        flow=True,
    ),
    ModelSpec(
        name="flux2-klein",
        repo="black-forest-labs/FLUX.2-klein-4B",
        pipeline="Flux2KleinPipeline",
        summary="FLUX.2 klein 4B: four steps, for cards with 16 GB.",
        licence="Apache-2.0",
        download_bytes=int(16.0 * _GB),
        steps=4,
        guidance_argument=None,
        negative_prompt=False,
        width=1024,
        height=1024,
        multiple=16,
        flow=True,
    ),
    ModelSpec(
        name="z-image-turbo",
        repo="Tongyi-MAI/Z-Image-Turbo",
        pipeline="ZImagePipeline",
        summary="Z-Image Turbo: six billion parameters, nine steps, photographs.",
        licence="Apache-2.0",
        download_bytes=int(32.8 * _GB),
        steps=9,
        guidance_argument=None,
        negative_prompt=False,
        width=1024,
        height=1024,
        multiple=16,
        flow=True,
    ),
    ModelSpec(
        name="qwen-image",
        repo="Qwen/Qwen-Image",
        pipeline="QwenImagePipeline",
        summary="Qwen-Image: twenty billion parameters, long text inside pictures.",
        licence="Apache-2.0",
        download_bytes=int(57.7 * _GB),
        steps=50,
        guidance_argument="true_cfg_scale",
        guidance_scale=4.0,
        width=1328,
        height=1328,
        multiple=16,
        flow=True,
    ),
)

MODELS: dict[str, ModelSpec] = {spec.name: spec for spec in _MODELS}


def letters_and_digits(name: str) -> str:
    """What is left of a name if case, spaces and punctuation do not count."""
    return "".join(c for c in name.casefold() if c.isalnum())


_BY_LETTERS: dict[str, ModelSpec] = {
    letters_and_digits(spec.repo.rpartition("/")[2]): spec for spec in _MODELS if spec.repo
} | {letters_and_digits(spec.name): spec for spec in _MODELS}
"""Entries by alias, and by the repository's own name, as letters and digits only."""


def find_in_catalog(name: str, revision: str | None = None) -> ModelSpec | None:
    """The catalogue entry whose alias or repository is `name`, or `None`."""
    spec = MODELS.get(name) or next((s for s in _MODELS if s.repo == name), None)
    return replace(spec, revision=revision) if spec and revision else spec


def find_spelled(name: str) -> ModelSpec | None:
    """The entry whose alias it is, whatever its case and punctuation: `SD15`, `sd-1.5`.

    Only the name is looked at; one that looks like a path is none.
    """
    return None if _is_path(name) else _BY_LETTERS.get(letters_and_digits(name))


def find_known(name: str, revision: str | None = None) -> ModelSpec | None:
    """The entry that a user's name means; a folder of that very name is meant before a spelling."""
    spec = find_in_catalog(name)
    if spec is None and folder_named(name) is None:
        spec = find_spelled(name)
    return replace(spec, revision=revision) if spec and revision else spec


def folder_named(name: str) -> Path | None:
    """The existing folder that a model name is the path of, or `None`; `~` is expanded.

    Raises ModelError if something is there that cannot be examined.
    """
    path = expand_home(name)
    try:
        is_folder = stat.S_ISDIR(os.stat(path).st_mode)
    except ValueError:  # a null byte
        return None
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG}:
            return None
        raise ModelError(f"Cannot read the model folder {name}: {os_reason(error)}.") from error
    return _snapshot_in(Path(path)) if is_folder else None


def file_named(name: str) -> Path | None:
    """The file of weights that a model name is the path of, or `None`; `~` is expanded.

    A name with such a file's ending means one even where there is none, but one of a repository.
    """
    path = Path(expand_home(name))
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):  # also a null byte
        if "\0" in name or "://" in name or not hub_sources.has_weight_ending(name):
            return None
        return None if hub_sources.parse_source(name) else path
    return None if stat.S_ISDIR(mode) else path


def is_file(name: str) -> bool:
    """Whether a model name means a file of weights, which may be missing."""
    return file_named(name) is not None


def _snapshot_in(folder: Path) -> Path:
    """The snapshot in a repository's folder of the Hub's cache, or the folder itself.

    Raises ModelError for the folder of the whole cache.
    """
    try:
        cached = sorted(each.name for each in folder.glob("models--*--*"))
        snapshots = sorted(folder.glob("snapshots/*/model_index.json"))
        main = (folder / "refs/main").read_text().strip() if snapshots else ""
    except (OSError, ValueError):
        main = ""
    if os.path.exists(folder / "model_index.json"):
        return folder
    if cached:
        names = [name.removeprefix("models--").replace("--", "/", 1) for name in cached]
        raise ModelError(
            f"{folder} is a cache of the Hub, which holds {len(names)} "
            f"{'model' if len(names) == 1 else 'models'}.",
            hint=f"Name one of them, such as {names[0]}.",
        )
    files = [each for each in snapshots if each.parent.name == main] or snapshots
    return files[-1].parent if files else folder


def parse_address(name: str, revision: str | None = None) -> tuple[str, str | None]:
    """A name or an address without the revision in it, and that revision; others as they are.

    Raises InputError for the address of something else, or one that names another revision.
    """
    source = hub_sources.parse_source(name)
    if source is None:
        alias, _, end = name.partition("@")
        if not end or alias not in MODELS:
            return name, revision
        source = hub_sources.HubSource(alias, end)
    if revision and source.revision and revision != source.revision:
        what = "address" if "://" in name else "name"
        raise InputError(
            f"The {what} names the revision {source.revision}, and --revision {revision}.",
            field="revision",
        )
    return source.name, revision or source.revision


def is_repository(name: str) -> bool:
    """Whether the name has the form of a Hub repository: owner/name."""
    return bool(_REPOSITORY.fullmatch(name)) and not name.startswith(".")


def unknown_model(
    name: str, others: str = "a folder and owner/name on the Hub do as well"
) -> ModelError:
    """The error for an unknown model name; `others` says what is accepted beside an alias."""
    if _is_path(name):
        if "://" in name:
            return ModelError(
                f"{name} is an address, and no model of the Hub.",
                hint="Download a file of weights and name its path, or name a model of the Hub as "
                "owner/name.",
            )
        there = os.path.exists(expand_home(name))
        if os.path.islink(expand_home(name)) and not there:
            target = os.readlink(expand_home(name))
            return ModelError(
                f"{name} is a link to {target}, which is not there.", hint="Name where it lies now."
            )
        return ModelError(
            f"{name} is no folder." if there else f"There is no file or folder {name}.",
            hint=f"{_near_path(name)}`t2i models list` shows the short names; {others}.",
        )
    own = {letters_and_digits(each): each for each in user_catalog.known_names()}
    if found := own.get(letters_and_digits(name)):
        return ModelError(
            f"{found} is a name of yours, which means a model on this machine only.",
            hint=f"`t2i models show {found}` shows what it stands for.",
        )
    names = own | {letters: spec.name for letters, spec in _BY_LETTERS.items()}
    near = closest_name(letters_and_digits(name), names)
    meant = f"Did you mean {names[near]}? " if near else ""
    return ModelError(
        f"The model {name!r} is unknown.",
        hint=f"{meant}`t2i models list` shows the short names; {others}.",
    )


def _near_path(name: str) -> str:
    """The beginning of a hint that names the file or folder beside which is nearly called so."""
    folder, _, last = name.rstrip("/").rpartition("/")
    try:
        entries = os.listdir(expand_home(folder or ("/" if name.startswith("/") else ".")))
    except (OSError, ValueError):
        return ""
    near = closest_name(last, [each for each in entries if each.isprintable()])
    return f"Did you mean {folder + '/' if folder else ''}{near}? " if near else ""


def _is_path(name: str) -> bool:
    """Whether a model name can only be a path (or a repository)."""
    return name.startswith((".", "~")) or "/" in name or "\\" in name


def check_revision(spec: ModelSpec, revision: str | None) -> None:
    """Raise InputError if a revision is given for a model that is a local folder."""
    if spec.folder and revision:
        raise InputError(f"{spec.name} is a folder, which has no revisions.", field="revision")
