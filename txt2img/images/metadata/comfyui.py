"""What ComfyUI writes into its pictures: the graph that drew them, read from its sampler back.

`prompt` holds the graph as it was run, `workflow` as it was drawn on the screen. Nothing of it is
run: a few kinds of nodes are known by name, and their inputs are followed, each node once.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from txt2img.system.text import shown

NODES_MAX = 10_000
Node = Mapping[str, object]  # of the graph as it was run: class_type, inputs

# The widgets of a node on the screen, in their order; "" is one that decides nothing.
WIDGETS = {
    "KSampler": ("seed", "", "steps", "cfg", "sampler_name", "scheduler", "denoise"),
    "KSamplerAdvanced": (
        *("add_noise", "noise_seed", "", "steps", "cfg", "sampler_name", "scheduler"),
        *("start_at_step", "end_at_step", ""),
    ),
    "CLIPTextEncode": ("text",),
    "CLIPSetLastLayer": ("stop_at_clip_layer",),
    "EmptyLatentImage": ("width", "height", "batch_size"),
    "CheckpointLoaderSimple": ("ckpt_name",),
    "LoraLoader": ("lora_name", "strength_model", "strength_clip"),
    "LoraLoaderModelOnly": ("lora_name", "strength_model"),
    "VAELoader": ("vae_name",),
}
SAMPLERS = ("KSampler", "KSamplerAdvanced", "SamplerCustomAdvanced", "SamplerCustom")
NUMBERS = {"seed": "seed", "noise_seed": "seed", "steps": "steps", "cfg": "cfg"}
LATENTS = ("EmptyLatentImage", "EmptySD3LatentImage")


@dataclass
class Graph:
    """A graph's nodes by their ids, and what reading it found."""

    nodes: Mapping[str, Node]
    values: dict[str, object] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    def behind(self, node: Node, name: str) -> Node:
        """The node that an input comes from; an empty one if it comes from none."""
        link = _inputs(node).get(name)
        if isinstance(link, list) and link and isinstance(link[0], str | int):
            return self.nodes.get(str(link[0]), {})
        return {}

    def value(self, node: Node, name: str) -> object:
        """What an input holds: itself, or the value of the simple node that it comes from."""
        for _ in range(8):  # such nodes stand in a row; more is a ring
            held = _inputs(node).get(name)
            if not isinstance(held, list):
                return held
            node = self.behind(node, name)
            names = ("value", "text", "string", "seed", "noise_seed", "int", "float")
            name = next((n for n in names if n in _inputs(node)), "")
        return None

    def chain(self, node: Node, name: str) -> Iterator[Node]:
        """The nodes behind an input, each followed by its input of the same sort."""
        passed: set[int] = set()
        node = self.behind(node, name)
        while node and id(node) not in passed:
            passed.add(id(node))
            yield node
            names = (name, "model", "clip", "conditioning", "conditioning_1", "samples")
            node = next((n for n in (self.behind(node, key) for key in names) if n), {})


def read(graph: object) -> Graph:
    """What a graph, in either form, asks for. ValueError if it has no sampler that is known."""
    found = Graph(_run(graph))
    if len(found.nodes) > NODES_MAX:
        raise ValueError(f"a graph of {len(found.nodes):,} nodes; at most {NODES_MAX:,} are read")
    samplers = [node for node in found.nodes.values() if node.get("class_type") in SAMPLERS]
    if not samplers:
        raise ValueError(f"no node of its graph is one of {', '.join(SAMPLERS)}")
    first = next((node for node in samplers if _starts(found, node)), samplers[0])
    if len(samplers) > 1:
        found.remarks.append(f"its graph has {len(samplers)} samplers; only the first is read")
    _sampling(found, first)
    guider = found.behind(first, "guider") or first
    _prompts(found, guider)
    _model(found, guider)
    return found


def _run(graph: object) -> dict[str, Node]:
    """The graph as it was run; made from the screen's form if it has that one. ValueError."""
    if not isinstance(graph, dict):
        raise ValueError("its graph is not an object")
    listed = graph.get("nodes")
    if not isinstance(listed, list):
        return {str(key): node for key, node in graph.items() if isinstance(node, dict)}
    links = graph.get("links")
    sources: dict[object, str] = {
        link[0]: str(link[1])
        for link in (links if isinstance(links, list) else [])
        if isinstance(link, list) and len(link) > 1 and isinstance(link[0], str | int)
    }
    # Modes 2 and 4 are nodes that were switched off.
    nodes = [n for n in listed if isinstance(n, dict) and n.get("mode") not in (2, 4)]
    return {str(node.get("id")): _as_run(node, sources) for node in nodes}


def _as_run(node: Node, sources: Mapping[object, str]) -> Node:
    """One node of the screen's form in the other."""
    kind, held, slots = node.get("type"), node.get("widgets_values"), node.get("inputs")
    names = WIDGETS.get(kind, ()) if isinstance(kind, str) else ()
    values = held if isinstance(held, list) else []
    inputs: dict[str, object] = {n: v for n, v in zip(names, values, strict=False) if n}
    for slot in slots if isinstance(slots, list) else []:
        link = slot.get("link") if isinstance(slot, dict) else None
        if isinstance(link, str | int) and link in sources:
            inputs[str(slot.get("name"))] = [sources[link], 0]
    return {"class_type": kind, "inputs": inputs}


def _starts(graph: Graph, node: Node) -> bool:
    """Whether a sampler begins with noise alone."""
    return graph.behind(node, "latent_image").get("class_type") in LATENTS


def _sampling(graph: Graph, node: Node) -> None:
    """How a sampler's node draws: its seed, steps, size."""
    custom = [graph.behind(node, name) for name in ("noise", "sampler", "sigmas", "guider")]
    for part in (node, *custom):
        for name, wanted in NUMBERS.items():
            _keep(graph, wanted, graph.value(part, name))
        _keep(graph, "sampler", graph.value(part, "sampler_name"))
        _keep(graph, "schedule", graph.value(part, "scheduler"))
        denoise = graph.value(part, "denoise")
        if isinstance(denoise, int | float) and denoise != 1:
            graph.remarks.append(f"denoise {denoise} is not carried over")
    if graph.value(node, "start_at_step"):
        graph.remarks.append("it began at a later step, which is not carried over")
    latents = [*graph.chain(node, "latent_image")]
    empty = next((one for one in latents if one.get("class_type") in LATENTS), None)
    if empty is None:
        graph.remarks.append("it began with a picture, which is not carried over")
        return
    _keep(graph, "width", graph.value(empty, "width"))
    _keep(graph, "height", graph.value(empty, "height"))
    batch = graph.value(empty, "batch_size")
    if isinstance(batch, int) and batch > 1:
        graph.remarks.append(f"it was one of {batch} drawn together; the first of them is drawn")


def _prompts(graph: Graph, node: Node) -> None:
    """What a sampler's node was told to draw and not to draw."""
    for names, wanted in ((("positive", "conditioning"), "prompt"), (("negative",), "negative")):
        chains = [graph.chain(node, name) for name in names]
        passed = [one for chain in chains for one in chain]
        texts = ((one, _text(graph, one)) for one in passed)
        nothing: tuple[Node, str | None] = ({}, None)
        source, text = next((pair for pair in texts if pair[1] is not None), nothing)
        _keep(graph, wanted, text)
        if text is None and passed:
            graph.remarks.append(f"the {wanted} comes from a node that is not known")
        for one in passed[: next((i for i, p in enumerate(passed) if p is source), None)]:
            kind = shown(one.get("class_type"))
            graph.remarks.append(f"the node {kind} of its {wanted} is not carried over")
        for one in graph.chain(source, "clip"):
            layer = graph.value(one, "stop_at_clip_layer")
            if isinstance(layer, int) and layer < -1:
                _keep(graph, "clip_skip", -layer)


def _text(graph: Graph, node: Node) -> str | None:
    """The text that a node encodes, if it does."""
    if node.get("class_type") == "ConditioningZeroOut":
        graph.remarks.append("a prompt was zeroed, which is not carried over; it is left empty")
        return ""
    for name in ("text", "text_g", "text_l"):
        text = graph.value(node, name)
        if isinstance(text, str):
            return text
    return None


def _model(graph: Graph, node: Node) -> None:
    """The model, LoRAs and VAE behind a sampler's node."""
    loras: list[object] = []
    for one in graph.chain(node, "model"):
        name, strength = graph.value(one, "lora_name"), graph.value(one, "strength_model")
        own = graph.value(one, "ckpt_name") or graph.value(one, "unet_name")
        if isinstance(name, str):
            text = graph.value(one, "strength_clip")
            of_text = 0.0 if text is None else text  # a loader for the model alone
            loras.append({"name": name, "unet": strength, "text": of_text})
        elif own is not None:
            _keep(graph, "model", own)
        elif one.get("class_type"):
            kind = shown(one["class_type"])
            graph.remarks.append(f"the node {kind} of its model is not carried over")
    if loras:
        graph.values["loras"] = loras[::-1]
    vaes = [graph.value(one, "vae_name") for one in graph.nodes.values()]
    _keep(graph, "vae", next((name for name in vaes if isinstance(name, str)), None))


def _keep(graph: Graph, name: str, value: object) -> None:
    """Note a value, unless there is none or one was found before."""
    if value is not None:
        graph.values.setdefault(name, value)


def _inputs(node: Node) -> Mapping[str, object]:
    inputs = node.get("inputs")
    return inputs if isinstance(inputs, dict) else {}
