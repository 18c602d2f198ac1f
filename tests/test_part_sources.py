"""Parts of a model from elsewhere: how they are named, fetched, served and recorded."""

import asyncio
import json
from pathlib import Path

import pytest

from t2i_cli.backends.local.options import LocalOptions
from t2i_cli.errors import InputError
from t2i_cli.model_spec import ModelSpec
from t2i_cli.output import infotext
from t2i_cli.part_source import PartSource, parse_part_source, part_source_to_json
from t2i_cli.request import GenerateRequest
from t2i_cli.server.engine import Engine, NotServedError
from t2i_cli.worker.fingerprint import WorkerSpec
from tests import factories, tiny_checkpoints
from tests.conftest import T2I
from tests.fakes.hub import FakeHub, Repo
from tests.fakes.stub_backend import StubBackend

DIGEST = "ab" * 32
SD15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder `sd15`, a file of it, and its VAE as a file."""
    return tiny_checkpoints.save_sd15(tmp_path_factory.mktemp("models"))


def test_a_source_is_a_text_or_an_object_with_a_digest() -> None:
    assert parse_part_source(" a/b.safetensors ") == PartSource("a/b.safetensors")
    assert parse_part_source("") is None
    named = PartSource("a/b.safetensors", DIGEST)
    assert parse_part_source(part_source_to_json(named)) == named
    for wrong in (7, ["x"], {"path": "x"}, {"source": "x", "sha256": "7"}, "x\ny", "x" * 2_000):
        with pytest.raises(InputError):
            parse_part_source(wrong)


def test_ids_change_with_the_content_of_a_part_and_not_with_its_path() -> None:
    plain = factories.request()
    one, two, other = (
        factories.request(vae=PartSource(*each))
        for each in (("a", DIGEST), ("b", DIGEST), ("a", "cd" * 32))
    )
    assert one.identity() == two.identity()
    assert len({plain.identity(), one.identity(), other.identity()}) == 3
    assert "vae" not in plain.to_json()


def test_the_text_for_other_programs_has_names_and_short_hashes() -> None:
    request = factories.request(vae=PartSource("/models/fine.safetensors", DIGEST))
    text = infotext.format_infotext(request, factories.LOCK, (64, 48))
    assert "VAE hash: ababababab, VAE: fine.safetensors" in text
    assert "VAE" not in infotext.format_infotext(factories.request(), factories.LOCK, (64, 48))


class _WithVae(StubBackend):
    """A backend whose model has a VAE from elsewhere."""

    def describe(self, request: GenerateRequest) -> ModelSpec:
        from dataclasses import replace

        assert request.vae == PartSource("/srv/vae.safetensors")
        return replace(super().describe(request), vae=PartSource("/srv/vae.safetensors", DIGEST))


def test_a_server_takes_only_its_own_parts_and_tells_no_path() -> None:
    async def check() -> None:
        parts = {"vae": PartSource("/srv/vae.safetensors")}
        engine = Engine(_WithVae(), "postcard", parts=parts)
        await engine.start()
        try:
            for named in (
                None,
                PartSource("vae.safetensors"),
                PartSource("/home/me/other.safetensors", DIGEST),
            ):
                asked = GenerateRequest(prompt="x", vae=named)
                [settled] = await engine.resolve_requests([asked])
                assert settled.vae == PartSource("vae.safetensors", DIGEST)
            for wrong in (
                GenerateRequest(prompt="x", vae=PartSource("/etc/passwd")),
                GenerateRequest(prompt="x", vae=PartSource("vae.safetensors", "cd" * 32)),
                GenerateRequest(prompt="x", transformer=PartSource("vae.safetensors")),
                GenerateRequest(prompt="x", base=PartSource("sdxl")),
            ):
                with pytest.raises(NotServedError):
                    await engine.resolve_requests([wrong])
        finally:
            await engine.stop(grace=1)

    asyncio.run(asyncio.wait_for(check(), 60))


def test_a_worker_is_of_one_file_and_its_parts(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"1")

    def print_of(**parts: PartSource) -> str:
        options = LocalOptions()
        return WorkerSpec(
            model=str(file), revision=None, options=options, parts=parts
        ).fingerprint()

    first = print_of()
    assert print_of() == first
    assert print_of(vae=PartSource("x", DIGEST)) != first
    assert print_of(vae=PartSource("x", DIGEST)) != print_of(transformer=PartSource("x", DIGEST))
    file.write_bytes(b"22")
    assert print_of() != first


def test_the_configs_of_a_file_are_fetched_once_and_its_weights_never(
    t2i: T2I, hub: FakeHub, models: Path
) -> None:
    hub.repos[SD15] = Repo.from_folder(models / "sd15")
    file = models / "sd15.safetensors"
    offline = t2i("generate", "x", "-m", file, "--offline", "--dry-run", env=hub.environment)
    assert offline.returncode == 9
    assert f"{file} needs the configs of sd15: {SD15} is not downloaded." in offline.stderr
    assert f"`t2i models pull {file}` fetches them once" in offline.stderr
    pulled = t2i("models", "pull", file, env=hub.environment)
    assert pulled.returncode == 0, pulled.stderr
    assert (Path(pulled.stdout.strip()) / "model_index.json").is_file()
    assert not [seen.path for seen in hub.requests if seen.path.endswith(".safetensors")]
    hub.requests.clear()
    planned = t2i("generate", "x", "-m", file, "--offline", "--dry-run", "--json")
    assert planned.returncode == 0, planned.stderr
    told = json.loads(planned.stdout)
    assert told["plan"]["download_mib"] == 0
    assert told["requests"][0]["steps"] == 30
    assert told["requests"][0]["model"] == str(file)
    assert hub.requests == []


def test_a_part_of_a_repository_is_fetched_alone(t2i: T2I, hub: FakeHub, models: Path) -> None:
    hub.repos["ann/fine-vae"] = Repo.from_folder(models / "sd15/vae")
    hub.repos["ann/whole"] = Repo.from_folder(models / "sd15")
    made = []
    for source in ("ann/fine-vae", "ann/whole"):
        done = t2i(
            *("generate", "x", "-m", models / "sd15", "--vae", source, "-s", "1", "--steps", "1"),
            *("--size", "64", "-o", f"{source[4:]}.png"),
            env=hub.environment,
        )
        assert done.returncode == 0, done.stderr
        told = t2i("inspect", done.stdout.strip(), "--json")
        made.append(json.loads(told.stdout)["request"]["vae"])
    assert made == ["ann/fine-vae", "ann/whole"]
    fetched = [seen.path for seen in hub.requests if seen.path.endswith(".safetensors")]
    assert all("unet" not in path and "text_encoder" not in path for path in fetched)
    missing = t2i(
        *("generate", "x", "-m", models / "sd15", "--vae", "ann/none", "--dry-run"),
        env=hub.environment,
    )
    assert missing.returncode == 9, missing.stderr


def test_rows_of_a_batch_have_parts_of_their_own(t2i: T2I, models: Path, tmp_path: Path) -> None:
    rows = [
        {"prompt": "a red star", "seed": 1},
        {"prompt": "a red star", "seed": 1, "vae": str(models / "vae.safetensors")},
        {"prompt": "a red star", "seed": 2},
        {"prompt": "a red star", "seed": 2, "vae": str(models / "none.safetensors")},
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    options = ("--steps", "1", "--size", "64", "-o", "out", "--skip-invalid")
    refused = t2i("batch", "rows.jsonl", "-m", models / "sd15", *options[:-1])
    assert refused.returncode == 2
    assert "rows.jsonl:4: There is no file" in refused.stderr
    assert "none.safetensors" in refused.stderr
    done = t2i("batch", "rows.jsonl", "-m", models / "sd15", *options)
    assert "1 with " in done.stderr and ", VAE vae.safetensors" in done.stderr
    manifest = (tmp_path / "out/manifest.jsonl").read_text().splitlines()
    images = [line for line in map(json.loads, manifest) if line.get("status") == "done"]
    assert len(images) == 3
    again = t2i("batch", "rows.jsonl", "-m", models / "sd15", *options)
    assert "3 done" in again.stderr or "nothing" in again.stderr.lower(), again.stderr
