"""Rows: the requests of a prompts file and the command line, one per image, with stable ids."""

import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from t2i_cli.backend import Backend
from t2i_cli.batch.model_cache import ROW_ERRORS, ModelCache, OnBug
from t2i_cli.batch.note_groups import NoteGroups
from t2i_cli.batch.options import MAX_ROWS, BatchOptions
from t2i_cli.batch.similar_requests import SimilarRequests
from t2i_cli.errors import InputError, ModelError, T2IError
from t2i_cli.model_spec import ModelSpec
from t2i_cli.models.adapter_resolution import settle_prompt
from t2i_cli.models.prompt_support import check_prompt_texts
from t2i_cli.models.request_resolution import build_request, resolve_request
from t2i_cli.prompts.entries import PromptEntry, PromptProblem, Value
from t2i_cli.prompts.styles import expand_styles
from t2i_cli.request import GenerateRequest, ResolvedRequest
from t2i_cli.request_fields import MAX_SEED

_PER_ROW_FIELDS = frozenset({"prompt", "seed", "count", "name"})
"""Fields that each row has of its own; if rows set no others, the rest is the command line's."""


@dataclass(frozen=True, slots=True)
class BatchRow:
    """One image to be made. `index` counts from 1; `id` does not depend on it.

    `line` is the line in the prompts file; `varied` are the fields that --vary set, as text;
    `repeat` counts the images that --count or --seeds make of one entry, from 0; `notes` say what
    of the request is left out.
    """

    index: int
    id: str
    line: int
    request: ResolvedRequest
    name: str | None
    varied: tuple[str, ...]
    repeat: int
    notes: tuple[str, ...] = ()


def expand_rows(
    entries: Sequence[PromptEntry],
    options: BatchOptions,
    backend: Backend,
    on_note: Callable[[str], None] = lambda _: None,
    on_bug: OnBug = lambda _: None,
    on_size_note: Callable[[str], None] = lambda _: None,
) -> tuple[list[BatchRow], list[PromptProblem]]:
    """Expand the entries to rows, checked against their models; returns rows and problems.

    `on_note` is called for what of the requests is left out, `on_size_note` for sizes far from the
    models' own, `on_bug` with the error of an unexpected exception about a row. Raises T2IError for
    an error of the command line, or one that no row causes.
    """
    return _RowExpander(options, backend, on_note, on_bug, on_size_note).run(entries)


class _RowExpander:
    """Expands entries to rows; counts equal rows, so that ids and seeds are unique and stable."""

    def __init__(
        self,
        options: BatchOptions,
        backend: Backend,
        on_note: Callable[[str], None],
        on_bug: OnBug,
        on_size_note: Callable[[str], None],
    ) -> None:
        if options.count < 1:
            raise InputError(f"count must be at least 1, not {options.count}.", field="count")
        if options.seeds and (options.count > 1 or options.seed is not None):
            raise InputError("--seeds takes the place of --seed and --count.", field="seeds")
        seeded = {"seed"} if options.seeds or options.seed is not None else set()
        for field, _ in options.vary:
            if field in options.defaults or field in seeded:
                raise InputError(f"--vary and another option both set {field}.", field="vary")
        self._options = options
        self._models = ModelCache(backend, on_bug)
        self._on_note, self._on_size_note = on_note, on_size_note
        self._size_notes: set[str] = set()
        self._rows: list[BatchRow] = []
        self._id_counts: Counter[str] = Counter()
        self._derived_seed_counts: Counter[int] = Counter()
        self._next_seed = options.seed
        # Wildcards are checked for each prompt.
        self._similar = SimilarRequests(enabled=options.wildcards is None)
        # Of the request that was resolved last.
        self._spec: ModelSpec | None = None
        self._combinations = [
            dict(zip([name for name, _ in options.vary], values, strict=True))
            for values in itertools.product(*(values for _, values in options.vary))
        ]

    def run(self, entries: Sequence[PromptEntry]) -> tuple[list[BatchRow], list[PromptProblem]]:
        # An error of the command line would repeat for every row: raise it once.
        defaults = self._options.defaults
        default_request = build_request({"prompt": "-", **defaults, "seed": self._options.seed})
        set_fields = {field for entry in entries for field in entry.values}
        if "model" in defaults or "model" not in set_fields.union(
            name for name, _ in self._options.vary
        ):
            self._models.describe(default_request)
        if set_fields <= _PER_ROW_FIELDS:
            self._check_command_line()
        problems: list[PromptProblem] = []
        for entry in entries:
            found: list[PromptProblem] = []
            rows_before, seeds_taken = len(self._rows), 0
            for combination in self._combinations:
                values = {**self._options.defaults, **entry.values, **combination}
                seeds_taken = max(
                    seeds_taken, self._add_rows(entry, values, tuple(combination), found)
                )
            if self._next_seed is not None and "seed" not in entry.values:
                self._next_seed += seeds_taken
            if found:
                del self._rows[rows_before:]
                problems.extend(dict.fromkeys(found))
            if len(self._rows) > MAX_ROWS:
                raise InputError(f"These are more than {MAX_ROWS:,} images.", field="count")
        if not self._rows and len({problem.message for problem in problems}) == 1:
            # Not if the rows set the field at fault, or a model of their own.
            if not set_fields & {"model", "revision", problems[0].field}:
                self._blame_command_line(problems[0].message)
        self._tell_notes()
        return self._rows, problems

    def _tell_notes(self) -> None:
        """Pass on the notes of all rows, each text once."""
        groups, size_groups = NoteGroups(), NoteGroups()
        for row in self._rows:
            for note in row.notes:
                group = size_groups if note in self._size_notes else groups
                group.add(note, row.id, row.line)
        for text in groups.texts():
            self._on_note(text)
        for text in size_groups.texts():
            self._on_size_note(text)

    def _check_command_line(self) -> None:
        """Raise T2IError if a row that sets only a prompt would be invalid."""
        for combination in self._combinations:
            values = {"prompt": "-", **self._options.defaults, **combination}
            self._resolve(build_request(values))

    def _blame_command_line(self, message: str) -> None:
        """Raise the error with that message if a row that sets only a prompt would have it."""
        try:
            self._check_command_line()
        except T2IError as error:
            if error_text(error) == message:
                raise

    def _resolve(self, request: GenerateRequest) -> tuple[ResolvedRequest, tuple[str, ...]]:
        """Resolve a request for its model and check it; returns it with notes. Raises T2IError."""
        notes: list[str] = []
        size_notes: list[str] = []
        self._spec = spec = self._models.describe(request)
        resolved = resolve_request(
            expand_styles(request, self._options.styles, spec.own_negative_prompt),
            spec,
            lenient=self._options.lenient,
            on_note=notes.append,
            on_size_note=size_notes.append,
        )
        self._size_notes.update(size_notes)
        if self._options.wildcards:
            self._options.wildcards.check_request(resolved)
        self._models.check(resolved)
        return resolved, (*notes, *size_notes)

    def _add_rows(
        self,
        entry: PromptEntry,
        values: dict[str, Value],
        varied: tuple[str, ...],
        problems: list[PromptProblem],
    ) -> int:
        """Add the rows of one entry and combination; returns the number of seeds used."""
        count = int(values.pop("count", self._options.count))
        name = values.pop("name", None)
        found = self._resolve_or_report(entry.line, values, problems)
        if found is None:
            return 0
        resolved, notes = found
        try:
            seeds = self._seeds(resolved, values, entry, count)
            too_many = len(self._rows) + len(seeds) > MAX_ROWS
            requests = [] if too_many else [self._seeded(resolved, seed) for seed in seeds]
        except InputError as error:
            problems.append(PromptProblem(entry.line, error.field, error.message))
            return 0
        if too_many:
            raise InputError(f"These are more than {MAX_ROWS:,} images.", field="count")
        texts = tuple(f"{field} {values[field]}" for field in varied)
        for repeat, request in enumerate(requests):
            row_id = request.identity()
            occurrence = self._id_counts[row_id]
            self._id_counts[row_id] += 1
            if occurrence:
                row_id = request.identity(occurrence)
            self._rows.append(
                BatchRow(
                    index=len(self._rows) + 1,
                    id=row_id,
                    line=entry.line,
                    request=request,
                    name=None if name is None else str(name),
                    varied=texts,
                    repeat=repeat,
                    notes=notes,
                )
            )
        return len(seeds)

    def _resolve_or_report(
        self, line: int, values: dict[str, Value], problems: list[PromptProblem]
    ) -> tuple[ResolvedRequest, tuple[str, ...]] | None:
        """Resolve the request, without its seed; else add every invalid field to `problems`.

        After the first invalid field the request is checked again without it, to find the others.
        These checks do not ask the backend, and use the row's model only if it is cached.
        """
        if known := self._similar.find(values):
            return known
        values = dict(values)
        found: list[PromptProblem] = []
        while True:
            try:
                request = build_request(values)
                if not found:
                    resolved = self._resolve(request)
                    self._similar.keep(values, *resolved)
                    return resolved
                self._check_other_fields(request, {problem.field for problem in found})
            except ROW_ERRORS as error:
                field = getattr(error, "field", None)
                if isinstance(error, ModelError) and "model" in values:
                    field = "model"
                found.append(PromptProblem(line, field, error_text(error)))
                if field not in values or isinstance(error, ModelError):
                    break
                if field == "prompt":
                    if values["prompt"] == "-":
                        break
                    values["prompt"] = "-"
                else:
                    del values[field]
                continue
            break
        problems.extend(found)
        return None

    def _check_other_fields(self, request: GenerateRequest, invalid: Container[str | None]) -> None:
        """Raise T2IError for further invalid fields, unless the row's model itself is invalid."""
        if "model" in invalid or "revision" in invalid:
            return
        if spec := self._models.cached_spec(request):
            styled = expand_styles(request, self._options.styles, spec.own_negative_prompt)
            resolve_request(styled, spec, lenient=self._options.lenient)

    def _seeded(self, request: ResolvedRequest, seed: int) -> ResolvedRequest:
        """The request with a seed, and the wildcards' values that follow from it."""
        request = replace(request, seed=seed)
        wildcards = self._options.wildcards
        if wildcards is None or self._spec is None:
            return request
        filled = settle_prompt(wildcards.fill_request(request), self._spec)
        check_prompt_texts(filled)
        return filled

    def _seeds(
        self, request: ResolvedRequest, values: Mapping[str, Value], entry: PromptEntry, count: int
    ) -> Sequence[int]:
        """The seeds of an entry's images: its own, the command line's, or derived ones."""
        if count < 1:
            raise InputError(f"must be at least 1, not {count}.", field="count")
        if count > MAX_ROWS:
            raise InputError(f"must be at most {MAX_ROWS:,}, not {count}.", field="count")
        first = values.get("seed")
        if first is None and self._options.seeds:
            if "count" in entry.values:
                raise InputError("a count and --seeds exclude each other.", field="count")
            return self._options.seeds
        if first is None:
            first = self._next_seed
        if first is not None:
            if int(first) + count - 1 > MAX_SEED:
                raise InputError(f"{count} seeds from {first} go beyond {MAX_SEED}.", field="seed")
            return range(int(first), int(first) + count)
        derived = self._derived_seed(request)
        return [(derived + offset) % (MAX_SEED + 1) for offset in range(count)]

    def _derived_seed(self, request: ResolvedRequest) -> int:
        """Derive a seed from the request, so that a resumed batch uses the same one.

        It is a SHA-256 hash of the prompt and the number of equal requests before. Fields that
        --vary sets do not enter it: the cells of a grid start from the same noise, and can be
        compared.
        """
        key = int(request.identity(seed=0), 16)  # which takes half the memory of the text
        occurrence = self._derived_seed_counts[key]
        self._derived_seed_counts[key] += 1
        text = f"{occurrence} {request.prompt}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def error_text(error: T2IError) -> str:
    """The message of an error for a row; that of a model with its hint."""
    hint = error.hint if isinstance(error, ModelError) else None
    return f"{error.message} {hint}" if hint else error.message


def group_rows(rows: Sequence[BatchRow]) -> Iterator[list[BatchRow]]:
    """Group rows by batch key, one model after the other, each in the order of the rows."""
    models: dict[tuple[object, ...], dict[tuple[object, ...], list[BatchRow]]] = {}
    for row in rows:
        batches = models.setdefault(row.request.model_key(), {})
        batches.setdefault(row.request.batch_key(), []).append(row)
    for batches in models.values():
        yield from batches.values()
