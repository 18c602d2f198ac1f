"""Reads what other programs write into images: t2i's request fields, and the settings as written.

ComfyUI, InvokeAI, NovelAI and Fooocus are read by sd-parsers, which gets texts within bounds, never
a file; AUTOMATIC1111's text (also of Civitai and Forge), SwarmUI and Draw Things are read here.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from json import JSONDecodeError

from t2i_cli.files.state_files import parse_json
from t2i_cli.models import noise_schedules
from t2i_cli.output import comfyui_graph
from t2i_cli.output.image_texts.collected import ImageTexts
from t2i_cli.output.infotext import Infotext, parse_field_texts, parse_infotext
from t2i_cli.output.parser_results import parsed_values, run_parser
from t2i_cli.prompts.weighted_prompt import is_weighted
from t2i_cli.request_fields import FIELDS

_MAX_DEPTH = 100
"""Deepest nesting of JSON that is read."""

_GUIDANCE = next(name for name, field in FIELDS.items() if field.infotext == "CFG scale")
_TOO_DEEP = "it is nested too deeply"
_ORDER = {"parameters": 0, "description": 2}
"""Draw Things writes a description for people beside its record."""

_JsonRecord = dict[str, object]


@dataclass(frozen=True, kw_only=True)
class ForeignRecord:
    """`request` by ResolvedRequest's field names, `parameters` by the names in the image."""

    source: str
    request: Mapping[str, object]
    parameters: Mapping[str, object]


def find_foreign_record(found: ImageTexts) -> ForeignRecord | None:
    """The first record of a known program in an image's texts; problems go to `found`."""
    return _text_record(found) or _comfyui(found) or _invokeai(found) or _novelai(found)


def parse_record(text: str) -> object:
    """Parse a record's JSON; raises ValueError that says what is wrong with it."""
    try:
        return parse_json(text.encode("utf-8", "replace"), deepest=_MAX_DEPTH, finite=True)
    except JSONDecodeError as error:
        raise ValueError("it is no whole JSON") from error
    except ValueError as error:
        own = str(error) == _TOO_DEEP
        raise ValueError(_TOO_DEEP if own else "it has a number of too many digits") from error


def _text_record(found: ImageTexts) -> ForeignRecord | None:
    """A record that is one text, wherever it stands; `parameters` is read before all others."""
    for name, text in sorted(found.texts, key=lambda named: _ORDER.get(named[0], 1)):
        if text.lstrip().startswith(("{", "[")):
            try:
                value = parse_record(text)
            except ValueError as error:
                # A prompt may begin with a bracket, too.
                if str(error) == _TOO_DEEP:
                    found.add_problem(f"its text {name!r} cannot be read: {error}")
                    continue
            else:
                if isinstance(value, dict) and (record := _json_record(value, found)):
                    return record
                continue
        if name != "t2i" and (infotext := parse_infotext(text)):
            return _a1111(infotext)
    return None


def _json_record(value: _JsonRecord, found: ImageTexts) -> ForeignRecord | None:
    """The record of a JSON object in `parameters`, a comment or a description."""
    if isinstance(inner := value.get("sui_image_params"), dict):
        return _swarmui(inner, value)
    if value.keys() >= {"prompt", "base_model", "sampler"}:
        return _fooocus(value)
    if value.keys() >= {"Comment", "Description"}:  # NovelAI's EXIF
        inside = ImageTexts(format=found.format)
        for name, text in value.items():
            inside.add_text(name, str(text))
        return _novelai(inside)
    if value.keys() >= {"c", "seed"} or value.keys() >= {"c", "model", "sampler"}:
        return _draw_things(value)
    if isinstance(graph := value.get("prompt"), dict) and comfyui_graph.is_graph(graph):
        return _comfyui_record(value)
    return None


def _a1111(infotext: Infotext) -> ForeignRecord:
    """The record of AUTOMATIC1111's text; t2i's own says how its prompts are read."""
    prompts = [str(infotext.request.get(name) or "") for name in ("prompt", "negative_prompt")]
    is_own = infotext.parameters.get("Version", "").startswith("t2i ")
    weighted = not is_own and any(map(is_weighted, prompts))
    return ForeignRecord(
        source="a1111",
        request=infotext.request | ({"prompt_syntax": "a1111"} if weighted else {}),
        parameters=infotext.parameters,
    )


def _swarmui(inner: _JsonRecord, outer: _JsonRecord) -> ForeignRecord:
    return ForeignRecord(
        source="swarmui",
        request=_request(
            inner,
            prompt="prompt",
            negative_prompt="negativeprompt",
            model="model",
            guidance="cfgscale",
            sampling=_sampling(inner.get("sampler"), inner.get("scheduler")),
        ),
        parameters=inner | {key: value for key, value in outer.items() if value is not inner},
    )


def _draw_things(value: _JsonRecord) -> ForeignRecord:
    width, _, height = str(value.get("size", "")).partition("x")
    label = _text(value.get("sampler")) or ""
    return ForeignRecord(
        source="drawthings",
        request=_request(
            value | {"width": width, "height": height},
            prompt="c",
            negative_prompt="uc",
            model="model",
            guidance="scale",
            sampling=noise_schedules.read_sampler_labels(label.replace("Euler A", "Euler a"), ""),
        ),
        parameters=value,
    )


def _fooocus(value: _JsonRecord) -> ForeignRecord:
    from sd_parsers.parsers import FooocusParser

    width, _, height = str(value.get("resolution", "")).strip("()").partition(",")
    texts = {"parameters": _dump({"negative_prompt": "", "base_model_hash": None} | value)}
    named = value | {"model": value["base_model"]} | parsed_values(run_parser(FooocusParser, texts))
    return ForeignRecord(
        source="fooocus",
        request=_request(
            named | {"width": width.strip(), "height": height.strip()},
            sampling=_sampling(value.get("sampler"), value.get("scheduler")),
        ),
        parameters=value,
    )


def _comfyui(found: ImageTexts) -> ForeignRecord | None:
    records = {}
    for name in ("prompt", "workflow"):
        value = _json_text(found, name)
        if isinstance(value, dict):
            records[name] = value
    graph, workflow = records.get("prompt"), records.get("workflow")
    if (graph and comfyui_graph.is_graph(graph)) or (
        workflow and isinstance(workflow.get("nodes"), list)
    ):
        return _comfyui_record(records)
    return None


def _comfyui_record(records: Mapping[str, object]) -> ForeignRecord:
    """The settings of the sampler, and the graphs whole."""
    from sd_parsers.parsers import ComfyUIParser

    graph = records.get("prompt")
    sampling = comfyui_graph.find_sampling(graph) if isinstance(graph, dict) else None
    if sampling is None:
        return ForeignRecord(source="comfyui", request=parse_field_texts({}), parameters=records)
    info = run_parser(ComfyUIParser, {"prompt": sampling.graph, "workflow": sampling.workflow})
    written = sampling.settings
    values = {**written, **parsed_values(info), **sampling.size}
    return ForeignRecord(
        source="comfyui",
        request=_request(
            values | {"seed": written.get("seed", written.get("noise_seed"))},
            guidance="guidance" if sampling.guided else "cfg",
            sampling=_sampling(written.get("sampler_name"), written.get("scheduler")),
        ),
        parameters={**written, **records},
    )


def _invokeai(found: ImageTexts) -> ForeignRecord | None:
    from sd_parsers.parsers import InvokeAIParser

    new, old = _json_text(found, "invokeai_metadata"), _json_text(found, "sd-metadata")
    dream = found.find_text("Dream")
    if isinstance(new, dict):
        sampler = {"scheduler": ""} | new
        info = run_parser(InvokeAIParser, {"invokeai_metadata": _dump(sampler)})
        model = new.get("model")
        name = model.get("name", model.get("model_name")) if isinstance(model, dict) else model
        prompts = {field: new.get(key) for field, key in _INVOKEAI_PROMPTS}
        values = {**prompts, **new, **parsed_values(info), "model": _text(name)}
        written = new
    elif isinstance(old, dict):
        image = old.get("image")
        image = dict(image) if isinstance(image, dict) else {}
        if isinstance(image.get("prompt"), str):
            image["prompt"] = [{"prompt": image["prompt"]}]
        info = run_parser(InvokeAIParser, {"sd-metadata": _dump(old | {"image": image})})
        values, written = {**image, **parsed_values(info)}, old
    elif dream:
        info = run_parser(InvokeAIParser, {"Dream": _hide_quotes(dream)})
        values = {
            key: _show_quotes(value) if isinstance(value, str) else value
            for key, value in parsed_values(info).items()
        }
        written = {"Dream": dream}
    else:
        return None
    return ForeignRecord(
        source="invokeai",
        request=_request(
            values,
            guidance="cfg_scale" if values.get("cfg_scale") is not None else "guidance",
            sampling=_sampling(values.get("sampler_name"), None),
        ),
        parameters=written,
    )


def _novelai(found: ImageTexts) -> ForeignRecord | None:
    from sd_parsers.parsers import NovelAIParser

    description, source = found.find_text("Description"), found.find_text("Source")
    if description is None or found.find_text("Comment") is None:
        return None
    comment = _json_text(found, "Comment")
    if not isinstance(comment, dict):
        return None
    texts = {"Comment": _dump(comment), "Description": description, "Source": source or ""}
    info = run_parser(NovelAIParser, texts)
    labels = {name: text for name, text in found.texts if name not in {"Comment", "Description"}}
    return ForeignRecord(
        source="novelai",
        request=_request(
            {"prompt": description, "negative_prompt": comment.get("uc")}
            | comment
            | {"model": source}
            | parsed_values(info),
            guidance="scale",
            sampling=_sampling(comment.get("sampler"), comment.get("noise_schedule")),
        ),
        parameters=comment | labels,
    )


def _json_text(found: ImageTexts, name: str) -> object:
    """The JSON in a text of that name; `None`, with a problem, if it is damaged."""
    text = found.find_text(name)
    if text is None or not text.lstrip().startswith(("{", "[")):
        return None
    try:
        return parse_record(text)
    except ValueError as error:
        found.add_problem(f"its text {name!r} cannot be read: {error}")
        return None


def _dump(value: object) -> str:
    return json.dumps(value)


def _request(
    values: Mapping[str, object],
    *,
    sampling: tuple[str | None, str | None],
    guidance: str | None = None,
    **names: str,
) -> _JsonRecord:
    """The request's fields from a program's values; `names` are its names of those that differ."""
    if guidance is not None:
        names[_GUIDANCE] = guidance
    fields = ("model", "seed", "steps", _GUIDANCE, "width", "height")
    texts = {name: _text(values.get(names.get(name, name))) for name in fields}
    prompts: _JsonRecord = {
        name: _text(values.get(names.get(name, name))) or None
        for name in ("prompt", "negative_prompt")
    }
    scheduler, schedule = sampling
    return prompts | parse_field_texts(texts | {"scheduler": scheduler, "schedule": schedule})


def _text(value: object) -> str | None:
    """A text or number as text; `None` for what is neither."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    return str(value)


def _sampling(sampler: object, spacing: object) -> tuple[str | None, str | None]:
    """The scheduler and the schedule."""
    return noise_schedules.read_sampler_names(_text(sampler) or "", _text(spacing) or "")


_INVOKEAI_PROMPTS = (("prompt", "positive_prompt"), ("negative_prompt", "negative_prompt"))
_HIDDEN = {ord('"'): "\ue000", ord("\n"): "\ue001"}


def _hide_quotes(dream: str) -> str:
    """A Dream text whose prompt sd-parsers reads whole: it stops at a quote or a line break."""
    prompt, end, options = dream.rpartition('" -')
    return f'"{prompt.removeprefix(chr(34)).translate(_HIDDEN)}{end}{options}' if end else dream


def _show_quotes(text: str) -> str:
    return text.replace("\ue000", '"').replace("\ue001", "\n")
