"""`--events`: nothing but lines of the documented schema, whatever happens."""

import io
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Event as Flag
from typing import Any

import jsonschema
import pytest

from t2i_cli.backend import Failure, GeneratedImage
from t2i_cli.batch import session
from t2i_cli.batch.events import EventWriter
from t2i_cli.batch.local_folder import LocalFolder
from t2i_cli.batch.options import BatchOptions
from t2i_cli.batch.plan import SelectionOptions, build_plan
from t2i_cli.batch.rows import expand_rows
from t2i_cli.batch.runner import RunStats
from t2i_cli.batch.session import BatchConfig
from t2i_cli.errors import InputError, ModelError, PartialError, T2IError
from t2i_cli.events import Downloading, Loading, MemoryMeasure, Notice, OnEvent, RequestSent, Step
from t2i_cli.prompts.entries import PromptEntry
from t2i_cli.request import ResolvedRequest
from t2i_cli.terminal.console import EVENTS_VERSION, Console
from tests.fakes.stub_backend import StubBackend

SCHEMA = json.loads((Path(__file__).parent.parent / "docs" / "events.schema.json").read_text())


def checked(text: str) -> list[dict[str, Any]]:
    """The lines of standard error, every one of them valid."""
    validator = jsonschema.Draft202012Validator(SCHEMA)
    lines = [json.loads(line) for line in text.splitlines()]
    for line in lines:
        validator.validate(line)
    return lines


class Chatty(StubBackend):
    """A stub backend that tells everything a backend can tell, and whose libraries print."""

    def run(
        self,
        requests: Sequence[ResolvedRequest],
        on_event: OnEvent,
        cancel: Flag,
        previews: Sequence[int] = (),
    ) -> Iterator[GeneratedImage | Failure]:
        on_event(Downloading(model="m", done=1, total=2))
        on_event(Loading(model="m", device="cpu"))
        on_event(MemoryMeasure(name="vae-tiling", reason="memory ran out"))
        on_event(RequestSent(indices=(0,)))
        on_event(Notice(message="a note"))
        sys.stderr.write("a library's ")
        sys.stderr.write("warning\nand more\r")
        sys.stdout.write("a library's print\n")
        yield from super().run(requests, on_event, cancel)


def run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], stub: StubBackend
) -> tuple[str, str, T2IError | None]:
    """Standard output, standard error, and how a batch of three ended."""
    source = tmp_path / "prompts.txt"
    source.write_text("a 1\nb 2\nc 3\n")
    console = Console()
    console.configure(events=True, json=True)
    task = BatchConfig(
        source=str(source),
        input_format=None,
        folder=tmp_path / "out",
        options=BatchOptions(),
        selection=SelectionOptions(),
    )
    ended = None
    try:
        session.run_batch(task, stub, console)
    except T2IError as error:
        console.error(error)
        ended = error
    captured = capsys.readouterr()
    return captured.out, captured.err, ended


def test_every_line_is_of_the_schema_and_every_event_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def fails(request: ResolvedRequest) -> T2IError | None:
        return ModelError("broken", hint="mend it") if request.prompt == "b 2" else None

    out, err, ended = run(tmp_path, capsys, Chatty(steps=True, fails=fails))
    assert isinstance(ended, PartialError)
    lines = checked(err)
    kinds = [line["event"] for line in lines]
    assert kinds[:2] == ["planned", "started"]
    assert kinds[-2:] == ["finished", "error"]
    assert set(kinds) == {
        *("planned", "started", "downloading", "loading", "measure", "note", "log"),
        *("step", "sent", "image", "failed", "finished", "error"),
    }
    logs = [line["message"] for line in lines if line["event"] == "log"]
    assert logs == ["a library's warning", "and more", "a library's print"]
    (failed,) = [line for line in lines if line["event"] == "failed"]
    assert failed["error"] == ModelError("broken", hint="mend it").to_json()
    summary = json.loads(out)
    finished = lines[-2]
    assert summary == {key: finished[key] for key in finished.keys() - {"v", "event"}}
    assert sys.stderr is not None
    assert not isinstance(sys.stderr, io.StringIO)


def test_errors_before_the_run_are_events_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Broken(StubBackend):
        def check(self, request: ResolvedRequest) -> None:
            raise InputError("cannot be", field="steps")

    _, err, _ = run(tmp_path, capsys, Broken())
    (line,) = checked(err)
    assert line["event"] == "error"
    assert line["error"]["message"] == "cannot be"


def test_warnings_are_events_and_controls_are_escaped(
    capsys: pytest.CaptureFixture[str],
) -> None:
    console = Console()
    console.configure(events=True, quiet=True)
    console.warn("two\nlines \x1b[2J\u202e")
    console.note("quiet")
    (line,) = checked(capsys.readouterr().err)
    assert line["event"] == "warning"


def test_schema_refuses_what_is_not_of_it(tmp_path: Path) -> None:
    validator = jsonschema.Draft202012Validator(SCHEMA)
    validator.check_schema(SCHEMA)
    for line in ({"v": 1, "event": "other"}, {"v": EVENTS_VERSION + 1, "event": "started"}):
        assert not validator.is_valid({**line, "to_make": 1})
    assert validator.is_valid({"v": EVENTS_VERSION, "event": "started", "to_make": 1})
    for definition in SCHEMA["$defs"].values():
        for name in definition.get("required", []):
            assert name in definition["properties"]


def test_steps_name_rows_by_their_ids(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows, _ = expand_rows(
        [PromptEntry(1, {"prompt": "a", "count": 3})], BatchOptions(), StubBackend()
    )
    from t2i_cli.batch.manifest import ManifestState

    plan = build_plan(rows, [], LocalFolder(tmp_path / "none"), ManifestState(), SelectionOptions())
    console = Console()
    console.configure(events=True)
    lines = EventWriter(console, plan)
    lines.event(Step(indices=(0, 2), step=1, steps=4))
    failure = Failure(index=1, request=rows[1].request, error=ModelError("x"))
    lines.failed(plan.jobs[1], failure, RunStats(made=1))
    step, failed = checked(capsys.readouterr().err)
    assert step["ids"] == [rows[0].id, rows[2].id]
    assert (failed["id"], failed["tried"], failed["to_make"]) == (rows[1].id, 1, 3)
