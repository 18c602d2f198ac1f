"""How a repository on the Hub, a revision of it and a file in it are named.

`owner/name`, `owner/name@revision`, `owner/name/folder/file.safetensors`, with a revision as well,
or an address as the browser shows it: of a repository, a revision or a file; `hf://owner/name`.
"""

import os
import re
from typing import NamedTuple
from urllib.parse import unquote

from t2i_cli.errors import InputError, ModelError
from t2i_cli.files.user_paths import expand_home
from t2i_cli.files.weight_files import PICKLES, SAFE_WEIGHT_ENDINGS

WEIGHT_ENDINGS = (*SAFE_WEIGHT_ENDINGS, *PICKLES)
"""Endings of files of weights: whoever names one means no folder and no repository."""
_ENDING = "|".join(re.escape(each) for each in WEIGHT_ENDINGS)
_SOURCE = re.compile(
    rf"(?P<repo>[\w-][\w.-]*/[\w.-]+?)(?P<file>/(?:[^/]+/)*[^/]+(?:{_ENDING}))?"
    r"(?:@(?P<revision>[\w][\w./-]*))?",
    re.IGNORECASE,
)
_ADDRESS = re.compile(
    r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)"
    r"(?:/(?P<kind>datasets|spaces|api)(?:/.*)?|/(?P<repo>[\w.-]+/[\w.-]+)"
    r"(?:/(?P<view>tree|blob|resolve|raw)/(?P<revision>refs/(?:pr|heads|tags)/[^/]+|[^/]+)"
    r"(?:/(?P<path>.+))?)?)?"
)
_URL = re.compile(
    r"hf://(?:models/)?(?P<repo>(?!(?:models|datasets|spaces|buckets)/)[\w.-]+/[\w.-]+)"
    r"(?:@(?P<revision>[^/]+))?/?"
)
"""A whole repository as fsspec names it; what lies in one is read as from any bucket."""
NAME_IT = "Name a model as owner/name."


class HubSource(NamedTuple):
    """A repository on the Hub; the revision and the file in it that are named, if any."""

    repo: str
    revision: str | None = None
    file: str | None = None

    @property
    def name(self) -> str:
        """The repository, or the file in it, without the revision."""
        return f"{self.repo}/{self.file}" if self.file else self.repo


def parse_hub_source(text: str) -> HubSource | None:
    """What a name or an address means on the Hub, `None` for another text; no disk is looked at.

    Raises InputError for an address of the Hub that is of no model, or of no file of weights.
    """
    if address := _ADDRESS.fullmatch(_without_query(text)):
        return _parse_address(text, address)
    if url := _URL.fullmatch(text):
        return _checked(text, HubSource(url["repo"], url["revision"]))
    match = _SOURCE.fullmatch(text)
    if match is None or (match["file"] is None and has_weight_ending(match["repo"])):
        return None
    if {".", ".."} & {*text.split("/")}:
        return None
    return HubSource(match["repo"], match["revision"], match["file"] and match["file"][1:])


def parse_source(text: str) -> HubSource | None:
    """`parse_hub_source` of a text that is no file or folder of this machine. Raises InputError.

    A file that is missing in a folder of this machine is none of a repository called so.
    """
    try:
        here = os.path.lexists(expand_home(text)) or os.path.isdir("/".join(text.split("/")[:2]))
    except ValueError:  # a null byte
        return None
    return None if here else parse_hub_source(text)


def has_weight_ending(name: str) -> bool:
    """Whether a name ends as a file of weights does."""
    return name.lower().endswith(WEIGHT_ENDINGS)


def check_no_pickle(name: str) -> None:
    """Raise ModelError for the name of a pickle that is to be downloaded."""
    if name.lower().endswith(PICKLES):
        raise ModelError(
            f"{name} is a pickle file, which can run code when it is loaded.",
            hint="Download it, write its weights with `t2i models convert FILE`, and use those.",
        )


def join_revision(name: str, revision: str | None) -> str:
    """The text that is parsed to that name and revision."""
    return f"{name}@{revision}" if revision else name


def _without_query(text: str) -> str:
    """An address without what follows its path, of the Hub that HF_ENDPOINT names as well."""
    address = text.partition("?")[0].partition("#")[0].rstrip("/")
    own_hub = os.environ.get("HF_ENDPOINT", "").rstrip("/")
    if own_hub and address.startswith(f"{own_hub}/"):
        return f"huggingface.co{address.removeprefix(own_hub)}"
    return address


def _parse_address(text: str, address: re.Match[str]) -> HubSource:
    if address["kind"] or not address["repo"]:
        raise InputError(f"{text} is the address of no model.", hint=NAME_IT, field="model")
    path = address["path"] and unquote(address["path"])
    if address["view"] in {"blob", "resolve", "raw"} or path:
        if not path or not has_weight_ending(path) or address["view"] == "tree":
            raise InputError(
                f"{text} is the address of a "
                f"{'folder' if address['view'] == 'tree' else 'file that holds no weights'} in "
                f"{address['repo']}.",
                hint=f"Name the whole model, {address['repo']}, or a file of weights in it.",
                field="model",
            )
    revision = address["revision"] and unquote(address["revision"])
    return _checked(text, HubSource(address["repo"], revision, path))


def _checked(text: str, source: HubSource) -> HubSource:
    """The source, if no part of it leads out of the repository. Raises InputError."""
    names = "/".join(each for each in source if each).split("/")
    if {"", ".", ".."} & {*names}:
        raise InputError(f"{text} is the address of no model.", hint=NAME_IT, field="model")
    return source
