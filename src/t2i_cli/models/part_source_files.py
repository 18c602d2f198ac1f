"""Where the part of a model lies that a request names by a folder or repository; its digest."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from t2i_cli.buckets.bucket_url import check_no_url
from t2i_cli.errors import InputError
from t2i_cli.models import catalog, file_digests, part_check
from t2i_cli.models.sources import Part
from t2i_cli.part_source import PartSource

_CONFIG = "config.json"


@dataclass(frozen=True, kw_only=True)
class PartFolder:
    """A folder with a part's config, and weights; `part` is the one whose place it takes.

    `repo` is the repository of which it is a snapshot, of a `revision` of it, whose weights may
    still be missing.
    """

    folder: Path
    part: Part
    repo: str | None = None
    revision: str | None = None


def find_folder(field: str, source: PartSource, own: list[Part], *, offline: bool) -> PartFolder:
    """The folder of a part, in a folder or a repository that is named. Raises T2IError."""
    noun = part_check.NOUNS[field]
    name, revision = catalog.parse_address(source.source)
    known = catalog.find_known(name)
    root = known.folder if known else catalog.folder_named(name)
    repo = None
    if root is None:
        repo = known.repo if known else name
        if repo is None or not catalog.is_repository(repo):
            check_no_url(noun, source.source, field)
            raise InputError(
                f"There is no {noun} {source.source}: no file, and no folder.",
                hint="A file, a folder, or owner/name on the Hub is taken.",
                field=field,
            )
        from t2i_cli.hub import part_download

        root = part_download.fetch_part_configs(
            repo, [part.name for part in own], revision=revision, offline=offline
        )
    elif revision:
        raise InputError(f"{name} is a folder, which has no revisions.", field=field)
    folders = [(root / part.name, part) for part in own] + [(root, part) for part in own]
    found = [(folder, part) for folder, part in folders if os.path.isfile(folder / _CONFIG)]
    if not found:
        raise InputError(
            f"{source.source} holds no {noun}: it has no config.json of one.", field=field
        )
    errors = []
    for folder, part in found:
        try:
            part_check.check_part_folder(field, folder, source.source, part)
        except InputError as error:
            errors.append(error)
        else:
            return PartFolder(folder=folder, part=part, repo=repo, revision=revision)
    raise errors[0]


def with_digest(source: PartSource) -> PartSource:
    """The source with its content's SHA-256 where it is a folder. Raises ModelError."""
    folder = catalog.folder_named(source.source)
    if folder is None or catalog.find_known(source.source):
        return source._replace(sha256=None)
    return source._replace(sha256=digest_of(folder))


def digest_of(path: Path) -> str:
    """The SHA-256 of a file's content, of a folder that of its files' names and digests.

    Raises ModelError.
    """
    if not os.path.isdir(path):
        return file_digests.sha256_of(path)
    combined = hashlib.sha256()
    for parent, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            file = Path(parent, name)
            if os.path.isfile(file) and not name.startswith("."):
                entry = f"{file.relative_to(path).as_posix()} {file_digests.sha256_of(file)}\n"
                combined.update(entry.encode(errors="surrogateescape"))
    return combined.hexdigest()
