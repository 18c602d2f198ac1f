"""Checks the Hub's JSON answers before huggingface_hub builds its objects of them.

It trusts them; what HF_ENDPOINT or a proxy leads to may answer anything with status 200.
"""

import re
from dataclasses import dataclass
from urllib.parse import quote

import httpx2
from huggingface_hub import HfApi, constants, get_session, hf_raise_for_status
from huggingface_hub.utils._headers import build_hf_headers
from huggingface_hub.utils._validators import validate_repo_id

from t2i_cli.errors import RemoteError
from t2i_cli.files.state_files import is_count, is_unicode_text, parse_json

_WHOAMI = re.compile(r"/api/whoami-v2$")
_TREE = re.compile(r"/api/models/.+/tree/")
_COMMIT = re.compile("[0-9a-f]{40}")


@dataclass(frozen=True, kw_only=True)
class RepositoryFacts:
    """What t2i needs of a repository: a revision's commit, and whether not everybody may read."""

    commit: str
    restricted: bool


def repository_facts(api: HfApi, repo: str, revision: str | None = None) -> RepositoryFacts:
    """Ask the Hub for a repository. Raises RemoteError, and huggingface_hub's errors.

    HfApi.model_info() would read thirty more fields, of which any may be broken.
    """
    validate_repo_id(repo)
    url = f"{constants.ENDPOINT}/api/models/{repo}"
    if revision is not None:
        url += f"/revision/{quote(revision, safe='')}"
    response = get_session().get(url, headers=build_hf_headers(token=api.token))
    hf_raise_for_status(response)
    return parse_facts(response.content)


def parse_facts(body: bytes) -> RepositoryFacts:
    """The facts in an answer about a repository. Raises RemoteError."""
    answer = _parse(body)
    commit = answer.get("sha") if isinstance(answer, dict) else None
    if not isinstance(answer, dict) or not is_unicode_text(commit) or not _COMMIT.fullmatch(commit):
        raise _no_hub("it names no commit of the repository")
    return RepositoryFacts(
        commit=commit, restricted=bool(answer.get("gated") or answer.get("private"))
    )


def check_response(response: httpx2.Response) -> None:
    """An event hook for responses: raises RemoteError for JSON that the Hub does not send."""
    path = response.url.path
    if response.status_code == 200 and (_WHOAMI.search(path) or _TREE.search(path)):
        response.read()
        check_body(path, response.content)


def check_body(path: str, body: bytes) -> None:
    """Raise RemoteError for the body of an answer that huggingface_hub cannot take."""
    answer = _parse(body)
    if _WHOAMI.search(path) and not _is_account(answer):
        raise _no_hub("it names no account")
    if _TREE.search(path) and not (isinstance(answer, list) and all(map(_is_tree_entry, answer))):
        raise _no_hub("it lists no files")


def _parse(body: bytes) -> object:
    try:
        return parse_json(body)
    except ValueError as error:
        raise _no_hub("it sends no JSON") from error


def _no_hub(reason: str) -> RemoteError:
    return RemoteError(
        f"What answers at {constants.ENDPOINT} is no Hub: {reason}.",
        hint="HF_ENDPOINT names the address; a proxy or a login page may answer for it.",
    )


def _is_account(answer: object) -> bool:
    if not isinstance(answer, dict) or not is_unicode_text(answer.get("name"), 200):
        return False
    auth = answer.get("auth")
    token = auth.get("accessToken") if isinstance(auth, dict) else None
    return (auth is None or isinstance(auth, dict)) and (
        token is None
        or isinstance(token, dict)
        and all(
            token.get(name) is None or is_unicode_text(token[name], 200)
            for name in ("displayName", "role")
        )
    )


def _is_tree_entry(entry: object) -> bool:
    if not isinstance(entry, dict) or not is_unicode_text(path := entry.get("path")):
        return False
    parts = path.split("/")
    if "" in parts or ".." in parts or "." in parts or not is_unicode_text(entry.get("oid"), 200):
        return False
    return entry.get("type") == "directory" or _is_file(entry)


def _is_file(entry: dict[str, object]) -> bool:
    large = entry.get("lfs")
    return (
        entry.get("type") == "file"
        and is_count(entry.get("size"))
        and (entry.get("xetHash") is None or is_unicode_text(entry["xetHash"], 200))
        # Asked for by `expand` only, which t2i does not.
        and not any(entry.get(name) for name in ("lastCommit", "last_commit", "securityFileStatus"))
        and (
            large is None
            or isinstance(large, dict)
            and is_unicode_text(large.get("oid"), 200)
            and is_count(large.get("size"))
            and is_count(large.get("pointerSize"))
        )
    )
