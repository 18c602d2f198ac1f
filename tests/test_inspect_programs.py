"""Images of other programs, made here in the form that those programs write."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from t2i_cli.errors import InputError
from t2i_cli.output import metadata
from t2i_cli.output.metadata import ImageMetadata
from tests.conftest import T2I
from tests.factories import picture
from tests.test_a1111 import FROM_A1111

Graph = dict[str, Any]


def png(path: Path, texts: dict[str, object]) -> Path:
    """A PNG with texts; what is no text becomes JSON."""
    info = PngInfo()
    for keyword, text in texts.items():
        info.add_text(keyword, text if isinstance(text, str) else json.dumps(text))
    picture().save(path, pnginfo=info)
    return path


def read(folder: Path, **texts: object) -> ImageMetadata:
    """What is read of a PNG with these texts; `_` in a keyword stands for a hyphen."""
    named = {keyword.replace("__", "-"): text for keyword, text in texts.items()}
    return metadata.read_metadata(png(folder / "image.png", named))


def known(record: ImageMetadata) -> dict[str, object]:
    """The request's fields that have a value."""
    return {name: value for name, value in record.request.items() if value is not None}


def node(kind: str, **inputs: object) -> dict[str, object]:
    return {"class_type": kind, "inputs": inputs, "_meta": {"title": kind}}


def comfyui_graph() -> Graph:
    """The graph of ComfyUI's first workflow, with a LoRA and a control net."""
    return {
        "3": node(
            "KSampler",
            seed=156680208700286,
            steps=20,
            cfg=8,
            sampler_name="dpmpp_2m",
            scheduler="karras",
            denoise=1,
            model=["10", 0],
            positive=["11", 0],
            negative=["11", 1],
            latent_image=["5", 0],
        ),
        "4": node("CheckpointLoaderSimple", ckpt_name="v1-5-pruned-emaonly.safetensors"),
        "5": node("EmptyLatentImage", width=512, height=768, batch_size=1),
        "6": node("CLIPTextEncode", text="beautiful scenery, {bottle}", clip=["10", 1]),
        "7": node("CLIPTextEncode", text="text, watermark", clip=["10", 1]),
        "8": node("VAEDecode", samples=["3", 0], vae=["4", 2]),
        "9": {**node("SaveImage", images=["8", 0]), "is_changed": [float("nan")]},
        "10": node("LoraLoader", lora_name="a.safetensors", model=["4", 0], clip=["4", 1]),
        "11": node("ControlNetApplyAdvanced", positive=["6", 0], negative=["7", 0], strength=1),
    }


COMFYUI = {
    "prompt": "beautiful scenery, {bottle}",
    "negative_prompt": "text, watermark",
    "model": "v1-5-pruned-emaonly.safetensors",
    "seed": 156680208700286,
    "steps": 20,
    "guidance_scale": 8.0,
    "width": 512,
    "height": 768,
    "scheduler": "dpm++2m-karras",
}


def test_comfyui(tmp_path: Path) -> None:
    workflow = {"nodes": [], "links": [{"id": 1, "origin_id": 4}], "version": 1}
    record = read(tmp_path, prompt=comfyui_graph(), workflow=workflow)
    assert (record.source, record.problems) == ("comfyui", ())
    assert known(record) == COMFYUI
    assert record.parameters["sampler_name"] == "dpmpp_2m"
    assert record.parameters["workflow"] == workflow
    # JSON has no NaN; ComfyUI writes it.
    graph = comfyui_graph()
    graph["9"]["is_changed"] = ["NaN"]
    assert record.parameters["prompt"] == graph


def test_comfyui_without_workflow_in_exif(tmp_path: Path) -> None:
    """ComfyUI's API writes no workflow; its WebP has the graph in EXIF's model and maker."""
    exif = Image.Exif()
    exif[0x0110] = f"prompt:{json.dumps(comfyui_graph())}"
    picture().save(tmp_path / "a.webp", exif=exif)
    assert known(metadata.read_metadata(tmp_path / "a.webp")) == COMFYUI


def test_comfyui_with_a_sampler_in_parts(tmp_path: Path) -> None:
    """The form of FLUX's workflow: values by primitives, guidance in the conditioning."""
    graph = {
        "6": node("CLIPTextEncode", text=["30", 0], clip=["11", 0]),
        "30": node("PrimitiveStringMultiline", value="an anime girl"),
        "11": node("DualCLIPLoader", clip_name1="t5xxl.safetensors", clip_name2="clip_l"),
        "12": node("UNETLoader", unet_name="flux1-dev.safetensors", weight_dtype="default"),
        "13": node(
            "SamplerCustomAdvanced",
            noise=["25", 0],
            guider=["22", 0],
            sampler=["16", 0],
            sigmas=["17", 0],
            latent_image=["27", 0],
        ),
        "16": node("KSamplerSelect", sampler_name="euler"),
        "17": node("BasicScheduler", scheduler="simple", steps=24, denoise=1, model=["12", 0]),
        "22": node("BasicGuider", model=["12", 0], conditioning=["26", 0]),
        "25": node("RandomNoise", noise_seed=219670278747233),
        "26": node("FluxGuidance", guidance=3.5, conditioning=["6", 0]),
        "27": node("EmptySD3LatentImage", width=1024, height=1024, batch_size=1),
    }
    assert known(read(tmp_path, prompt=graph)) == {
        "prompt": "an anime girl",
        "model": "flux1-dev.safetensors",
        "seed": 219670278747233,
        "steps": 24,
        "guidance_scale": 3.5,
        "width": 1024,
        "height": 1024,
        "scheduler": "euler",
    }


def test_comfyui_with_two_passes_and_no_negative_prompt(tmp_path: Path) -> None:
    graph = comfyui_graph()
    graph["1"] = node("KSampler", **graph["3"]["inputs"] | {"denoise": 0.4, "seed": 1, "steps": 9})
    graph["12"] = node("ConditioningZeroOut", conditioning=["6", 0])
    graph["3"]["inputs"] |= {"negative": ["12", 0], "positive": ["6", 0]}
    assert known(read(tmp_path, prompt=graph)) == {
        name: value for name, value in COMFYUI.items() if name != "negative_prompt"
    }


def test_comfyui_without_a_known_sampler_keeps_its_graph(tmp_path: Path) -> None:
    graph = {"1": node("SomeoneElsesSampler", strength=2)}
    record = read(tmp_path, prompt=graph)
    assert (record.source, known(record)) == ("comfyui", {})
    assert record.parameters == {"prompt": graph}


def test_invokeai(tmp_path: Path) -> None:
    written = {
        "generation_mode": "txt2img",
        "positive_prompt": "a barn",
        "negative_prompt": "rain",
        "width": 512,
        "height": 640,
        "seed": 3456789,
        "rand_device": "cpu",
        "cfg_scale": 7.5,
        "steps": 30,
        "scheduler": "dpmpp_2m_k",
        "model": {"key": "k", "hash": "blake3:12", "name": "Juggernaut XL", "base": "sdxl"},
        "loras": [{"model": {"name": "x, y: z"}, "weight": 0.75}],
        "app_version": "5.6.0",
    }
    record = read(tmp_path, invokeai_metadata=written, invokeai_graph="{}")
    assert record.source == "invokeai"
    assert known(record) == {
        "prompt": "a barn",
        "negative_prompt": "rain",
        "model": "Juggernaut XL",
        "seed": 3456789,
        "steps": 30,
        "guidance_scale": 7.5,
        "width": 512,
        "height": 640,
        "scheduler": "dpm++2m-karras",
    }
    assert record.parameters == written
    # Before version 4 the model's name had another key; FLUX has another guidance, no scheduler.
    old = written | {"model": {"model_name": "sd-1", "base_model": "sd-1"}, "guidance": 4}
    del old["scheduler"], old["cfg_scale"]
    record = read(tmp_path, invokeai_metadata=old)
    assert (record.request["model"], record.request["guidance_scale"]) == ("sd-1", 4.0)
    assert (record.request["prompt"], record.request["scheduler"]) == ("a barn", None)


@pytest.mark.parametrize("as_text", [False, True])
def test_invokeai_before_version_3(as_text: bool, tmp_path: Path) -> None:
    prompt = "a barn [rain]"
    written = {
        "model": "stable diffusion",
        "model_weights": "sd-v1-5",
        "model_hash": "cc6cb27103417325ff94f52b7a5d2dde45a7515b25c255d8e396c90014281516",
        "app_id": "invoke-ai/InvokeAI",
        "app_version": "2.2.5",
        "image": {
            "prompt": prompt if as_text else [{"prompt": prompt, "weight": 1.0}],
            "steps": 50,
            "cfg_scale": 7.5,
            "threshold": 0,
            "width": 512,
            "height": 704,
            "seed": 3380124,
            "type": "txt2img",
            "sampler": "k_euler_a",
        },
    }
    record = read(tmp_path, sd__metadata=written, Dream='"a barn [rain]" -s 50')
    assert record.source == "invokeai"
    assert known(record) == {
        "prompt": "a barn",
        "negative_prompt": "rain",
        "model": "sd-v1-5",
        "seed": 3380124,
        "steps": 50,
        "guidance_scale": 7.5,
        "width": 512,
        "height": 704,
        "scheduler": "euler-a",
    }
    assert record.parameters == written


def test_invokeai_s_first_form(tmp_path: Path) -> None:
    dream = '"a "red" barn,\non -s 3 hills [rain]" -s 50 -S 1234 -W 512 -H 704 -C 7.5 -A k_lms'
    record = read(tmp_path, Dream=dream)
    assert record.source == "invokeai"
    assert known(record) == {
        "prompt": 'a "red" barn,\non -s 3 hills',
        "negative_prompt": "rain",
        "seed": 1234,
        "steps": 50,
        "guidance_scale": 7.5,
        "width": 512,
        "height": 704,
        "scheduler": "lms",
    }
    assert record.parameters == {"Dream": dream}


NOVELAI_COMMENT = {
    "prompt": "1girl, {rain}",
    "steps": 28,
    "height": 1216,
    "width": 832,
    "scale": 5.0,
    "seed": 1028342361,
    "noise_schedule": "karras",
    "sampler": "k_dpmpp_2m",
    "uc": "lowres, bad",
    "v4_prompt": {"caption": {"base_caption": "1girl, {rain}", "char_captions": []}},
}
NOVELAI = {
    "prompt": "1girl, {rain}",
    "negative_prompt": "lowres, bad",
    "model": "NovelAI Diffusion V4",
    "seed": 1028342361,
    "steps": 28,
    "guidance_scale": 5.0,
    "width": 832,
    "height": 1216,
    "scheduler": "dpm++2m-karras",
}
NOVELAI_TEXTS: dict[str, object] = {
    "Title": "NovelAI generated image",
    "Description": "1girl, {rain}",
    "Software": "NovelAI",
    "Source": "NovelAI Diffusion V4 37442FCA",
    "Generation time": "5.2",
    "Comment": json.dumps(NOVELAI_COMMENT),
}


def test_novelai(tmp_path: Path) -> None:
    record = metadata.read_metadata(png(tmp_path / "a.png", NOVELAI_TEXTS))
    assert (record.source, known(record)) == ("novelai", NOVELAI)
    labels = {name: NOVELAI_TEXTS[name] for name in ("Title", "Software", "Source")}
    assert record.parameters == NOVELAI_COMMENT | labels | {"Generation time": "5.2"}


def test_novelai_in_exif(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x8769] = {0x9286: b"ASCII\0\0\0" + json.dumps(NOVELAI_TEXTS).encode()}
    picture().save(tmp_path / "a.webp", exif=exif)
    record = metadata.read_metadata(tmp_path / "a.webp")
    assert (record.source, known(record)) == ("novelai", NOVELAI)


FOOOCUS: dict[str, object] = {
    "adm_guidance": "(1.5, 0.8, 0.3)",
    "base_model": "juggernautXL_v8Rundiffusion",
    "base_model_hash": "aeb7e9e689",
    "full_prompt": ["a barn, cinematic", "a barn, photo"],
    "guidance_scale": 4,
    "loras": [["sd_xl_offset.safetensors", 0.1, "4852686128"]],
    "metadata_scheme": "fooocus",
    "negative_prompt": "",
    "performance": "Speed",
    "prompt": "a barn",
    "resolution": "(1152, 896)",
    "sampler": "dpmpp_2m_sde_gpu",
    "scheduler": "karras",
    "seed": "8731423442",
    "steps": 30,
    "styles": "['Fooocus V2', 'Fooocus Enhance']",
    "version": "Fooocus v2.4.3",
}


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_fooocus(suffix: str, tmp_path: Path) -> None:
    """As its `get_exif` writes: UserComment, a text, in the main directory."""
    path = tmp_path / f"a.{suffix}"
    if suffix == "png":
        png(path, {"parameters": FOOOCUS, "fooocus_scheme": "fooocus"})
    else:
        exif = Image.Exif()
        exif[0x9286] = json.dumps(FOOOCUS)
        exif[0x0131] = "Fooocus v2.4.3"
        exif[0x927C] = "fooocus"
        picture().save(path, exif=exif)
    record = metadata.read_metadata(path)
    assert record.source == "fooocus"
    assert known(record) == {
        "prompt": "a barn",
        "model": "juggernautXL_v8Rundiffusion",
        "seed": 8731423442,
        "steps": 30,
        "guidance_scale": 4.0,
        "width": 1152,
        "height": 896,
        "scheduler": "dpm++2m-sde-karras",
    }
    assert record.parameters == FOOOCUS


SWARMUI = {
    "prompt": "a barn, <lora:x:0.5>",
    "negativeprompt": "rain",
    "model": "OfficialStableDiffusion/sd_xl_base_1.0",
    "images": 1,
    "seed": 1512415,
    "steps": 22,
    "cfgscale": 6.5,
    "width": 1024,
    "height": 768,
    "sampler": "euler_ancestral",
    "scheduler": "normal",
    "swarm_version": "0.9.4.0",
}


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_swarmui(suffix: str, tmp_path: Path) -> None:
    written = {
        "sui_image_params": SWARMUI,
        "sui_extra_data": {"date": "2025-01-02", "generation_time": "1.2 sec"},
        "sui_models": [{"name": "sd_xl_base_1.0.safetensors", "param": "model"}],
    }
    path = tmp_path / f"a.{suffix}"
    if suffix == "png":
        png(path, {"parameters": json.dumps(written, indent=2)})
    else:
        exif = Image.Exif()
        exif[0x8769] = {0x9286: b"UNICODE\0" + json.dumps(written).encode("utf-16-le")}
        picture().save(path, exif=exif)
    record = metadata.read_metadata(path)
    assert record.source == "swarmui"
    assert known(record) == {
        "prompt": "a barn, <lora:x:0.5>",
        "negative_prompt": "rain",
        "model": "OfficialStableDiffusion/sd_xl_base_1.0",
        "seed": 1512415,
        "steps": 22,
        "guidance_scale": 6.5,
        "width": 1024,
        "height": 768,
        "scheduler": "euler-a",
    }
    others = {key: value for key, value in written.items() if key != "sui_image_params"}
    assert record.parameters == SWARMUI | others


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_draw_things(suffix: str, tmp_path: Path) -> None:
    written = {
        "c": "a <barn> & more",
        "uc": "rain",
        "model": "sd_v1.5_f16.ckpt",
        "sampler": "DPM++ 2M Karras",
        "scale": 7.5,
        "seed": 2912345,
        "size": "512x576",
        "steps": 20,
        "strength": 1,
        "lora": [{"model": "x.ckpt", "weight": 0.6}],
        "v2": {"hiresFix": False},
    }
    record_text = json.dumps(written).replace("&", "&amp;").replace("<", "&lt;")
    packet = (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="XMP Core 6.0.0"><rdf:RDF '
        'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
        'xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:xmp="http://ns.adobe.com/xap/1.0/" '
        'xmlns:exif="http://ns.adobe.com/exif/1.0/"><dc:description><rdf:Alt>'
        '<rdf:li xml:lang="x-default">a barn\nSteps: 20, Sampler: x, Seed: 1</rdf:li>'
        "</rdf:Alt></dc:description><xmp:CreatorTool>Draw Things</xmp:CreatorTool>"
        f'<exif:UserComment><rdf:Alt><rdf:li xml:lang="x-default">{record_text}</rdf:li></rdf:Alt>'
        "</exif:UserComment></rdf:Description></rdf:RDF></x:xmpmeta>"
    )
    path = tmp_path / f"a.{suffix}"
    if suffix == "png":
        info = PngInfo()
        info.add_itxt("XML:com.adobe.xmp", packet)
        picture().save(path, pnginfo=info)
    else:
        picture().save(path, xmp=packet.encode())
    record = metadata.read_metadata(path)
    assert record.source == "drawthings"
    assert known(record) == {
        "prompt": "a <barn> & more",
        "negative_prompt": "rain",
        "model": "sd_v1.5_f16.ckpt",
        "seed": 2912345,
        "steps": 20,
        "guidance_scale": 7.5,
        "width": 512,
        "height": 576,
        "scheduler": "dpm++2m-karras",
    }
    assert record.parameters == written


def user_comment(text: str) -> bytes:
    exif = Image.Exif()
    exif[0x8769] = {0x9286: b"UNICODE\0" + text.encode("utf-16-be")}
    return exif.tobytes()


def test_avif(tmp_path: Path) -> None:
    picture().save(tmp_path / "a.avif", exif=user_comment(FROM_A1111))
    record = metadata.read_metadata(tmp_path / "a.avif")
    assert (record.format, record.width, record.height) == ("avif", 64, 48)
    assert record.request["seed"] == 965400086


def jxl_box(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(body), kind) + body


def jpeg_xl(*boxes: bytes) -> bytes:
    """A JPEG XL file of 64 by 48 pixels, as far as its header (ISO/IEC 18181-2, section 9)."""
    # Least bit first: a small size, 48 / 8 - 1 in five bits, ratio 4:3.
    header = (1 | 5 << 1 | 3 << 6).to_bytes(2, "little")
    return (
        b"\0\0\0\x0cJXL \r\n\x87\n"
        + jxl_box(b"ftyp", b"jxl \0\0\0\0jxl ")
        + b"".join(boxes)
        + jxl_box(b"jxlc", b"\xff\x0a" + header + bytes(8))
    )


def test_jpeg_xl(tmp_path: Path) -> None:
    path = tmp_path / "a.jxl"
    tiff = user_comment(FROM_A1111).removeprefix(b"Exif\0\0")
    path.write_bytes(jpeg_xl(jxl_box(b"Exif", bytes(4) + tiff)))
    record = metadata.read_metadata(path)
    assert (record.format, record.width, record.height) == ("jxl", 64, 48)
    assert record.request["seed"] == 965400086
    path.write_bytes(jpeg_xl(jxl_box(b"brob", b"Exif" + bytes(20))))
    with pytest.raises(InputError, match="compressed by Brotli and is not read"):
        metadata.read_metadata(path)


def test_an_unknown_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="in a form that t2i reads") as refused:
        read(tmp_path, Comment="Created with GIMP", Title="x")
    assert refused.value.hint == "It has texts of other kinds: Comment, Title."


@pytest.mark.parametrize(
    ("keyword", "text"),
    [
        ("prompt", '{"3": {"class_type": "KSampler", "inp'),
        ("invokeai_metadata", '{"seed": ' + "1" * 5_000 + "}"),
        ("sd-metadata", "[" * 900),
    ],
)
def test_a_record_that_cannot_be_read_is_not_called_absent(
    keyword: str, text: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=f"its text '{keyword}' cannot be read: it "):
        metadata.read_metadata(png(tmp_path / "a.png", {keyword: text}))


JUNK: list[object] = [
    None,
    1,
    "x",
    [],
    {},
    [[]],
    {"inputs": []},
    {"class_type": {}, "inputs": {"steps": []}},
]


@pytest.mark.parametrize("junk", JUNK, ids=str)
def test_a_record_of_another_form_gives_no_traceback(junk: object, tmp_path: Path) -> None:
    """Each value of each program's record, replaced."""
    sampler = comfyui_graph()["3"]["inputs"]
    records: list[dict[str, object]] = [{"prompt": {**comfyui_graph(), "3": junk}}]
    records += [{"prompt": {"1": junk}}]
    records += [
        {"prompt": {**comfyui_graph(), "3": node("KSampler", **sampler | {key: junk})}}
        for key in sampler
    ]
    records += [{"parameters": FOOOCUS | {key: junk}} for key in FOOOCUS]
    records += [{"parameters": {"sui_image_params": SWARMUI | {key: junk}}} for key in SWARMUI]
    records += [
        NOVELAI_TEXTS | {"Comment": json.dumps(NOVELAI_COMMENT | {key: junk})}
        for key in NOVELAI_COMMENT
    ]
    records += [{"invokeai_metadata": {"positive_prompt": junk, "model": junk, "scheduler": junk}}]
    records += [{"sd-metadata": {"image": junk}}, {"sd-metadata": {"image": {"prompt": junk}}}]
    for texts in records:
        try:
            record = metadata.read_metadata(png(tmp_path / "a.png", texts))
        except InputError:
            continue
        json.dumps(record.to_json(), allow_nan=False)


def test_process_shows_a_stranger_s_record(t2i: T2I, tmp_path: Path) -> None:
    png(tmp_path / "a.png", {"prompt": comfyui_graph()})
    done = t2i("inspect", "a.png")
    assert (done.returncode, done.stderr) == (0, "")
    for line in ("made by          ComfyUI", "scheduler        karras", "cfg              8\n"):
        assert f"  {line}" in done.stdout
    done = t2i("inspect", "a.png", "--json")
    record = json.loads(done.stdout, parse_constant=pytest.fail)
    assert record["parameters"]["prompt"]["4"]["inputs"] == comfyui_graph()["4"]["inputs"]
