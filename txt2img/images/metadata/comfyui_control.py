"""ControlNets, T2I-Adapters and IP-Adapters of ComfyUI's graphs, as units of A1111.

Their pictures are named by LoadImage; nodes of comfyui_controlnet_aux make maps of them.
"""

from typing import Protocol

from txt2img.errors import BadRequest
from txt2img.images.metadata import comfyui_image
from txt2img.images.metadata.comfyui_image import LINKS_MAX, LOADERS, PIXELS, Node
from txt2img.request.a1111_units import Unit, unit_fields
from txt2img.request.input_image import UNNAMED
from txt2img.request.preprocess import Preprocessor
from txt2img.system.text import shown

APPLY = ("ControlNetApply", "ControlNetApplyAdvanced", "ControlNetApplySD3")
ADAPTERS = (
    *("IPAdapter", "IPAdapterApply", "IPAdapterAdvanced", "IPAdapterBatch"),
    *("IPAdapterModelLoader", "IPAdapterUnifiedLoader", "IPAdapterUnifiedLoaderCommunity"),
)
# Inputs of a node that makes a map which are the preprocessor's numbers.
NUMBERS = {
    "CannyEdgePreprocessor": ("low_threshold", "high_threshold"),
    "BinaryPreprocessor": ("bin_threshold",),
    "LineartStandardPreprocessor": ("guassian_sigma", "intensity_threshold"),
    "Scribble_XDoG_Preprocessor": ("threshold",),
    "ShufflePreprocessor": ("seed",),
}
WIDGETS = {
    "ControlNetApply": ("strength",),
    "ControlNetApplyAdvanced": ("strength", "start_percent", "end_percent"),
    "ControlNetApplySD3": ("strength", "start_percent", "end_percent"),
    "ControlNetLoader": ("control_net_name",),
    "DiffControlNetLoader": ("control_net_name",),
    "SetUnionControlNetType": ("type",),
    "CannyEdgePreprocessor": ("low_threshold", "high_threshold", "resolution"),
    "IPAdapterModelLoader": ("ipadapter_file",),
    "IPAdapterApply": ("weight", "noise", "weight_type", "start_at", "end_at", ""),
    "IPAdapter": ("weight", "start_at", "end_at", "weight_type"),
    "IPAdapterAdvanced": (
        *("weight", "weight_type", "combine_embeds", "start_at", "end_at", "embeds_scaling"),
    ),
}
# Schedules whose share of the steps is not the share of the model's times that ComfyUI counts.
BY_STEPS = ("normal", "simple", "sgm_uniform", "ddim_uniform")


class Graph(comfyui_image.Graph, Protocol):
    """What is needed of a graph."""

    values: dict[str, object]
    units: list[Unit]


def add_control(graph: Graph, node: Node, is_prompts: bool) -> bool:
    """Add the ControlNet that a node between a prompt and its sampler applies, if it does.

    Such nodes stand between the negative prompt and its sampler too, and count once.
    """
    loader, kind = graph.node_behind(node, "control_net"), None
    if loader.get("class_type") == "SetUnionControlNetType":
        kind, loader = graph.value(loader, "type"), graph.node_behind(loader, "control_net")
    model = graph.value(loader, "control_net_name")
    if node.get("class_type") not in APPLY or not isinstance(model, str):
        return False
    if is_prompts:
        picture, module, numbers = _picture(graph, node)
        unit: dict[str, object] = {
            "model": model,
            "weight": graph.value(node, "strength"),
            "image": {"name": picture},
            "module": module,
            "numbers": numbers,
            "type": None if kind == "auto" else str(kind or "").split("/")[0],
            **_interval(graph, node, "start_percent", "end_percent"),
        }
        graph.units.insert(0, unit)  # the last one applied comes first
    return True


def add_adapter(graph: Graph, node: Node) -> bool:
    """Add the IP-Adapter that a node between a model and its sampler applies, if it does."""
    kind = node.get("class_type")
    if kind not in ADAPTERS:
        return False
    if "Loader" in str(kind):
        return True  # which the adapter's own node leads to
    loader = graph.node_behind(node, "ipadapter")
    unit: dict[str, object] = {
        "module": "ip-adapter",
        "model": graph.value(loader, "ipadapter_file") or graph.value(loader, "preset"),
        "weight": graph.value(node, "weight"),
        "image": {"name": _picture(graph, node)[0]},
        **_interval(graph, node, "start_at", "end_at"),
    }
    if graph.node_behind(node, "attn_mask"):
        graph.notes.append("the mask of its IP-Adapter is not carried over")
    graph.units.insert(0, unit)
    return True


def fields_of(graph: Graph) -> dict[str, object]:
    """The fields of a request that the units give."""
    return unit_fields(graph.units, graph.notes)


def _picture(graph: Graph, node: Node) -> tuple[str, str, list[object]]:
    """The name of the picture behind a node, and the preprocessor between with its numbers."""
    name, module, numbers = "image", "none", list[object]()
    for _ in range(LINKS_MAX):
        node = graph.node_behind(node, name)
        kind = str(node.get("class_type", ""))
        if kind in LOADERS:
            found = graph.value(node, "image")
            return (found if isinstance(found, str) else UNNAMED), module, numbers
        name = next((n for n in PIXELS if graph.node_behind(node, n)), "")
        made = str(graph.value(node, "preprocessor")) if kind == "AIO_Preprocessor" else kind
        if _is_preprocessor(made):
            module, numbers = made, [graph.value(node, n) for n in NUMBERS.get(made, ())]
        elif node and kind not in comfyui_image.SCALES:
            graph.notes.append(f"the node {shown(kind)} of its control is not carried over")
        if not name:
            break
    return UNNAMED, module, numbers


def _is_preprocessor(kind: str) -> bool:
    """Whether a node makes a map; one that is not known here is told where it is read."""
    if kind.endswith("Preprocessor") and kind != "AIO_Preprocessor":
        return True
    try:
        Preprocessor.parse(kind)
    except BadRequest:
        return False
    return kind != "Canny"  # of ComfyUI's own, whose thresholds are others'


def _interval(graph: Graph, node: Node, start: str, end: str) -> dict[str, object]:
    """The share of the steps in which a node's model is on."""
    low, high = graph.value(node, start), graph.value(node, end)
    ends = 0 if low is None else low, 1 if high is None else high
    if ends != (0, 1) and graph.values.get("schedule") not in BY_STEPS:
        graph.notes.append(
            f"{start} and {end} are shares of the model's times, which here are ones of the steps"
        )
    return {"guidance_start": ends[0], "guidance_end": ends[1]}
