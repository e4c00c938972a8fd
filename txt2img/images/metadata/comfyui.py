"""ComfyUI's metadata: the graph of nodes that drew a picture, followed back from its sampler.

`prompt` holds the graph as it ran, `workflow` as it was on the screen. Nothing of it is run: a few
kinds of nodes are known by name, and their inputs are followed, each node once.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

from txt2img.images.metadata import comfyui_control, comfyui_image, comfyui_sampling
from txt2img.images.metadata.comfyui_sampling import (
    MODEL_NODES,
    sampling_notes,
    sampling_values,
)
from txt2img.images.metadata.parsed import ParsedMetadata, file_stem, list_in, python_json, table_in
from txt2img.request.a1111_units import Unit
from txt2img.request.adapters import strip_embedding_prefixes
from txt2img.system.text import shown

NODES_MAX = 10_000
LINKS_MAX = 8  # simple nodes in a row
Node = Mapping[str, object]  # of the graph as it ran: class_type, inputs

# The widgets of a node on the screen, in their order; "" is one that decides nothing.
WIDGETS = {
    "KSampler": ("seed", "", "steps", "cfg", "sampler_name", "scheduler", "denoise"),
    "KSamplerAdvanced": (
        *("add_noise", "noise_seed", "", "steps", "cfg", "sampler_name", "scheduler"),
        *("start_at_step", "end_at_step", ""),
    ),
    "SamplerCustom": ("add_noise", "noise_seed", "", "cfg"),
    "KSamplerSelect": ("sampler_name",),
    "SDTurboScheduler": ("steps", "denoise"),
    "BasicScheduler": ("scheduler", "steps", "denoise"),
    "RandomNoise": ("noise_seed", ""),
    "CFGGuider": ("cfg",),
    "UNETLoader": ("unet_name", ""),
    "EmptySD3LatentImage": ("width", "height", "batch_size"),
    "CLIPTextEncode": ("text",),
    "CLIPSetLastLayer": ("stop_at_clip_layer",),
    "EmptyLatentImage": ("width", "height", "batch_size"),
    "CheckpointLoaderSimple": ("ckpt_name",),
    "LoraLoader": ("lora_name", "strength_model", "strength_clip"),
    "LoraLoaderModelOnly": ("lora_name", "strength_model"),
    "VAELoader": ("vae_name",),
    **comfyui_image.WIDGETS,
    **comfyui_sampling.WIDGETS,
    **comfyui_control.WIDGETS,
}
SAMPLERS = ("KSampler", "KSamplerAdvanced", "SamplerCustomAdvanced", "SamplerCustom")
FIELDS = {
    "seed": "seed",
    "noise_seed": "seed",
    "steps": "steps",
    "cfg": "cfg",
    "sampler_name": "sampler",
    "scheduler": "schedule",
}
LATENTS = ("EmptyLatentImage", "EmptySD3LatentImage")
VALUES = ("value", "text", "string", "seed", "noise_seed", "int", "float")  # of a simple node
CONDITIONINGS = ("conditioning", "conditioning_1", "conditioning_to")
UPSTREAM = ("model", *CONDITIONINGS, "clip", "samples")
PICTURE_LATENTS = (*comfyui_image.ENCODERS, "LoadLatent")


def read(texts: Mapping[str, str]) -> ParsedMetadata | None:
    """The metadata of either form. ValueError if its graph has no known sampler."""
    for key in ("prompt", "workflow"):
        if texts.get(key, "").startswith("{"):
            graph = parse_graph(python_json(texts[key]))
            words: list[str] = []
            for name in ("prompt", "negative"):
                if isinstance(text := graph.values.get(name), str):
                    graph.values[name], tokens = strip_embedding_prefixes(text)
                    words += tokens
            if words:
                graph.values["embeddings"] = [{"token": word} for word in dict.fromkeys(words)]
            return ParsedMetadata({**graph.values, "compat": "comfyui"}, graph.notes)
    return None


@dataclass
class Graph:
    """A graph's nodes by their ids, and the values that following it gives."""

    nodes: Mapping[str, Node]
    values: dict[str, object] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    units: list[Unit] = field(default_factory=list)

    def node_behind(self, node: Node, name: str) -> Node:
        """The node that an input is linked to; an empty one if there is none."""
        link = table_in(node, "inputs").get(name)
        if isinstance(link, list) and link and isinstance(link[0], str | int):
            return self.nodes.get(str(link[0]), {})
        return {}

    def saved(self) -> list[Node]:
        """The nodes that a saved picture comes from, or a previewed one; all if there is none."""
        for word in ("Save", "Preview"):
            nodes = [n for n in self.nodes.values() if word in str(n.get("class_type"))]
            if nodes:
                break
        else:
            return [*self.nodes.values()]
        reached = {id(node) for node in nodes}
        for node in nodes:  # which grows
            for name in table_in(node, "inputs"):
                behind = self.node_behind(node, name)
                if behind and id(behind) not in reached:
                    reached.add(id(behind))
                    nodes.append(behind)
        return [node for node in self.nodes.values() if id(node) in reached]

    def value(self, node: Node, name: str) -> object:
        """An input's value: its own, or that of the simple node it is linked to."""
        for _ in range(LINKS_MAX):  # more is a ring
            value = table_in(node, "inputs").get(name)
            if not isinstance(value, list):
                return value
            node = self.node_behind(node, name)
            name = next((n for n in VALUES if n in table_in(node, "inputs")), "")
        return None

    def chain(self, node: Node, name: str) -> Iterator[Node]:
        """The nodes behind an input, each followed by its own input of the same sort."""
        visited: set[int] = set()
        node = self.node_behind(node, name)
        while node and id(node) not in visited:
            visited.add(id(node))
            yield node
            behind = (self.node_behind(node, key) for key in (name, *UPSTREAM))
            node = next((n for n in behind if n), {})

    def add(self, name: str, value: object) -> None:
        """Set a field, unless there is no value or it has one."""
        if value is not None:
            self.values.setdefault(name, value)


def parse_graph(value: object) -> Graph:
    """A graph in either form, followed from its first sampler. ValueError if none is known."""
    graph = Graph(_nodes(value))
    if len(graph.nodes) > NODES_MAX:
        raise ValueError(f"a graph of {len(graph.nodes):,} nodes; at most {NODES_MAX:,} are read")
    samplers = [node for node in graph.saved() if node.get("class_type") in SAMPLERS]
    if not samplers:
        samplers = [node for node in graph.nodes.values() if node.get("class_type") in SAMPLERS]
    if not samplers:
        raise ValueError(f"no node of its graph is one of {', '.join(SAMPLERS)}")
    first = next(  # that begins with noise alone
        (n for n in samplers if graph.node_behind(n, "latent_image").get("class_type") in LATENTS),
        samplers[0],
    )
    if not _add_refiner(graph, first, samplers) and len(samplers) > 1:
        graph.notes.append(f"its graph has {len(samplers)} samplers; only the first is read")
    _add_sampling(graph, first)
    _add_start(graph, first)
    guider = graph.node_behind(first, "guider") or first
    _add_prompts(graph, guider)
    _add_model(graph, guider)
    graph.values |= comfyui_control.fields_of(graph)
    return graph


def _add_refiner(graph: Graph, base: Node, samplers: list[Node]) -> bool:
    """Add the model of a second sampler that takes over from the first one's steps."""
    if len(samplers) != 2:
        return False
    [other] = [node for node in samplers if node is not base] or [{}]
    steps, end = graph.value(base, "steps"), graph.value(base, "end_at_step")
    model = next((m for n in graph.chain(other, "model") if (m := graph.value(n, "ckpt_name"))), "")
    if (
        graph.node_behind(other, "latent_image") is not base
        or not (isinstance(steps, int) and isinstance(end, int) and 0 < end < steps)
        or [graph.value(other, name) for name in ("steps", "start_at_step")] != [steps, end]
        or graph.value(other, "add_noise") != "disable"
        or not model
    ):
        return False
    graph.values["refiner"] = {"name": file_stem(model)}
    graph.values["refiner_switch"] = end / steps
    return True


def _nodes(value: object) -> dict[str, Node]:
    """The nodes as they ran, converted from the screen's form if need be. ValueError."""
    if not isinstance(value, dict):
        raise ValueError("its graph is not an object")
    if not isinstance(value.get("nodes"), list):
        return {str(key): node for key, node in value.items() if isinstance(node, dict)}
    sources: dict[object, str] = {
        link[0]: str(link[1])
        for link in list_in(value, "links")
        if isinstance(link, list) and len(link) > 1 and isinstance(link[0], str | int)
    }
    # Modes 2 and 4 are nodes that are switched off.
    listed = [n for n in value["nodes"] if isinstance(n, dict) and n.get("mode") not in (2, 4)]
    return {str(node.get("id")): _from_screen(node, sources) for node in listed}


def _from_screen(node: Node, sources: Mapping[object, str]) -> Node:
    """A node of the screen's form as it would run."""
    kind = node.get("type")
    names = WIDGETS.get(kind, ()) if isinstance(kind, str) else ()
    values = list_in(node, "widgets_values")
    inputs: dict[str, object] = {n: v for n, v in zip(names, values, strict=False) if n}
    for slot in list_in(node, "inputs"):
        link = slot.get("link") if isinstance(slot, dict) else None
        if isinstance(slot, dict) and isinstance(link, str | int) and link in sources:
            inputs[str(slot.get("name"))] = [sources[link], 0]
    unnamed = bool(values) and not names
    return {"class_type": kind, "inputs": inputs, "unnamed": unnamed}


def _add_sampling(graph: Graph, node: Node) -> None:
    """The seed, steps, scale, sampler and schedule of a sampler's node or of its parts."""
    parts = [graph.node_behind(node, name) for name in ("noise", "sampler", "sigmas", "guider")]
    for part in (node, *parts):
        for name, field_name in FIELDS.items():
            graph.add(field_name, graph.value(part, name))
        value = partial(graph.value, part)
        for field_name, field_value in sampling_values(part.get("class_type"), value).items():
            graph.add(field_name, field_value)
        graph.notes.extend(sampling_notes(part.get("class_type"), value))
        if part.get("unnamed"):
            kind = shown(part.get("class_type"))
            graph.notes.append(f"the settings of the node {kind} are not known")


def _add_strength(graph: Graph, node: Node) -> None:
    """How much of a picture is drawn anew: by the denoise of a sampler or its schedule, or steps.

    ComfyUI draws all `steps` of a longer schedule; those of an advanced sampler are its last ones.
    """
    steps, start = graph.values.get("steps"), graph.value(node, "start_at_step")
    if isinstance(steps, int) and isinstance(start, int) and 0 < start < steps:
        drawn = steps - start
        strength = drawn / steps
        while int(drawn / strength) < steps:
            strength = math.nextafter(strength, 0)
        graph.values |= {"steps": drawn, "strength": strength}
        return
    denoise = _denoise(graph, node)
    graph.add("strength", 1.0 if denoise is None else denoise)


def _denoise(graph: Graph, node: Node) -> object:
    """The denoise of a sampler's node, or of its schedule's."""
    parts = (node, graph.node_behind(node, "sigmas"))
    return next((d for part in parts if (d := graph.value(part, "denoise")) is not None), None)


def _add_start(graph: Graph, node: Node) -> None:
    """What a sampler's node starts from: an empty latent's size, or a picture and its strength."""
    latents = [*graph.chain(node, "latent_image")]
    encoder = next((n for n in latents if n.get("class_type") in comfyui_image.ENCODERS), None)
    if encoder is not None and comfyui_image.add_picture(graph, encoder, latents):
        _add_strength(graph, node)
        return
    denoise = _denoise(graph, node)
    if isinstance(denoise, int | float) and denoise != 1:
        graph.notes.append(f"denoise {denoise} is not carried over")
    if graph.value(node, "start_at_step"):
        graph.notes.append("it began at a later step, which is not carried over")
    empty = next((one for one in latents if one.get("class_type") in LATENTS), None)
    if empty is None:
        kind = str(latents[-1].get("class_type")) if latents else ""
        if kind in PICTURE_LATENTS or not kind:
            graph.notes.append("it began with a picture, which is not carried over")
        else:
            graph.notes.append(f"the node {shown(kind)} of its latent is not known")
        return
    graph.add("width", graph.value(empty, "width"))
    graph.add("height", graph.value(empty, "height"))
    batch = graph.value(empty, "batch_size")
    if isinstance(batch, int) and batch > 1:
        graph.notes.append(f"it was one of {batch} drawn together; the first of them is drawn")


def _add_prompts(graph: Graph, node: Node) -> None:
    """The prompts of a sampler's node or guider, and their clip skip."""
    if graph.node_behind(node, "cond2"):
        graph.notes.append("the second prompt of its guider, cond2, is not carried over")
    for names, field_name in (
        (("positive", "conditioning", "cond1"), "prompt"),
        (("negative",), "negative"),
    ):
        passed: list[Node] = []
        text: str | None = None
        for one in (one for name in names for one in graph.chain(node, name)):
            passed.append(one)
            if (text := _text(graph, one)) is not None:
                break
        graph.add(field_name, text)
        if text is None and passed:
            graph.notes.append(f"the {field_name} comes from a node that is not known")
        for one in passed if text is None else passed[:-1]:
            if comfyui_control.add_control(graph, one, field_name == "prompt"):
                continue
            kind = shown(one.get("class_type"))
            graph.notes.append(f"the node {kind} of its {field_name} is not carried over")
        for one in graph.chain(passed[-1], "clip") if text is not None else ():
            layer = graph.value(one, "stop_at_clip_layer")
            if isinstance(layer, int) and layer < -1:
                graph.add("clip_skip", -layer)


def _text(graph: Graph, node: Node) -> str | None:
    """The text that a node encodes, if it does."""
    if node.get("class_type") == "ConditioningZeroOut":
        graph.notes.append("a prompt was zeroed, which is not carried over; it is left empty")
        return ""
    if any(graph.node_behind(node, name) for name in CONDITIONINGS):
        return None  # its own text is something else: a box's label
    texts = [graph.value(node, name) for name in ("text_g", "text_l")]
    if None not in texts and texts[0] != texts[1]:
        graph.notes.append(f"text_l {shown(texts[1], 40)} is not carried over")
    for name in ("text", "text_g", "text_l"):
        text = graph.value(node, name)
        if isinstance(text, str):
            return text
    return None


def _add_model(graph: Graph, node: Node) -> None:
    """The model, LoRAs and VAE behind a sampler's node or guider."""
    loras: list[object] = []
    for one in graph.chain(node, "model"):
        lora, strength = graph.value(one, "lora_name"), graph.value(one, "strength_model")
        model = graph.value(one, "ckpt_name") or graph.value(one, "unet_name")
        if isinstance(lora, str):
            # A loader for the U-Net alone has no strength_clip.
            text = graph.value(one, "strength_clip") or 0.0
            loras.append({"name": lora, "unet": strength, "text": text})
        elif model is not None:
            graph.add("model", model)
        elif (method := MODEL_NODES.get(str(one.get("class_type")))) is not None:
            graph.add(method[0], method[1](partial(graph.value, one)))
        elif one.get("class_type") and not comfyui_control.add_adapter(graph, one):
            kind = shown(one["class_type"])
            graph.notes.append(f"the node {kind} of its model is not carried over")
    if loras:
        graph.values["loras"] = loras[::-1]
    vaes = [graph.value(one, "vae_name") for one in graph.nodes.values()]
    graph.add("vae", next((name for name in vaes if isinstance(name, str)), None))
