"""Pins the revision of each row's model to a commit."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from t2i_cli.batch.rows import BatchRow

ModelRevision = tuple[str, str | None]
"""A model and the revision asked for."""


def pin_revisions(
    rows: Sequence[BatchRow],
    pins: Mapping[ModelRevision, str],
    resolve_commit: Callable[[str, str | None], str | None],
) -> tuple[list[BatchRow], dict[ModelRevision, str]]:
    """Set each row's revision to a commit: that of `pins`, or else the result of `resolve_commit`.

    The rows keep their ids. Returns the rows and the pins that were not in `pins`.
    """
    commits: dict[ModelRevision, str | None] = {}
    for row in rows:
        key = (row.request.model, row.request.revision)
        if key not in commits:
            commits[key] = pins.get(key) or resolve_commit(*key)
    if not any(commits.values()):
        return list(rows), {}
    pinned_commits = [commits[row.request.model, row.request.revision] for row in rows]
    pinned = [
        replace(row, request=replace(row.request, revision=pin)) if pin else row
        for row, pin in zip(rows, pinned_commits, strict=True)
    ]
    return pinned, {key: pin for key, pin in commits.items() if pin and key not in pins}
