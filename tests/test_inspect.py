"""`t2i inspect`: what it prints, and what it refuses."""

import json
from pathlib import Path

import pytest
from PIL.PngImagePlugin import PngInfo

from t2i_cli.cli.commands.inspect import inspect
from t2i_cli.errors import InputError
from t2i_cli.output import metadata
from tests.conftest import T2I
from tests.factories import LOCK, picture, request
from tests.test_a1111 import FROM_A1111


def image(path: Path, **changes: object) -> Path:
    path.write_bytes(metadata.embed_metadata(picture(), request(**changes), LOCK, "png"))
    return path


def from_a1111(path: Path, text: str = FROM_A1111) -> Path:
    info = PngInfo()
    info.add_text("parameters", text)
    picture().save(path, pnginfo=info)
    return path


def test_table_shows_the_request_and_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = image(tmp_path / "a.png", prompt="first line\nsecond line", negative_prompt=None)
    inspect([str(path)])
    assert (
        capsys.readouterr().out
        == f"""{path}
  image           png, 64x48
  prompt          first line
                  second line
  made by         t2i
  model           stable-diffusion-v1-5/stable-diffusion-v1-5
  revision        451f4fe16113bff5a5d2269ed5ad43b0592e9a14
  seed            42
  steps           30
  guidance scale  7.5
  width           64
  height          48
  scheduler       dpm++2m-karras
  backend         local
  pipeline        StableDiffusionPipeline
  device          cuda:0
  dtype           float16
  batch size      1
  measures        vae_tiling
  libraries       diffusers 0.42.1, torch 2.13.0
"""
    )


def test_table_of_a_stranger_has_all_its_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inspect([str(from_a1111(tmp_path / "a.png"))])
    out = capsys.readouterr().out
    for line in (
        "made by             AUTOMATIC1111 or a relative",
        "prompt              masterpiece, a (cat:1.2), Steps: 3 by hand\n",
        "negative prompt     blurry, low quality\n",
        "Sampler             DPM++ 2M\n",
        "Lora hashes         pixel: 2f3b0a, other: 99\n",
        "Hires upscale       2\n",
    ):
        assert f"  {line}" in out


def test_json_has_the_records_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own, stranger = image(tmp_path / "a.png"), from_a1111(tmp_path / "b.png")
    inspect([str(own), str(stranger)], json=True)
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["path"], first["source"], first["format"]) == (str(own), "t2i", "png")
    assert first["request"] == request().to_json()
    assert first["lock"]["device"] == "cuda:0"
    assert first["parameters"]["Model hash"] == "451f4fe161"
    assert (second["source"], second["lock"]) == ("a1111", {})
    assert second["request"]["scheduler"] == "dpm++2m-karras"
    assert second["parameters"]["VAE"] == "a, b: c.pt"


def test_a_stranger_cannot_steer_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile = FROM_A1111.replace("masterpiece", "\x1b]0;owned\x07\x9b31m\u202e")
    inspect([str(from_a1111(tmp_path / "a.png", hostile))])
    out = capsys.readouterr().out
    assert "\\u001b]0;owned\\u0007\\u009b31m\\u202e" in out
    assert not set(out) & set("\x1b\x07\x9b\u202e")


def test_one_bad_image_does_not_hide_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = image(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"hello")
    with pytest.raises(InputError, match="2 of 3 images could not be read"):
        inspect([str(tmp_path / "missing.png"), str(good), str(tmp_path / "bad.png")])
    captured = capsys.readouterr()
    assert captured.out.startswith(str(good))
    assert captured.err.count("error: ") == 2


def test_process_prints_json_or_one_error(t2i: T2I, tmp_path: Path) -> None:
    done = t2i("inspect", image(tmp_path / "a.png", prompt="日本の家"), "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["request"]["prompt"] == "日本の家"
    picture().save(tmp_path / "bare.png")
    done = t2i("inspect", "bare.png", "--json")
    assert (done.returncode, done.stdout) == (2, "")
    error = json.loads(done.stderr)["error"]
    assert error["code"] == "bad_input" and "does not say" in error["message"]
    done = t2i("inspect", "missing.png")
    assert done.returncode == 2
    assert done.stderr == "error: Cannot read 'missing.png': No such file or directory.\n"


def test_a_url_is_refused_as_one(t2i: T2I) -> None:
    refused = t2i("inspect", "s3://bucket/a.png")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "'s3://bucket/a.png' is a URL; inspect reads files of this machine." in refused.stderr
