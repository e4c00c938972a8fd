"""The picture that a graph of ComfyUI begins from: LoadImage → VAEEncode → a sampler's latent."""

from collections.abc import Mapping
from typing import Protocol

from txt2img.system.text import shown

LOADERS = ("LoadImage", "LoadImageOutput", "LoadImageMask")
ENCODERS = ("VAEEncode", "VAEEncodeTiled", "VAEEncodeForInpaint")
SCALES = ("ImageScale", "ImageScaleToTotalPixels", "ImageScaleBy", "ImageResizeKJ")
PIXELS = ("pixels", "image", "images", "mask")  # inputs that lead back to a loader
WIDGETS = {
    "LoadImage": ("image", ""),
    "LoadImageOutput": ("image", ""),
    "LoadImageMask": ("image", "channel", ""),
    "VAEEncodeForInpaint": ("grow_mask_by",),
    "ImageScale": ("upscale_method", "width", "height", "crop"),
    "ImageToMask": ("channel",),
    "GrowMask": ("expand", "tapered_corners"),
    "FeatherMask": ("left", "top", "right", "bottom"),
}
LINKS_MAX = 32  # nodes between an encoder and its loader
Node = Mapping[str, object]


class Graph(Protocol):
    """What is needed of a graph."""

    notes: list[str]

    def node_behind(self, node: Node, name: str) -> Node:
        """The node that an input is linked to."""

    def value(self, node: Node, name: str) -> object:
        """An input's value."""

    def add(self, name: str, value: object) -> None:
        """Set a field."""


def add_picture(graph: Graph, encoder: Node, latents: list[Node]) -> bool:
    """Add the picture that an encoder reads, its size and mask. Returns whether it is known."""
    loader = _loader(graph, encoder, "pixels", "picture")
    name = graph.value(loader, "image")
    if not isinstance(name, str):
        return False
    graph.add("image", {"name": name})
    masked = next((n for n in latents if graph.node_behind(n, "mask")), None)
    if masked is not None:
        _add_mask(graph, masked, loader)
    grown = graph.value(encoder, "grow_mask_by")
    if encoder.get("class_type") == "VAEEncodeForInpaint" and grown != 0:
        graph.notes.append(f"grow_mask_by {shown(grown)} is not carried over")
    return True


def _add_mask(graph: Graph, node: Node, picture: Node) -> None:
    """Add the mask of a latent: another picture, or where the picture itself is transparent."""
    loader = _loader(graph, node, "mask", "mask")
    name = graph.value(loader, "image")
    if not isinstance(name, str):
        return
    if loader is not picture:
        graph.add("mask", {"name": name})
    if loader is not picture and "alpha" in (graph.value(loader, "channel"), None):
        graph.notes.append("its mask is a picture's alpha; here it is where the picture is white")


def _loader(graph: Graph, node: Node, name: str, kind_of_picture: str) -> Node:
    """The node that loads the picture behind an input; an empty one if none is known."""
    for _ in range(LINKS_MAX):
        node = graph.node_behind(node, name)
        kind = str(node.get("class_type", ""))
        if kind in LOADERS:
            return node
        name = next((n for n in PIXELS if graph.node_behind(node, n)), "")
        if kind == "InvertMask":
            graph.add("mask_invert", True)
        elif kind in SCALES:
            for side in ("width", "height"):
                graph.add(side, graph.value(node, side))
            graph.add("resize", "crop" if graph.value(node, "crop") == "center" else "stretch")
        elif node and kind != "ImageToMask":
            graph.notes.append(
                f"the node {shown(kind)} of its {kind_of_picture} is not carried over"
            )
        if not name:
            break
    return {}
