"""Rows: what a prompts file and the command line ask for, one image each, with a lasting id."""

import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from t2i_cli.backend import Backend
from t2i_cli.batch.model_cache import ROW_FAULTS, ModelCache
from t2i_cli.batch.options import MAX_ROWS, BatchOptions
from t2i_cli.errors import InputError, ModelError, T2IError
from t2i_cli.models.request_resolution import build_request, resolve_request
from t2i_cli.prompts.entries import PromptEntry, PromptProblem, Value
from t2i_cli.request import GenerateRequest, ResolvedRequest
from t2i_cli.request_fields import MAX_SEED

ModelRevision = tuple[str, str | None]
"""A model and the revision asked for."""

_ROWS_OWN = frozenset({"prompt", "seed", "count", "name"})
"""What rows say of themselves; with no more than that, all else is the command line's."""


@dataclass(frozen=True, slots=True)
class BatchRow:
    """One image to be made. `index` counts from 1; `id` does not depend on it.

    `line` is the prompts file's; `varied` are the texts of what --vary set, and `repeat` counts
    the images that --count or --seeds made of one row, from 0.
    """

    index: int
    id: str
    line: int
    request: ResolvedRequest
    name: str | None
    varied: tuple[str, ...]
    repeat: int


def expand_rows(
    entries: Sequence[PromptEntry],
    wishes: BatchOptions,
    backend: Backend,
    on_note: Callable[[str], None] = lambda _: None,
) -> tuple[list[BatchRow], list[PromptProblem]]:
    """Every row of the entries, checked against its model, and all that is wrong with the rest.

    Raises T2IError for what is wrong with the command line, or with no row in particular.
    """
    return _Expansion(wishes, backend, on_note).run(entries)


def pin_revisions(
    rows: Sequence[BatchRow],
    pins: Mapping[ModelRevision, str],
    commit: Callable[[str, str | None], str | None],
) -> tuple[list[BatchRow], dict[ModelRevision, str]]:
    """The rows with each model at one commit: that of `pins`, or else what `commit` says now.

    Their ids stay those of what was asked for. Returns the new pins, too.
    """
    found: dict[ModelRevision, str | None] = {}
    for row in rows:
        key = (row.request.model, row.request.revision)
        if key not in found:
            found[key] = pins.get(key) or commit(*key)
    if not any(found.values()):
        return list(rows), {}
    at = [found[row.request.model, row.request.revision] for row in rows]
    moved = [
        replace(row, request=replace(row.request, revision=pin)) if pin else row
        for row, pin in zip(rows, at, strict=True)
    ]
    return moved, {key: pin for key, pin in found.items() if pin and key not in pins}


class _Expansion:
    """The rows so far, and what is remembered to make them the same whatever stands around."""

    def __init__(
        self,
        wishes: BatchOptions,
        backend: Backend,
        on_note: Callable[[str], None],
    ) -> None:
        if wishes.count < 1:
            raise InputError(f"count must be at least 1, not {wishes.count}.", field="count")
        if wishes.seeds and (wishes.count > 1 or wishes.seed is not None):
            raise InputError("--seeds takes the place of --seed and --count.", field="seeds")
        seeded = {"seed"} if wishes.seeds or wishes.seed is not None else set()
        for field, _ in wishes.vary:
            if field in wishes.defaults or field in seeded:
                raise InputError(f"--vary and another option both set {field}.", field="vary")
        self._wishes = wishes
        self._models = ModelCache(backend)
        self._on_note = on_note
        self._notes: set[str] = set()
        self._rows: list[BatchRow] = []
        self._seen: Counter[str] = Counter()
        self._asked: Counter[tuple[object, ...]] = Counter()
        self._next_seed = wishes.seed
        self._combinations = [
            dict(zip([name for name, _ in wishes.vary], values, strict=True))
            for values in itertools.product(*(values for _, values in wishes.vary))
        ]

    def run(self, entries: Sequence[PromptEntry]) -> tuple[list[BatchRow], list[PromptProblem]]:
        # What the command line says is wrong for every row, and said once.
        default = self._wishes.defaults
        build_request({"prompt": "-", **default, "seed": self._wishes.seed})
        named = {field for entry in entries for field in entry.values}
        if "model" in default or "model" not in named.union(name for name, _ in self._wishes.vary):
            self._models.describe(default.get("model"), default.get("revision"))
        if named <= _ROWS_OWN:
            self._check_command_line()
        problems: list[PromptProblem] = []
        for entry in entries:
            found: list[PromptProblem] = []
            rows_before, taken = len(self._rows), 0
            for combination in self._combinations:
                values = {**self._wishes.defaults, **entry.values, **combination}
                taken = max(taken, self._add(entry, values, tuple(combination), found))
            if self._next_seed is not None and "seed" not in entry.values:
                self._next_seed += taken
            if found:
                del self._rows[rows_before:]
                problems.extend(dict.fromkeys(found))
            if len(self._rows) > MAX_ROWS:
                raise InputError(f"These are more than {MAX_ROWS:,} images.", field="count")
        if not self._rows and len({problem.message for problem in problems}) == 1:
            # What rows say themselves is theirs, and their model says nothing of another one.
            if not named & {"model", "revision", problems[0].field}:
                self._blame_command_line(problems[0].message)
        return self._rows, problems

    def _check_command_line(self) -> None:
        """Raise T2IError for what is wrong with a row that sets nothing."""
        for combination in self._combinations:
            values = {"prompt": "-", **self._wishes.defaults, **combination}
            self._settled(build_request(values))

    def _blame_command_line(self, message: str) -> None:
        """Raise the error of that message if rows that set nothing would meet it, too."""
        try:
            self._check_command_line()
        except T2IError as error:
            if _told(error) == message:
                raise

    def _settled(self, request: GenerateRequest) -> ResolvedRequest:
        """The request as its model makes it, checked. Raises T2IError."""
        spec = self._models.describe(request.model, request.revision)
        settled = resolve_request(
            request, spec, lenient=self._wishes.lenient, on_note=self._note_once
        )
        self._models.check(settled)
        return settled

    def _add(
        self,
        entry: PromptEntry,
        values: dict[str, Value],
        varied: tuple[str, ...],
        problems: list[PromptProblem],
    ) -> int:
        """Add the rows of one entry and combination; how many seeds they take."""
        count = int(values.pop("count", self._wishes.count))
        name = values.pop("name", None)
        resolved = self._resolved(entry.line, values, problems)
        if resolved is None:
            return 0
        try:
            seeds = self._seeds(resolved, values, entry, count)
        except InputError as error:
            problems.append(PromptProblem(entry.line, error.field, error.message))
            return 0
        if len(self._rows) + len(seeds) > MAX_ROWS:
            raise InputError(f"These are more than {MAX_ROWS:,} images.", field="count")
        texts = tuple(f"{field} {values[field]}" for field in varied)
        for repeat, seed in enumerate(seeds):
            row_id = resolved.identity(seed=seed)
            occurrence = self._seen[row_id]
            self._seen[row_id] += 1
            if occurrence:
                row_id = resolved.identity(occurrence, seed=seed)
            self._rows.append(
                BatchRow(
                    index=len(self._rows) + 1,
                    id=row_id,
                    line=entry.line,
                    request=replace(resolved, seed=seed),
                    name=None if name is None else str(name),
                    varied=texts,
                    repeat=repeat,
                )
            )
        return len(seeds)

    def _resolved(
        self, line: int, values: dict[str, Value], problems: list[PromptProblem]
    ) -> ResolvedRequest | None:
        """The request settled, its seed aside; else `None`, and every field at fault named.

        Once one is, nothing is asked of a backend any more: what else is wrong shows without the
        fields at fault, as far as the model that the row names is known by then.
        """
        values = dict(values)
        found: list[PromptProblem] = []
        while True:
            try:
                request = build_request(values)
                if not found:
                    return self._settled(request)
                self._check_on(request, {problem.field for problem in found})
            except ROW_FAULTS as error:
                at_fault = getattr(error, "field", None)
                if isinstance(error, ModelError) and "model" in values:
                    at_fault = "model"
                found.append(PromptProblem(line, at_fault, _told(error)))
                if at_fault not in values or isinstance(error, ModelError):
                    break
                if at_fault == "prompt":
                    if values["prompt"] == "-":
                        break
                    values["prompt"] = "-"
                else:
                    del values[at_fault]
                continue
            break
        problems.extend(found)
        return None

    def _check_on(self, request: GenerateRequest, at_fault: Container[str | None]) -> None:
        """Raise for what else is wrong with a row; another model says nothing of its own."""
        if "model" in at_fault or "revision" in at_fault:
            return
        if spec := self._models.known(request.model, request.revision):
            resolve_request(request, spec, lenient=self._wishes.lenient)

    def _note_once(self, note: str) -> None:
        if note not in self._notes:
            self._notes.add(note)
            self._on_note(note)

    def _seeds(
        self, request: ResolvedRequest, values: Mapping[str, Value], entry: PromptEntry, count: int
    ) -> Sequence[int]:
        """The seeds of the row's images: its own, the command line's, or derived from the row."""
        if count < 1:
            raise InputError(f"must be at least 1, not {count}.", field="count")
        if count > MAX_ROWS:
            raise InputError(f"must be at most {MAX_ROWS:,}, not {count}.", field="count")
        first = values.get("seed")
        if first is None and self._wishes.seeds:
            if "count" in entry.values:
                raise InputError("a count and --seeds exclude each other.", field="count")
            return self._wishes.seeds
        if first is None:
            first = self._next_seed
        if first is not None:
            if int(first) + count - 1 > MAX_SEED:
                raise InputError(f"{count} seeds from {first} go beyond {MAX_SEED}.", field="seed")
            return range(int(first), int(first) + count)
        derived = self._derived_seed(request)
        return [(derived + offset) % (MAX_SEED + 1) for offset in range(count)]

    def _derived_seed(self, request: ResolvedRequest) -> int:
        """A seed that follows from the row itself, so that a resume asks for the same image.

        It is taken from the prompt and from how often the same row came before; what --vary sets
        is left out, so that the cells of a grid start from the same noise and can be compared.
        """
        key = request.identity_values()
        occurrence = self._asked[key]
        self._asked[key] += 1
        text = f"{occurrence} {request.prompt}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def _told(error: T2IError) -> str:
    """What a row is told of an error: of a model, what to do as well."""
    hint = error.hint if isinstance(error, ModelError) else None
    return f"{error.message} {hint}" if hint else error.message


def group_rows(rows: Sequence[BatchRow]) -> Iterator[list[BatchRow]]:
    """The rows by what can run together, one model after the other, each in order of coming."""
    models: dict[tuple[object, ...], dict[tuple[object, ...], list[BatchRow]]] = {}
    for row in rows:
        kinds = models.setdefault((row.request.model, row.request.revision), {})
        kinds.setdefault(row.request.batch_key(), []).append(row)
    for kinds in models.values():
        yield from kinds.values()
