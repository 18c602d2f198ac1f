"""What a server's clients learn of its operator's files: names, and no paths."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest

from t2i_cli.backend import Failure, GeneratedImage
from t2i_cli.errors import InputError, ModelError, T2IError
from t2i_cli.events import Notice
from t2i_cli.model_spec import ModelSpec
from t2i_cli.request import GenerateRequest, ResolvedRequest
from t2i_cli.server.app import create_app
from t2i_cli.server.engine import Engine
from t2i_cli.server.options import ServerOptions
from t2i_cli.server.responses import generation_record
from tests.fakes.stub_backend import StubBackend


class _OfFile(StubBackend):
    """A backend whose model is a file, and which has a folder of LoRAs."""

    folder = ""

    def describe(self, request: GenerateRequest) -> ModelSpec:
        spec = super().describe(replace(request, model="postcard"))
        return replace(
            spec,
            name=str(request.model),
            folder=Path(self.folder, "composed"),
            adapters="files",
            adapter_folder=self.folder,
        )

    def check(self, request: ResolvedRequest) -> None:
        if request.prompt == "gone":
            raise ModelError(f"There is no file {self.folder}/ink.safetensors.")


@pytest.fixture
def backend(tmp_path: Path) -> _OfFile:
    """Such a backend; a prompt "fail" fails with the file's path in the error."""
    (tmp_path / "dreamy.safetensors").write_bytes(b"x")
    (tmp_path / "ink.safetensors").write_bytes(b"x")

    def fails(request: ResolvedRequest) -> T2IError | None:
        told = ModelError(f"{tmp_path}/dreamy.safetensors is damaged.", hint=f"See {tmp_path}.")
        return told if request.prompt == "fail" else None

    made = _OfFile(fails=fails)
    made.folder = str(tmp_path)
    return made


def test_clients_learn_names_and_no_paths(backend: _OfFile, tmp_path: Path) -> None:
    async def check() -> list[str]:
        engine = Engine(backend, str(tmp_path / "dreamy.safetensors"))
        await engine.start()
        told = [engine.shown_name]
        try:
            assert engine.shown_name == "dreamy.safetensors"
            asked = [GenerateRequest(prompt="a star", model="dreamy.safetensors")]
            asked.append(GenerateRequest(prompt="fail"))
            job = engine.submit(
                await engine.resolve_requests(asked),
                notes=[Notice(message=f"{tmp_path}/dreamy.safetensors is slow.")],
            )
            told += [json.dumps(request.to_json()) for request in job.shown_requests]
            async for message in job:
                match message:
                    case GeneratedImage():
                        told.append(json.dumps(generation_record(message)))
                    case Failure():
                        told += [message.error.message, str(message.error.hint)]
                    case _:
                        told.append(str(message))
            # The backend itself has the real name.
            assert backend.made[0].model == str(tmp_path / "dreamy.safetensors")
            shown = engine.hidden.error(ModelError(f"no {tmp_path}/ink.safetensors"))
            told.append(shown.message)
        finally:
            await engine.stop(grace=1)
        return told

    told = asyncio.run(asyncio.wait_for(check(), 60))
    assert not [text for text in told if str(tmp_path) in text]
    assert any("dreamy.safetensors is damaged." in text for text in told)
    assert sum("dreamy.safetensors" in text for text in told) >= 5


def test_an_answer_about_a_file_that_has_gone_has_no_path(backend: _OfFile, tmp_path: Path) -> None:
    from starlette.testclient import TestClient

    engine = Engine(backend, str(tmp_path / "dreamy.safetensors"))
    with TestClient(
        create_app(engine, ServerOptions()), base_url="http://127.0.0.1:8000"
    ) as client:
        found = client.get("/t2i/v1/model").json()
        assert (found["name"], found["loras"]) == ("dreamy.safetensors", ["dreamy", "ink"])
        assert client.get("/v1/models").json()["data"][0]["id"] == "dreamy.safetensors"
        answers = [
            client.post("/v1/images/generations", json={"prompt": "gone"}),
            client.post("/t2i/v1/generate", json={"prompt": "x", "loras": "other"}),
            client.post("/v1/images/generations", json={"prompt": "x", "model": "other"}),
        ]
    for answer in answers:
        assert answer.status_code >= 400
        assert str(tmp_path) not in answer.text
    assert "There is no file the server's folder/ink.safetensors." in answers[0].text


def test_a_worker_hides_nothing_from_its_user(backend: _OfFile, tmp_path: Path) -> None:
    engine = Engine(backend, str(tmp_path / "dreamy.safetensors"), named_adapters=False)
    error = InputError(f"{tmp_path}/dreamy.safetensors")
    assert engine.hidden.error(error) is error
