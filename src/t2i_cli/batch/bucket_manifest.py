"""A manifest in a bucket, whose objects cannot be appended to: parts, and one that joins them.

A part (`manifest/00000012-RUN.jsonl`) is written once, whole, and never changed. `manifest.jsonl`
is what a disk's folder has; the number of the last part that it holds stands in its first line, so
that parts that are still there are not read twice.
"""

import io
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from t2i_cli.batch import manifest
from t2i_cli.batch.bucket_lock import BucketRun
from t2i_cli.batch.lock import Shard
from t2i_cli.batch.manifest import MAIN_MANIFEST, MANIFEST_HEADER, MANIFEST_SCHEMA
from t2i_cli.batch.manifest_merge import merged_lines
from t2i_cli.buckets.object_store import ObjectStore
from t2i_cli.errors import InputError
from t2i_cli.files.state_files import is_count, parse_json

PARTS_FOLDER = "manifest"
MAX_PART_LINES = 500
MIN_PART_SECONDS = 1.0
MAX_PART_SECONDS = 10.0
"""How long lines wait for others: in a long run longer, so that parts do not become many."""
MIN_COMMIT_SECONDS = 60.0
MAX_COMMIT_SECONDS = 180.0
"""The same where each part is a commit, of which the Hub takes few an hour."""
_RUN_SHARE = 0.02
"""The waiting time as a share of the run's, between these bounds."""

_PART_NAME = re.compile(PARTS_FOLDER + r"/(\d{8,})-(?:(\d+-of-\d+)-)?[0-9a-f]{16}\.jsonl")
_SHARD_NAME = re.compile(r"manifest-\d+-of-\d+\.jsonl")

Records = Iterator[dict[str, object] | None]


class BucketManifest:
    """The parts that one run writes; a part is begun by its first line."""

    restored = False

    def __init__(self, store: ObjectStore, run: BucketRun, shard: Shard | None) -> None:
        self._store = store
        self._run = run
        self._part = f"{shard.number}-of-{shard.total}-" if shard else ""
        self._number = _last_number(store) + 1
        self._lines: list[Mapping[str, object]] = []
        self._started = time.monotonic()
        self._waiting_since = 0.0
        self.location = store.url.location(f"{PARTS_FOLDER}/" if shard else MAIN_MANIFEST)

    def append(
        self, lines: Sequence[Mapping[str, object]], files: Iterable[str] = (), *, last: bool = True
    ) -> bool:
        """Append lines; they are stored if it is the `last` time for now, or they have waited."""
        if not self._lines:
            self._waiting_since = time.monotonic()
        self._lines += lines
        if self._lines and (last or self._is_due()):
            self._run.check()
            name = f"{PARTS_FOLDER}/{self._number:08d}-{self._part}{self._run.id}.jsonl"
            self._store.write(name, MANIFEST_HEADER + manifest.encode_lines(self._lines))
            self._store.commit()
            self._number += 1
            self._lines = []
        return not self._lines

    def close(self) -> None:
        """Do nothing: every part is closed."""

    def _is_due(self) -> bool:
        now = time.monotonic()
        if self._store.commits:
            shortest, longest = MIN_COMMIT_SECONDS, MAX_COMMIT_SECONDS
        else:
            shortest, longest = MIN_PART_SECONDS, MAX_PART_SECONDS
        wait = min(longest, max(shortest, _RUN_SHARE * (now - self._started)))
        return len(self._lines) >= MAX_PART_LINES or now - self._waiting_since >= wait


def read_bucket_records(store: ObjectStore) -> Iterator[Records]:
    """The lines of the manifest, as one: its parts follow the object that joined older ones.

    Raises T2IError, as InputError for an object that is no manifest.
    """
    joined, parts = store.read(MAIN_MANIFEST), _part_numbers(store)
    if joined is not None or parts:
        yield _records(store, joined, parts)


def check_copied_shards(store: ObjectStore, names: Iterable[str]) -> None:
    """Raise InputError for manifests of shards copied from a disk: nothing reads them here."""
    if other := next(filter(_SHARD_NAME.fullmatch, names), None):
        raise InputError(
            f"'{store.url.location(other)}' is a shard's manifest, of a folder on a disk.",
            hint="Join them there by t2i batch --merge, and copy the folder again.",
        )


def _records(store: ObjectStore, joined: bytes | None, parts: Mapping[str, int]) -> Records:
    through = 0
    if joined is not None:
        through = _last_part(joined)
        location = store.url.location(MAIN_MANIFEST)
        yield from manifest.read_open_records(io.BytesIO(joined), location)
    newer = [name for name, number in parts.items() if number > through]
    for start in range(0, len(newer), MAX_PART_LINES):
        group = newer[start : start + MAX_PART_LINES]
        for name, data in zip(group, store.read_all(group), strict=True):
            if data is not None:
                location = store.url.location(name)
                yield from manifest.read_open_records(io.BytesIO(data), location)


def _part_numbers(store: ObjectStore) -> dict[str, int]:
    """The numbers of the parts by name, in their order."""
    found = ((name, _PART_NAME.fullmatch(name)) for name in store.sizes(PARTS_FOLDER))
    numbers = {name: int(part[1]) for name, part in found if part}
    return dict(sorted(numbers.items(), key=lambda pair: (pair[1], pair[0])))


def _last_number(store: ObjectStore) -> int:
    """The number of the last part that there is or was; 0 without one."""
    joined = store.read(MAIN_MANIFEST, manifest.MAX_HEADER) or b""
    return max(_last_part(joined), *_part_numbers(store).values(), 0)


def merge_parts(
    store: ObjectStore, source: manifest.RecordSource, check: Callable[[], None]
) -> int:
    """Join all parts to the main manifest, then remove them; returns how many shards wrote some.

    It can be interrupted at any time: the joined manifest says which parts it holds. `check` raises
    what keeps the run from writing.
    """
    parts = _part_numbers(store)
    if not parts:
        return 0
    header = {"t2i_manifest": MANIFEST_SCHEMA, "parts": _last_number(store)}
    table, _ = manifest.read_table(source, dict)
    check()
    data = json.dumps(header).encode() + b"\n" + manifest.encode_lines(merged_lines(table))
    store.write(MAIN_MANIFEST, data)
    store.remove(parts)
    matches = (_PART_NAME.fullmatch(name) for name in parts)
    return len({part[2] for part in matches if part and part[2]})


def _last_part(data: bytes) -> int:
    """The number of the last part that a main manifest holds; 0 for one of a disk's folder."""
    try:
        header = parse_json(data[: manifest.MAX_HEADER].partition(b"\n")[0])
    except ValueError:
        return 0
    number = header.get("parts") if isinstance(header, dict) else None
    return number if is_count(number) else 0
