"""Prepares the graph of a ComfyUI image for sd-parsers: one sampler, with plain values.

sd-parsers knows samplers that hold all their settings, and finds links in `workflow`, which images
made through ComfyUI's API lack, and whose form changed; the links in `prompt` say the same.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

Graph = Mapping[str, object]
Inputs = dict[str, object]

_MAX_NODES = 1_000
"""Nodes behind a sampler that are looked at: sd-parsers takes time for each on each path."""
_MAX_STEPS = 32
"""Nodes from the sampler to one that holds a value."""
_SAMPLER_INPUTS = {"sampler_name", "steps", "cfg"}
_VIDEO_SAMPLER_INPUTS = {"text_embeds", "steps", "cfg"}
_PARTS = ("guider", "sampler", "sigmas", "noise")
"""Inputs of a sampler whose settings stand in other nodes (SamplerCustomAdvanced)."""
_MAX_INPUTS = 100
"""Inputs of a node that gives its settings to others."""
_TEXTS = ("text_g", "t5xxl", "clip_l", "text_l", "prompt")
"""Names of the prompt in encoders for several text models."""
_VALUES = {
    *("seed", "noise_seed", "steps", "cfg", "sampler_name", "scheduler", "denoise", "guidance"),
    *("width", "height", "text", *_TEXTS),
}
"""Inputs whose value a linked node may give, as a primitive does."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """A graph with one sampler and its links, for sd-parsers.

    `settings` are the sampler's values as written, `size` the width and height of its first latents
    in pixels. `guided` says that a distilled model's guidance stands among the settings.
    """

    graph: dict[str, Inputs]
    workflow: dict[str, object]
    settings: Inputs
    size: Inputs = field(default_factory=dict)
    guided: bool = False


def is_graph(graph: Graph) -> bool:
    """Whether it is ComfyUI's: nodes with classes, by number."""
    return any(isinstance(node, dict) and "class_type" in node for node in graph.values())


def find_sampling(graph: Graph) -> Sampling | None:
    """The graph with its main sampler: the one that removes most noise, the first of several."""
    nodes = {number: inputs for number, node in graph.items() if (inputs := _inputs(node))}
    complete = {number: _complete(nodes, inputs) for number, inputs in nodes.items()}
    samplers = [
        number
        for number, inputs in complete.items()
        if inputs.keys() >= _SAMPLER_INPUTS or inputs.keys() >= _VIDEO_SAMPLER_INPUTS
    ]
    if not samplers:
        return None
    main = max(samplers, key=lambda number: _number(complete[number].get("denoise"), 1.0))
    inputs = complete[main]
    for key in ("positive", "negative"):
        link = _conditioning(graph, complete, inputs.pop(key, None))
        if link is not None:  # sd-parsers would stop at it
            inputs[key] = link
    behind = _nodes_behind(complete, main)
    guidance = next(_values_behind(complete, inputs.get("positive"), "guidance"), None)
    guided = guidance is not None and _number(inputs.get("cfg"), 1.0) == 1.0
    latents = _linked(complete, inputs.get("latent_image")) or {}
    settings = {key: value for key, value in inputs.items() if not isinstance(value, list | dict)}
    return Sampling(
        graph={number: _node(graph, number, behind[number], main) for number in behind},
        workflow={"links": [_link(*found) for found in _links(behind)]},
        settings={key: value for key, value in settings.items() if value is not None}
        | ({"guidance": guidance} if guided else {}),
        size={key: latents[key] for key in ("width", "height") if key in latents},
        guided=guided,
    )


def _inputs(node: object) -> Inputs | None:
    if not isinstance(node, dict) or "class_type" not in node:
        return None
    return dict(node["inputs"]) if isinstance(node.get("inputs"), dict) else None


def _complete(nodes: Mapping[str, Inputs], inputs: Inputs) -> Inputs:
    """A node's inputs with the values that linked nodes give, and a prompt under `text`."""
    found = dict(inputs)
    if "sigmas" in inputs:
        linked = [_linked(nodes, inputs.get(name)) or {} for name in _PARTS]
        parts = [part for part in linked if len(part) <= _MAX_INPUTS]
        found = {key: value for part in parts for key, value in part.items()} | found
        found.setdefault("positive", found.get("conditioning"))
        found.setdefault("cfg", None)
    for key in _VALUES & found.keys():
        # Two steps, for a value may pass through a converter.
        for _ in range(2):
            given = _linked(nodes, found[key])
            if given:
                sole = next(iter(given.values())) if len(given) == 1 else found[key]
                other = "seed" if key == "noise_seed" else "value"
                found[key] = given.get(key, given.get(other, sole))
    for key in _TEXTS:
        if isinstance(found.get(key), str) and not isinstance(found.get("text"), str):
            found["text"] = found[key]
    return found


def _linked(nodes: Mapping[str, Inputs], value: object) -> Inputs | None:
    """The inputs of the node that a link, `[number, output]`, names."""
    if isinstance(value, list) and len(value) == 2 and isinstance(value[0], str | int):
        return nodes.get(str(value[0]))
    return None


def _nodes_behind(nodes: Mapping[str, Inputs], main: str) -> dict[str, Inputs]:
    """A node and those that it depends on, nearest first."""
    found, waiting = {main: nodes[main]}, [main]
    for number in waiting:
        for value in nodes[number].values():
            if _linked(nodes, value) is not None and len(found) < _MAX_NODES:
                other = str(value[0])  # type: ignore[index]
                if other not in found:
                    found[other] = nodes[other]
                    waiting.append(other)
    return found


def _conditioning(graph: Graph, nodes: Mapping[str, Inputs], value: object) -> object:
    """The link to a prompt's conditioning, past nodes that pass on both; `None` if it is zeroed."""
    for _ in range(_MAX_STEPS):
        inputs = _linked(nodes, value)
        if inputs is None:
            break
        if _class(graph, str(value[0])) == "ConditioningZeroOut":  # type: ignore[index]
            return None
        if not inputs.keys() >= {"positive", "negative"}:
            break
        value = inputs["negative" if value[1] == 1 else "positive"]  # type: ignore[index]
    return value


def _values_behind(nodes: Mapping[str, Inputs], value: object, key: str) -> Iterator[object]:
    """The values of an input in the nodes that a conditioning passes through."""
    for _ in range(_MAX_STEPS):
        inputs = _linked(nodes, value)
        if inputs is None:
            return
        if isinstance(inputs.get(key), int | float):
            yield inputs[key]
        value = inputs.get("conditioning")


def _node(graph: Graph, number: str, inputs: Inputs, main: str) -> Inputs:
    """A node as sd-parsers gets it.

    Only the main sampler may look like one, and only what loads a model like a model.
    """
    if number == main:
        return {"class_type": _class(graph, number), "inputs": inputs}
    kept = {key: value for key, value in inputs.items() if key not in {"sampler_name", "model"}}
    if isinstance(name := inputs.get("model", inputs.get("unet_name")), str):
        kept.setdefault("ckpt_name", name)
    return {"class_type": f"{_class(graph, number)} ", "inputs": kept}


def _class(graph: Graph, number: str) -> str:
    node = graph[number]
    return str(node["class_type"]) if isinstance(node, dict) else ""


def _links(nodes: Mapping[str, Inputs]) -> Iterator[tuple[str, str, str]]:
    for number, inputs in nodes.items():
        for key, value in inputs.items():
            if _linked(nodes, value) is not None:
                yield str(value[0]), number, key  # type: ignore[index]


def _link(source: str, target: str, key: str) -> list[object]:
    """A link as in `workflow`: number, from, output, to, input, type."""
    return [0, source, 0, target, 0, key.upper()]


def _number(value: object, otherwise: float) -> float:
    return float(value) if isinstance(value, int | float) else otherwise
