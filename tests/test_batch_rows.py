"""Rows: precedence, repeats, variations, ids and seeds that last, and all problems at once."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from t2i_cli.batch import options, revision_pins, rows
from t2i_cli.batch.local_folder import LocalFolder
from t2i_cli.batch.manifest import ManifestState
from t2i_cli.batch.options import BatchOptions, parse_vary
from t2i_cli.batch.plan import BatchPlan, SelectionOptions
from t2i_cli.batch.planner import BatchConfig, make_planner
from t2i_cli.batch.rows import BatchRow, expand_rows
from t2i_cli.batch.similar_requests import SimilarRequests
from t2i_cli.errors import (
    InputError,
    InternalError,
    ModelError,
    OutOfMemoryError,
    RemoteError,
    T2IError,
)
from t2i_cli.model_spec import ModelSpec
from t2i_cli.models import catalog
from t2i_cli.models.request_resolution import resolve_request
from t2i_cli.prompts import PromptsError, PromptsFile
from t2i_cli.prompts.entries import PromptEntry, PromptProblem, Value
from t2i_cli.request import GenerateRequest, ResolvedRequest, parse_seeds
from t2i_cli.request_extras import parse_extras
from t2i_cli.request_fields import MAX_SEED
from t2i_cli.terminal.console import Console
from tests.fakes.stub_backend import StubBackend


def entries(*values: Mapping[str, Value] | str) -> list[PromptEntry]:
    """Entries on lines 1, 2, …; a text is a prompt alone."""
    return [
        PromptEntry(line, {"prompt": v} if isinstance(v, str) else v)
        for line, v in enumerate(values, 1)
    ]


def good(*values: Mapping[str, Value] | str, **wished: object) -> list[BatchRow]:
    """The rows of entries with nothing wrong."""
    found, problems = expand_rows(entries(*values), BatchOptions(**wished), StubBackend())  # type: ignore[arg-type]
    assert problems == []
    return found


def test_row_stands_over_command_line_over_model() -> None:
    first, second = good(
        {"prompt": "a", "steps": 7, "negative_prompt": "x"},
        "b",
        defaults={"steps": 5, "width": 64},
    )
    assert (first.request.steps, first.request.width, first.request.height) == (7, 64, 128)
    assert (second.request.steps, second.request.negative_prompt) == (5, None)
    assert second.request.guidance_scale == catalog.MODELS["postcard"].guidance_scale
    assert first.request.user_set == {"prompt", "negative_prompt", "steps", "width"}


def test_ids_and_derived_seeds_do_not_depend_on_order_or_neighbours() -> None:
    alone = {row.request.prompt: row for row in good("a", "b", "c")}
    among = {row.request.prompt: row for row in good("c", "new", "b", "a")}
    for prompt, row in alone.items():
        assert (among[prompt].id, among[prompt].request.seed) == (row.id, row.request.seed)
    assert len({row.id for row in alone.values()}) == 3
    assert len({row.request.seed for row in alone.values()}) == 3


@pytest.mark.parametrize("vary", [[], ["steps=3,4"]])
def test_rows_that_differ_in_their_prompts_only_are_resolved_once_and_are_the_same(
    vary: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    odd: list[Mapping[str, Value] | str] = [
        "a",
        "b",
        "a",
        "",
        "two\r\nlines",
        "c" * 20_001,
        "d\x00",
    ]
    odd += [{"prompt": "a", "seed": 7}, {"prompt": "b", "seed": 7}, {"prompt": "a", "width": 500}]
    odd += [{"prompt": "a", "width": 501}, {"prompt": "b", "width": 501}, "a"]
    wished = BatchOptions(vary=parse_vary(vary), count=2, lenient=True)
    found = expand_rows(entries(*odd), wished, StubBackend())
    with monkeypatch.context() as patch:
        patch.setattr(SimilarRequests, "find", lambda *_: None)
        assert expand_rows(entries(*odd), wished, StubBackend()) == found
    counted = mock.Mock(wraps=resolve_request)
    monkeypatch.setattr(rows, "resolve_request", counted)
    good(*(f"star {number}" for number in range(50)))
    assert [call.args[0].prompt for call in counted.call_args_list] == ["-", "star 0"]


def test_rows_with_extras_get_seeds_as_others_do() -> None:
    extras = parse_extras({"sigmas": [1, 0.5]})
    found = good("a", defaults={"extras": extras}) + good("a", "a", defaults={"extras": extras})
    assert [row.request.extras for row in found] == [extras] * 3
    assert found[0].request.seed == found[1].request.seed == good("a")[0].request.seed
    assert found[1].request.seed != found[2].request.seed


def test_id_is_of_the_resolved_request_not_of_how_it_was_written() -> None:
    (written,) = good({"prompt": "a", "steps": 20, "seed": 3, "name": "x"})
    (implied,) = good("a", seed=3)
    assert written.id == implied.id
    assert good("a", seed=4)[0].id != implied.id
    assert good("a", seed=3, defaults={"steps": 21})[0].id != implied.id
    assert good("a", seed=3, defaults={"guidance_scale": 4.5})[0].id != implied.id


def test_ids_never_change_between_versions() -> None:
    # A manifest of today must be known tomorrow.
    (row,) = good({"prompt": "a red star", "guidance_scale": 4.0}, seed=1)
    assert row.id == "8657e5540cd3e696"
    assert good("a red star")[0].request.seed == 2321085714


def test_the_same_row_twice_makes_two_images() -> None:
    first, second = good("a", "a")
    assert first.request.seed != second.request.seed
    first, second = good({"prompt": "a", "seed": 1}, {"prompt": "a", "seed": 1})
    assert first.request == second.request
    assert first.id != second.id
    # The occurrence counts equal rows, whatever stands between them.
    again = good({"prompt": "a", "seed": 1}, "b", {"prompt": "a", "seed": 1})
    assert [again[0].id, again[2].id] == [first.id, second.id]


def test_count_and_seeds_repeat() -> None:
    assert [r.request.seed for r in good({"prompt": "a", "seed": 5}, count=3)] == [5, 6, 7]
    assert [r.request.seed for r in good({"prompt": "a", "seed": 5, "count": 2})] == [5, 6]
    assert [r.request.seed for r in good("a", "b", seeds=(1, 9))] == [1, 9, 1, 9]
    derived = [r.request.seed for r in good("a", count=3)]
    assert [s - derived[0] for s in derived] == [0, 1, 2]
    assert derived[0] == good("a")[0].request.seed
    assert [r.repeat for r in good("a", count=3)] == [0, 1, 2]


def test_seed_is_the_first_rows_and_the_next_count_on() -> None:
    found = good("a", {"prompt": "b", "seed": 99}, "c", seed=10, count=2)
    assert [r.request.seed for r in found] == [10, 11, 99, 100, 12, 13]


def test_vary_crosses_every_row_from_the_same_noise() -> None:
    found = good("a", "b", vary=parse_vary(["steps=10,20", "guidance_scale=5,7.5"]))
    assert [(r.request.steps, r.request.guidance_scale) for r in found[:4]] == [
        (10, 5.0),
        (10, 7.5),
        (20, 5.0),
        (20, 7.5),
    ]
    assert found[1].varied == ("steps 10", "guidance_scale 7.5")
    assert [len({r.request.seed for r in part}) for part in (found[:4], found[4:])] == [1, 1]
    assert len({r.id for r in found}) == 8
    seeded = good("a", "b", vary=parse_vary(["steps=10,20"]), seed=1)
    assert [r.request.seed for r in seeded] == [1, 1, 2, 2]


def test_vary_takes_text_with_commas() -> None:
    assert parse_vary(['negative_prompt="a, b",c']) == [("negative_prompt", ["a, b", "c"])]
    assert parse_vary(["steps= 10 , 20"]) == [("steps", [10, 20])]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps", "not of the form"),
        ("steps=", "not of the form"),
        ("stepps=1", "--vary stepps: unknown field; did you mean steps"),
        ("steps=a", "--vary steps: must be a whole number, not 'a'"),
        ("count=1", "cannot vary count"),
        ("name=a", "cannot vary name"),
        ("steps=1,1", "a value twice"),
        ('prompt="a', "unexpected end"),
    ],
)
def test_wrong_vary_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_vary([text])


def test_field_varied_twice_is_refused() -> None:
    with pytest.raises(InputError, match="steps twice"):
        parse_vary(["steps=1", "steps=2"])


def test_seed_ranges() -> None:
    assert parse_seeds("1-4, 9") == [1, 2, 3, 4, 9]
    assert parse_seeds(str(MAX_SEED)) == [MAX_SEED]
    for text in ("", "a", "4-1", "1-", "-1", "1,1", "0-4294967295", str(MAX_SEED + 1), "9" * 30):
        with pytest.raises(InputError, match="--seeds"):
            parse_seeds(text)


@pytest.mark.parametrize(
    ("values", "problems"),
    [
        ({"prompt": " "}, [("prompt", "The prompt is empty.")]),
        (
            {"prompt": "a\x00", "steps": 0, "width": 100, "scheduler": "x"},
            [
                ("prompt", "The prompt has the control"),
                ("steps", "steps must be from 1"),
                ("scheduler", "The scheduler 'x' is unknown"),
                ("width", "width 100 is not a multiple of 8"),
            ],
        ),
        ({"prompt": "a", "model": "none"}, [("model", "The model 'none' is unknown.")]),
        ({"prompt": "a", "count": 0}, [("count", "must be at least 1")]),
        ({"prompt": "a", "seed": MAX_SEED, "count": 2}, [("seed", "go beyond")]),
        ({"prompt": "a", "seed": -1}, [("seed", "seed must be from 0")]),
        (
            {"prompt": "a", "negative_prompt": "b", "guidance_scale": 1.0},
            [("negative_prompt", "cannot act at guidance 1")],
        ),
    ],
)
def test_all_that_is_wrong_with_a_row_is_told(
    values: Mapping[str, Value], problems: list[tuple[str, str]]
) -> None:
    found, told = expand_rows(entries("good", values), BatchOptions(), StubBackend())
    assert [row.request.prompt for row in found] == ["good"]
    assert sorted((p.line, p.field) for p in told) == sorted((2, field) for field, _ in problems)
    for field, message in problems:
        (problem,) = [p for p in told if p.field == field]
        assert message.removeprefix("The ") in problem.message


def test_a_row_is_told_of_once_whatever_crosses_it() -> None:
    found, told = expand_rows(
        entries({"prompt": "a", "width": 100}),
        BatchOptions(vary=[("steps", [1, 2])]),
        StubBackend(),
    )
    assert found == []
    assert [(p.line, p.field) for p in told] == [(1, "width")]


def test_what_the_command_line_says_wrongly_is_told_once() -> None:
    with pytest.raises(InputError, match="steps must be from 1"):
        expand_rows(entries("a", "b"), BatchOptions(defaults={"steps": 0}), StubBackend())
    with pytest.raises(ModelError, match="'none' is unknown"):
        expand_rows(entries("a", "b"), BatchOptions(defaults={"model": "none"}), StubBackend())
    with pytest.raises(InputError, match="count must be at least 1"):
        expand_rows(entries("a"), BatchOptions(count=0), StubBackend())
    with pytest.raises(InputError, match="--seeds takes the place"):
        expand_rows(entries("a"), BatchOptions(count=2, seeds=[1]), StubBackend())
    _, told = expand_rows(
        entries({"prompt": "a", "count": 2}), BatchOptions(seeds=[1]), StubBackend()
    )
    assert told == [PromptProblem(1, "count", "a count and --seeds exclude each other.")]


class Small(StubBackend):
    """A stub backend with no memory for what is wider than 128 pixels."""

    def check(self, request: ResolvedRequest) -> None:
        if request.width and request.width > 128:
            raise OutOfMemoryError("too large", hint="A smaller size fits.")


@pytest.mark.parametrize(
    ("wished", "kind", "message"),
    [
        ({"defaults": {"width": 256}}, OutOfMemoryError, "too large"),
        ({"vary": [("width", [128, 256])]}, OutOfMemoryError, "too large"),
        ({"defaults": {"width": 100}}, InputError, "width 100 is not a multiple"),
        ({"vary": [("model", ["postcard", "none"])]}, ModelError, "'none' is unknown"),
        (
            {"defaults": {"negative_prompt": "x", "guidance_scale": 1.0}},
            InputError,
            "cannot act at guidance 1",
        ),
    ],
)
def test_rows_are_not_blamed_for_the_command_line(
    wished: dict[str, Any], kind: type[T2IError], message: str
) -> None:
    # A row's own fault does not hide it, and what rows set beside it does not either.
    for plain in (["a", "b\x00"], [{"prompt": "a", "seed": 1, "count": 2, "name": "a.png"}]):
        with pytest.raises(kind, match=message) as raised:
            expand_rows(entries(*plain), BatchOptions(**wished), Small())
        assert not isinstance(raised.value, PromptsError)
    with pytest.raises(kind, match=message):
        expand_rows(
            entries({"prompt": "a", "steps": 5}, {"prompt": "b"}), BatchOptions(**wished), Small()
        )


def test_rows_are_blamed_for_what_they_set() -> None:
    wide: dict[str, Value] = {"prompt": "a", "width": 256}
    _, told = expand_rows(entries(wide, wide), BatchOptions(), Small())
    assert [(p.line, p.message) for p in told] == [(1, "too large"), (2, "too large")]
    # Where a good row is, the command line is good.
    found, told = expand_rows(
        entries("a", {"prompt": "b", "width": 64}), BatchOptions(defaults={"width": 256}), Small()
    )
    assert ([row.line for row in found], [p.line for p in told]) == ([2], [1])


def test_a_field_has_one_option_that_sets_it() -> None:
    for wished in (
        {"seeds": [5], "vary": [("seed", [1, 2])]},
        {"seed": 5, "vary": [("seed", [1, 2])]},
        {"defaults": {"steps": 5}, "vary": [("steps", [1, 2])]},
    ):
        with pytest.raises(InputError, match="--vary and another option both set (seed|steps)"):
            expand_rows(entries("a"), BatchOptions(**wished), StubBackend())
    assert [r.request.seed for r in good("a", vary=[("seed", [1, 5])], count=2)] == [1, 2, 5, 6]


def test_a_network_that_fails_is_no_rows_fault() -> None:
    class Broken(StubBackend):
        def check(self, request: ResolvedRequest) -> None:
            raise RemoteError("no network")

    with pytest.raises(RemoteError):
        expand_rows(entries("a"), BatchOptions(), Broken())


@pytest.mark.parametrize("method", ["describe", "check"])
def test_what_a_backend_raises_of_a_row_is_that_rows_problem(method: str) -> None:
    class Broken(StubBackend):
        def describe(self, request: GenerateRequest) -> ModelSpec:
            if method == "describe" and request.model == "sdxl":
                raise ZeroDivisionError("of a library")
            return super().describe(request)

        def check(self, request: ResolvedRequest) -> None:
            if method == "check" and "xl" in request.model:
                raise ZeroDivisionError("of a library")

    made, told = expand_rows(
        entries("a", {"prompt": "b", "model": "sdxl"}, "c"), BatchOptions(), Broken()
    )
    assert [row.line for row in made] == [1, 3]
    said = "An unexpected ZeroDivisionError: of a library"
    assert [(problem.line, problem.message) for problem in told] == [(2, said)]
    with pytest.raises(InternalError, match="of a library"):
        expand_rows(entries("a"), BatchOptions(defaults={"model": "sdxl"}), Broken())


@pytest.mark.parametrize("method", ["resolve_revision", "estimate"])
@pytest.mark.parametrize("raised", [ZeroDivisionError("of a library"), ModelError("not here")])
def test_what_a_backend_raises_while_it_plans_is_that_models_rows_problem(
    method: str, raised: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(model: str) -> None:
        if "xl" in model:
            raise raised

    class Broken(StubBackend):
        def resolve_revision(self, model: str, revision: str | None) -> str | None:
            if method == "resolve_revision":
                told(model)
            return "c" * 40

        def estimate(self, request: ResolvedRequest) -> dict[str, object]:
            if method == "estimate":
                told(request.model)
            return {"seen": request.model}

    rows = entries({"prompt": "a", "model": "sdxl"}, "b", {"prompt": "c", "model": "sd15"})
    bugs: list[BaseException] = []
    console = Console()
    monkeypatch.setattr(console, "cause", bugs.append)

    def planned(*lines: int, skip: bool) -> BatchPlan:
        chosen = [row for row in rows if row.line in lines]
        file = PromptsFile("p.jsonl", "jsonl", chosen, [])
        config = BatchConfig(
            source="p.jsonl",
            input_format=None,
            folder=tmp_path / "none",
            options=BatchOptions(),
            selection=SelectionOptions(),
            skip_invalid=skip,
        )
        make_plan = make_planner(config, LocalFolder(tmp_path / "none"), file, Broken(), console)
        return make_plan(ManifestState())[0]

    plan = planned(1, 2, 3, skip=True)
    assert [row.line for row in plan.rows] == [2, 3]
    said = "An unexpected ZeroDivisionError: of a library"
    message = "not here" if isinstance(raised, ModelError) else said
    assert plan.problems == [PromptProblem(1, "model", message)]
    assert {record["seen"] for record in plan.estimates} == {r.request.model for r in plan.rows}
    assert [error.__cause__ for error in bugs] == [raised] * (not isinstance(raised, ModelError))
    with pytest.raises(PromptsError, match="p.jsonl:1: model: "):
        planned(1, 2, skip=False)
    # It is no fault of the file if every row has it.
    with pytest.raises(ModelError if isinstance(raised, ModelError) else InternalError):
        planned(1, skip=True)


def test_a_network_that_fails_while_it_plans_ends_the_batch(tmp_path: Path) -> None:
    def offline(model: str, revision: str | None) -> str | None:
        raise RemoteError("no network")

    config = BatchConfig(
        source="p",
        input_format="txt",
        folder=tmp_path / "none",
        options=BatchOptions(),
        selection=SelectionOptions(),
    )
    file = PromptsFile("p", "txt", entries("a", "b"), [])
    stub = StubBackend(commits=offline)
    make_plan = make_planner(config, LocalFolder(tmp_path / "none"), file, stub, Console())
    with pytest.raises(RemoteError, match="no network"):
        make_plan(ManifestState())


def test_backend_is_asked_once_for_requests_alike() -> None:
    asked: list[ResolvedRequest] = []

    class Slow(StubBackend):
        def check(self, request: ResolvedRequest) -> None:
            asked.append(request)
            if request.width == 64:
                raise InputError("too small here", field="width")

    small: dict[str, Value] = {"width": 64}
    _, told = expand_rows(
        entries("a", "b", {"prompt": "c", **small}, {"prompt": "d", **small}),
        BatchOptions(),
        Slow(),
    )
    assert [request.width for request in asked[:2]] == [128, 64]
    assert len(asked) == 2
    assert [(p.line, p.message) for p in told] == [(3, "too small here"), (4, "too small here")]


def test_too_many_images_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "MAX_ROWS", 10)
    with pytest.raises(InputError, match="more than 10 images"):
        expand_rows(entries(*"abcdefghijk"), BatchOptions(), StubBackend())
    with pytest.raises(InputError, match="more than 10 images"):
        expand_rows(entries("a", {"prompt": "b", "count": 10}), BatchOptions(), StubBackend())
    assert options.MAX_ROWS == 1_000_000


def test_lenient_leaves_out_and_says_so_once() -> None:
    notes: list[str] = []
    values: dict[str, Value] = {"prompt": "a", "negative_prompt": "b", "guidance_scale": 1.0}
    found, told = expand_rows(
        entries(values, values), BatchOptions(lenient=True), StubBackend(), on_note=notes.append
    )
    assert told == []
    assert [row.request.negative_prompt for row in found] == [None, None]
    assert len(notes) == 1


def test_groups_are_what_can_run_together_one_model_after_the_other() -> None:
    found = good(
        "a",
        {"prompt": "b", "model": "sd15"},
        {"prompt": "c", "steps": 5},
        "d",
        {"prompt": "e", "negative_prompt": "x"},
        {"prompt": "f", "model": "sd15"},
        {"prompt": "g", "steps": 5},
    )
    groups = [[row.request.prompt for row in group] for group in rows.group_rows(found)]
    assert groups == [["a", "d"], ["c", "g"], ["e"], ["b", "f"]]


def test_pins_change_the_request_and_not_the_id() -> None:
    found = good("a", {"prompt": "b", "model": "sd15"}, {"prompt": "c", "model": "sdxl"})
    sd15, sdxl = found[1].request.model, found[2].request.model
    moved, new = revision_pins.pin_revisions(
        found, {(sdxl, None): "known"}, lambda model, _: "now" if "/" in model else None
    )
    assert [row.request.revision for row in moved] == [None, "now", "known"]
    assert [row.id for row in moved] == [row.id for row in found]
    assert new == {(sd15, None): "now"}


class Watched(StubBackend):
    """Notes every model that it is asked about, and every request that it checks."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str | None] = []

    def describe(self, request: GenerateRequest) -> ModelSpec:
        self.asked.append(request.model)
        return super().describe(request)

    def check(self, request: ResolvedRequest) -> None:
        self.asked.append(f"check {request.model}")


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"model": "a\x00b"}, "model"),
        ({"model": ""}, "model"),
        ({"model": " "}, "model"),
        ({"model": "a\x00b", "steps": 0}, "model"),
        ({"model": "sd15", "revision": "\x07"}, "revision"),
        ({"model": "sd15", "revision": ""}, "revision"),
        ({"model": "sd15", "width": 10**9}, "width"),
        ({"model": "sd15", "prompt": "\x00", "seed": -1}, "prompt"),
        ({"model": "sd15", "steps": 0, "scheduler": "x", "guidance_scale": -1.0}, "steps"),
    ],
)
def test_a_bad_value_asks_nothing_of_any_backend(values: dict[str, Value], field: str) -> None:
    watched = Watched()
    found, told = expand_rows(entries({"prompt": "a", **values}), BatchOptions(), watched)
    assert (found, watched.asked) == ([], [])
    assert field in [problem.field for problem in told]
    assert {problem.field for problem in told} <= values.keys()
    assert {problem.line for problem in told} == {1}


def test_what_else_is_wrong_is_told_by_a_model_that_is_known() -> None:
    watched = Watched()
    good: dict[str, Value] = {"prompt": "a", "model": "sd15"}
    bad: dict[str, Value] = {**good, "steps": 0, "width": 100}
    _, told = expand_rows(entries(good, bad), BatchOptions(), watched)
    assert [(p.line, p.field) for p in told] == [(2, "steps"), (2, "width")]
    assert watched.asked == ["sd15", f"check {catalog.MODELS['sd15'].repo}"]


def test_a_row_that_names_its_model_is_not_settled_with_the_default_one() -> None:
    watched = Watched()
    row: dict[str, Value] = {"prompt": "a", "model": "none"}
    found, told = expand_rows(entries(row, row), BatchOptions(), watched)
    assert (found, watched.asked) == ([], ["none"])
    assert [(p.line, p.field) for p in told] == [(1, "model"), (2, "model")]
