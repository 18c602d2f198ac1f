"""LoRAs and embeddings before a model is loaded: options, files, fit, names, tags, ids."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from t2i_cli import postcard
from t2i_cli.batch.options import BatchOptions, parse_vary
from t2i_cli.batch.rows import expand_rows, group_rows
from t2i_cli.errors import T2IError
from t2i_cli.model_spec import ModelSpec
from t2i_cli.models import adapter_catalog, adapter_file, adapter_fit, adapter_sources, catalog
from t2i_cli.models.adapter_resolution import prompt_loras, without_tags
from t2i_cli.models.file_digests import sha256_of
from t2i_cli.models.request_resolution import build_request, resolve_request
from t2i_cli.output import infotext
from t2i_cli.prompts import readers
from t2i_cli.prompts.entries import PromptEntry
from t2i_cli.request_adapters import (
    Adapter,
    adapter_options,
    adapters_identity,
    adapters_to_json,
    parse_embeddings,
    parse_loras,
)
from t2i_cli.request_fields import FIELDS
from tests import factories
from tests.conftest import T2I
from tests.fakes import lora_files
from tests.fakes.stub_backend import StubBackend


def here(folder: Path | None = None, **changes: Any) -> ModelSpec:  # noqa: ANN401
    """postcard as the local backend describes it, with a folder of adapters."""
    spec = replace(catalog.MODELS["postcard"], **changes)
    name = None if folder is None else str(folder)
    return adapter_sources.with_adapter_place(spec, name, offline=True)


def told(call: Any, *arguments: Any, **named: Any) -> str:  # noqa: ANN401
    """The error's sentence and its field."""
    with pytest.raises(T2IError) as raised:
        call(*arguments, **named)
    field = getattr(raised.value, "field", None)
    return f"{field}: {raised.value.message}" if field else raised.value.message


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["a/style.safetensors:0.8"], [("a/style.safetensors", 0.8)]),
        (["owner/name", "x:-1"], [("owner/name", 1.0), ("x", -1.0)]),
        ("one:0; two:.5", [("one", 0.0), ("two", 0.5)]),
        ('[{"source": "a:b/c", "weight": 2}, "d"]', [("a:b/c", 2.0), ("d", 1.0)]),
        ([{"source": "a", "weight": None}], [("a", 1.0)]),
        (
            ["a:b.safetensors", "c:0.5.safetensors:2"],
            [("a:b.safetensors", 1.0), ("c:0.5.safetensors", 2.0)],
        ),
        (["a:1e-05", "b:0.30000000000000004"], [("a", 0.00001), ("b", 0.1 + 0.2)]),
    ],
)
def test_loras_are_read_from_options_rows_and_bodies(
    given: object, expected: list[tuple[str, float]]
) -> None:
    found = parse_loras(given) or ()
    assert [(each.source, each.weight) for each in found] == expected
    assert parse_loras(adapters_to_json(found)) == found
    again = parse_loras(json.dumps(adapters_to_json(found)))
    assert again == found
    assert parse_loras(adapter_options(adapters_to_json(found))) == found


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["a:strong"], "'a:strong' is not of the form FILE:WEIGHT: 'strong' is no number."),
        (["a:11"], "A weight in loras must be from -10 to 10, not 11.0."),
        ([{"source": "a", "weight": True}], "A weight in loras must be from -10 to 10, not True."),
        ([{"source": "a", "scale": 1}], "An entry of loras must be text, or an object with"),
        ([{"source": "a", "sha256": "x"}], "A sha256 in loras is not 64 hex digits."),
        (["a", "a:0.5"], "'a' is in loras twice."),
        ([""], "An entry of loras names no file."),
        (["a\x1b[31m"], "A name in loras must be printable"),
        (7, "loras must be a list of files or names."),
        ("[" * 2000, "loras is no JSON that can be read."),
        ([f"a{n}" for n in range(17)], "There are 17 loras; at most 16 are taken."),
    ],
)
def test_bad_loras_are_refused(given: object, expected: str) -> None:
    assert told(parse_loras, given).removeprefix("loras: ").startswith(expected)


def test_a_weight_of_minus_zero_is_zero() -> None:
    ids = {
        json.dumps(adapters_identity(parse_loras([f"a:{weight}"]) or ())) for weight in ("-0", "0")
    }
    assert len(ids) == 1


def test_embeddings_have_a_token() -> None:
    found = parse_embeddings(["a.safetensors:<frost>", "dir/b.safetensors"]) or ()
    assert [(each.source, each.token) for each in found] == [
        ("a.safetensors", "<frost>"),
        ("dir/b.safetensors", None),
    ]
    assert adapter_options(adapters_to_json(found)) == [
        "a.safetensors:<frost>",
        "dir/b.safetensors",
    ]


def test_each_layout_is_read_whole(tmp_path: Path) -> None:
    layouts = {
        "diffusers": lora_files.diffusers_tensors(encoder=True),
        "old": lora_files.diffusers_tensors(old=True),
        "kohya": lora_files.kohya_tensors(encoder=True),
    }
    for name, tensors in layouts.items():
        found = adapter_file.read_adapter_file(lora_files.save(tmp_path / name, tensors), "lora")
        assert sum(len(layer.keys) for layer in found.layers.values()) == len(tensors)
        adapter_fit.check_lora_fit(found, postcard.FOLDER, "postcard")
    folder = lora_files.peft_folder(tmp_path / "peft")
    found = adapter_file.read_adapter_file(folder / "adapter_model.safetensors", "lora")
    adapter_fit.check_lora_fit(found, postcard.FOLDER, "postcard")


def read(path: Path) -> None:
    """Read a LoRA, and compare it with postcard."""
    found = adapter_file.read_adapter_file(path, "lora")
    adapter_fit.check_lora_fit(found, postcard.FOLDER, "postcard")


def test_what_is_no_lora_or_does_not_fit_is_told(tmp_path: Path) -> None:
    kohya = lora_files.kohya_tensors()
    start = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"

    def changed(name: str, **tensors: Any) -> Path:  # noqa: ANN401
        return lora_files.save(tmp_path / name, kohya | tensors)

    down = f"{start}.lora_down.weight"
    cases = {
        changed("keys", **{"bundle_emb.x": kohya[down], "y": kohya[down]}): (
            "has 2 keys (bundle_emb.x, y) that belong to no LoRA"
        ),
        changed(
            "layer", **{key.replace(start, "lora_unet_nowhere"): kohya[key] for key in kohya}
        ): ("it has 3 keys (lora_unet_nowhere."),
        changed(
            "block",
            **{
                key.replace(start, start.replace("mid_block", "down_blocks_9")): each
                for key, each in kohya.items()
                if key.startswith(start)
            },
        ): ("it has 3 keys (lora_unet_down_blocks_9_"),
        changed("alpha", **{f"{start}.alpha": np.ones(3, np.float32)}): (
            "the alpha is no single number"
        ),
        changed("shape", **{down: kohya[down][:, :64].copy()}): (
            f"1 of its 24 layers have another shape ({start})."
        ),
        changed("rank", **{down: kohya[down][:1].copy()}): "is damaged: the ranks of 1 key (",
        lora_files.save(tmp_path / "sdxl", lora_files.sdxl_tensors()): (
            "is a LoRA for sdxl, and postcard is of another family"
        ),
        lora_files.save(tmp_path / "flux", lora_files.flux_tensors()): "is a LoRA for flux, and",
        lora_files.save(tmp_path / "embedding", lora_files.embedding_tensors()): (
            "is no LoRA, but an embedding"
        ),
        lora_files.save_pickle(tmp_path / "pickle.safetensors"): (
            "is a pickle file under another name, which can run code"
        ),
        postcard.FOLDER / "vae/diffusion_pytorch_model.safetensors": "is no LoRA: it is a VAE",
    }
    lone = {key: tensor for key, tensor in kohya.items() if key != f"{start}.lora_up.weight"}
    cases[lora_files.save(tmp_path / "lone", lone)] = f"is incomplete: 1 key ({start}."
    short = tmp_path / "short"
    short.write_bytes(lora_files.save(tmp_path / "whole", kohya).read_bytes()[:-100])
    cases[short] = "is truncated"
    oft = {f"{start}.oft_blocks": np.zeros((20, 8, 8), np.float32)}
    cases[lora_files.save(tmp_path / "oft", oft)] = "is an OFT of LyCORIS"
    for path, expected in cases.items():
        assert expected in told(read, path), path.name


def test_embeddings_fit_by_their_width(tmp_path: Path) -> None:
    def check(width: int, **names: str) -> None:
        path = lora_files.save(tmp_path / "e", lora_files.embedding_tensors(2, width, **names))
        found = adapter_file.read_adapter_file(path, "embedding")
        adapter_fit.check_embedding_fit(found, postcard.FOLDER, "postcard")

    check(128)
    check(128, name="<frost>")
    assert "its vectors have 768 numbers, and the text encoders of postcard take 128." in told(
        check, 768
    )
    lora = lora_files.save(tmp_path / "lora", lora_files.kohya_tensors())
    assert "is no embedding: it is a LoRA, which --lora takes" in told(
        adapter_file.read_adapter_file, lora, "embedding"
    )


def test_ids_depend_on_content_and_not_on_paths(tmp_path: Path) -> None:
    one = lora_files.save(tmp_path / "one.safetensors", lora_files.kohya_tensors(1))
    (tmp_path / "elsewhere").mkdir()
    two = tmp_path / "elsewhere/two.safetensors"
    two.write_bytes(one.read_bytes())

    def identity(**values: Any) -> str:  # noqa: ANN401
        asked = build_request({"prompt": "x", "seed": 1} | values)
        return resolve_request(asked, here()).identity()

    plain, first = identity(), identity(loras=parse_loras([str(one)]))
    assert first == identity(loras=parse_loras([str(two)]))
    assert first not in {plain, identity(loras=parse_loras([f"{one}:0.5"]))}
    lora_files.save(two, lora_files.kohya_tensors(2))
    assert first != identity(loras=parse_loras([str(two)]))


def test_a_recorded_lora_must_be_the_same_file(tmp_path: Path) -> None:
    path = lora_files.save(tmp_path / "a.safetensors", lora_files.kohya_tensors())
    given = parse_loras([{"source": str(path), "sha256": "0" * 64}])
    request = build_request({"prompt": "x", "loras": given})
    assert "is another file than the one that was used" in told(resolve_request, request, here())


def test_rows_are_grouped_by_their_adapters(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("prompt,loras\na,snow:0.5; ink\nb,\nc,snow:0.5; ink\nd,snow\n")
    read_rows = list(readers.read_csv(file.read_bytes().splitlines(keepends=True)))
    entries = [entry for entry in read_rows if isinstance(entry, PromptEntry)]
    assert len(entries) == 4
    found, problems = expand_rows(entries, BatchOptions(), StubBackend())
    assert not problems
    groups = [[row.request.prompt for row in group] for group in group_rows(found)]
    assert groups == [["a", "c"], ["b"], ["d"]]
    varied = BatchOptions(vary=parse_vary(["loras=snow:0,snow:1"]))
    found, _ = expand_rows([PromptEntry(1, {"prompt": "x"})], varied, StubBackend())
    assert [(row.request.loras or ())[0].weight for row in found] == [0, 1]


def test_a_folder_of_loras_that_is_not_there_is_told_at_once(t2i: T2I) -> None:
    for command in (("generate", "x", "--dry-run"), ("serve", "--port", "0")):
        done = t2i(*command, "-m", "postcard", "--lora-dir", "nowhere")
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("error: There is no folder ")
        assert "nowhere.\nhint: --lora-dir, or the setting lora_dir, names" in done.stderr


def test_what_is_no_regular_file_is_told_as_that(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.safetensors")
    (tmp_path / "loop.safetensors").symlink_to("loop.safetensors")
    for name, expected in (("pipe", "it is no regular file"), ("loop", "symbolic links")):
        source = str(tmp_path / f"{name}.safetensors")
        request = build_request({"prompt": "x", "loras": parse_loras([source])})
        sentence = told(resolve_request, request, here())
        assert sentence.startswith(f"Cannot read {source}: ")
        assert expected in sentence


def test_bad_files_end_a_process_before_a_model_is_loaded(t2i: T2I, tmp_path: Path) -> None:
    for path, expected in (
        (lora_files.save_pickle(tmp_path / "p.safetensors"), "is a pickle file under another name"),
        (lora_files.save(tmp_path / "x.safetensors", lora_files.sdxl_tensors()), "LoRA for sdxl"),
    ):
        done = t2i("generate", "a house", "-m", "postcard", "--lora", f"{path}:0.5", "--json")
        error = json.loads(done.stderr.splitlines()[-1])["error"]
        assert (done.returncode, error["exit"]) == (9, 9)
        assert expected in error["message"]
        assert "the pickle ran" not in done.stdout + done.stderr


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the LoRAs `snow` and `sub/ink`."""
    found = tmp_path / "loras"
    (found / "sub").mkdir(parents=True)
    (found / "snow.safetensors").write_bytes(lora_files.SNOW.read_bytes())
    lora_files.save(found / "sub/ink.safetensors", lora_files.kohya_tensors())
    return found


def test_tags_in_prompts_are_loras_of_the_folder(folder: Path) -> None:
    prompt = "a house <lora:snow:0.8>, by day <LORA:ink>"
    request = resolve_request(build_request({"prompt": prompt}), here(folder))
    assert request.prompt == prompt
    assert [(each.source, each.weight) for each in request.loras or ()] == [
        ("snow", 0.8),
        ("ink", 1.0),
    ]
    assert (request.loras or ())[0].digest == sha256_of(lora_files.SNOW)
    assert without_tags(prompt, here(folder)) == "a house , by day"
    # What a record has is not added to it once more.
    again = resolve_request(build_request({"prompt": prompt, "loras": request.loras}), here(folder))
    assert again.loras == request.loras


def test_tags_without_a_folder_are_text(tmp_path: Path) -> None:
    request = resolve_request(build_request({"prompt": "a <lora:snow:0.8> b"}), here())
    assert request.loras is None
    assert without_tags(request.prompt, here()) == request.prompt


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("<lora:sno:1>", "loras: There is no LoRA 'sno' in "),
        ("<lora:snow:much>", "prompt: <lora:snow:much> has no number as its weight."),
        ("<lora:snow:1:0.5>", "prompt: <lora:snow:1:0.5> has different weights"),
        ("<lora:snow:1> <lora:snow:2>", "prompt: The prompt names the LoRA snow with two weights."),
        ("<lora:snow:99>", "loras: A weight in loras must be from -10 to 10"),
    ],
)
def test_bad_tags_are_errors(folder: Path, prompt: str, expected: str) -> None:
    request = build_request({"prompt": prompt})
    message = told(resolve_request, request, here(folder))
    assert message.startswith(expected)


def test_plans_tell_adapters_and_extras() -> None:
    given = {
        "loras": ["styles/ink.safetensors:0.5", "snow"],
        "embeddings": ["ann.safetensors:<ann>"],
        "extras": {"true_cfg_scale": 4},
    }
    parsers = {name: parse for name in given if (parse := FIELDS[name].parse)}
    request = build_request(
        {"prompt": "x", **{name: parse(given[name]) for name, parse in parsers.items()}}
    )
    record = {name: FIELDS[name].json_value(getattr(request, name)) for name in given}
    assert [FIELDS[name].summary_text(value) for name, value in record.items()] == [
        "LoRAs ink:0.5; snow",
        "embeddings ann:<ann>",
        'extras {"true_cfg_scale":4}',
    ]


def test_tags_of_long_prompts_take_no_long_time() -> None:
    assert prompt_loras("<lora:" * 800) == ()


def test_clients_of_a_server_name_what_its_operator_lists(folder: Path) -> None:
    spec = replace(here(folder), adapters="names")
    for source in ("snow", "ink", "snow.safetensors"):
        request = build_request({"prompt": "x", "loras": parse_loras([source])})
        assert (resolve_request(request, spec).loras or ())[0].digest
    for source in (str(lora_files.SNOW), "../loras/snow", "latent-consistency/lcm-lora-sdxl"):
        request = build_request({"prompt": "x", "loras": parse_loras([source])})
        assert f"This server has no LoRA {source[:60]!r};" in told(resolve_request, request, spec)
    request = build_request({"prompt": "<lora:sno:1>"})
    assert "This server has no LoRA" in told(resolve_request, request, spec)
    request = build_request({"prompt": "x", "loras": parse_loras(["snow"])})
    without = replace(spec, adapter_folder=None)
    assert "it was started without --lora-dir" in told(resolve_request, request, without)


def test_a_server_is_sent_names_and_no_files() -> None:
    spec = ModelSpec(name="m", multiple=1)
    request = build_request({"prompt": "x", "loras": parse_loras(["snow:0.5"])})
    assert (resolve_request(request, spec).loras or ())[0].source == "snow"
    request = build_request({"prompt": "x", "loras": parse_loras([str(lora_files.SNOW)])})
    assert "is a file here; a server takes the names" in told(resolve_request, request, spec)


def test_a_misspelt_name_is_told_the_nearest(folder: Path) -> None:
    request = build_request({"prompt": "x", "loras": parse_loras(["snoww"])})
    assert "There is no LoRA 'snoww'; did you mean snow" in told(
        resolve_request, request, here(folder)
    ).replace("Did", "did")
    request = build_request({"prompt": "x", "loras": parse_loras(["./none.safetensors"])})
    assert told(resolve_request, request, here()) == "loras: There is no file ./none.safetensors."


def test_a_lora_for_few_steps_brings_its_settings(tmp_path: Path) -> None:
    notes: list[str] = []
    file = tmp_path / "lcm-lora-sdv1-5.safetensors"
    lora_files.save(file, lora_files.kohya_tensors())
    values = {"prompt": "x", "loras": parse_loras([str(file)])}
    request = resolve_request(build_request(values), here(), on_size_note=notes.append)
    assert (request.steps, request.scheduler, request.guidance_scale) == (4, "lcm", 1.0)
    assert notes == [
        "lcm-lora-sdv1-5 is a LoRA for few steps (lcm-sd15): steps 4, scheduler lcm, "
        "guidance scale 1.0."
    ]
    own = {"steps": 9, "scheduler": "ddim", "guidance_scale": 3.0}
    request = resolve_request(build_request(values | own), here())
    assert (request.steps, request.scheduler, request.guidance_scale) == (9, "ddim", 3.0)
    off = values | {"loras": parse_loras([f"{file}:0"])}
    assert resolve_request(build_request(off), here()).steps == 20


@pytest.mark.parametrize("entry", adapter_catalog.ENTRIES.values(), ids=lambda each: each.name)
def test_every_few_step_lora_is_known_by_its_file(entry: adapter_catalog.FewStepLora) -> None:
    named = [entry.name, f"{entry.repo}/{entry.file}"]
    if entry.file != "pytorch_lora_weights.safetensors":
        named.append(f"downloads/{entry.file}")
    for source in named:
        assert adapter_catalog.recognize_lora(Adapter(kind="lora", source=source)) is entry


def test_the_infotext_has_tags_and_hashes() -> None:
    loras = (
        Adapter(kind="lora", source="dir/snow.safetensors", weight=0.5, digest="ab" * 32),
        Adapter(kind="lora", source="ink", digest="cd" * 32),
    )
    embedding = Adapter(kind="embedding", source="frost.st", digest="ef" * 32)
    request = factories.request(prompt="a house <lora:ink:1>", loras=loras, embeddings=(embedding,))
    text = infotext.format_infotext(request, factories.LOCK, (64, 48))
    assert text.startswith("a house <lora:ink:1> <lora:snow:0.5>\n")
    assert 'Lora hashes: "snow: ababababab, ink: cdcdcdcdcd"' in text
    assert "TI hashes: frost.st: efefefefef" in text or 'TI hashes: "frost.st: efefefefef"' in text
