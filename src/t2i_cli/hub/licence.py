"""The licence of a repository, as its card says it."""

import re
from functools import lru_cache
from pathlib import Path

from huggingface_hub import (
    constants,
    get_session,
    hf_hub_url,
    hf_raise_for_status,
    try_to_load_from_cache,
)
from huggingface_hub.utils._headers import build_hf_headers

from t2i_cli.errors import T2IError
from t2i_cli.files.input_files import read_input
from t2i_cli.hub import client
from t2i_cli.hub.errors import translate_hub_errors
from t2i_cli.hub.snapshot import Snapshot

CARD = "README.md"
_MAX_CARD = 2**20
_LICENCE = re.compile(r"^license(?:_name)?:[ \t]*[\"']?([\w.+ -]{1,60})", re.MULTILINE)


def find_licence(snapshot: Snapshot) -> str | None:
    """The licence that a commit's card names; `None` if none is told."""
    if not 0 < snapshot.sizes.get(CARD, 0) <= _MAX_CARD:
        return None
    try:
        with translate_hub_errors(snapshot.repo):
            text = _read_card(snapshot.repo, snapshot.commit).decode(errors="replace")
    except (OSError, T2IError, ValueError):
        return None  # what prevents downloads is told by the download itself
    found = [match[1].strip() for match in _LICENCE.finditer(_front_matter(text))]
    # A licence that the Hub has no name for is `other`, with a `license_name` beside it.
    return next((each for each in found if each != "other"), found[0] if found else None)


@lru_cache(maxsize=64)
def _read_card(repo: str, commit: str) -> bytes:
    """The card, of the cache or the Hub; the files of a model are no place for it."""
    cached = try_to_load_from_cache(repo, CARD, revision=commit)
    if isinstance(cached, str):
        return read_input(Path(cached), _MAX_CARD)
    url = hf_hub_url(repo, CARD, revision=commit, endpoint=constants.ENDPOINT)
    response = get_session().get(url, headers=build_hf_headers(token=client.hub_api().token))
    hf_raise_for_status(response)
    return response.content


def _front_matter(text: str) -> str:
    """The card's YAML, between its first two lines of hyphens."""
    match = re.match(r"\s*---[ \t]*\r?\n(.*?)^---[ \t]*$", text, re.DOTALL | re.MULTILINE)
    return match[1] if match else ""
