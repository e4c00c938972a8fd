"""IP-Adapter files: their kind, config and tensors, without torch."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from txt2img.errors import BadRequest, MissingWeights, UnknownLayout
from txt2img.models.configs import NetworkConfig, UNetConfig
from txt2img.models.control_configs import IPAdapterConfig
from txt2img.system.text import shown
from txt2img.weights.file_kind import check_kind
from txt2img.weights.formats import safetensors_file
from txt2img.weights.layouts import key_maps
from txt2img.weights.layouts.components import Component, Tensors, first_names

# The names of training's own checkpoints → those of published files.
TRAINING: key_maps.Table = {"image_proj_model": "image_proj", "adapter_modules": "ip_adapter"}
KEY = re.compile(r"ip_adapter\.(\d{1,4})\.to_k_ip\.weight")
HEAD_WIDTH = 64  # of the resampler, which no tensor tells
FACE_ID = (
    "{} is an IP-Adapter FaceID: it reads a face's identity by InsightFace, which is not built "
    "in; use IP-Adapter Plus Face, which reads the picture"
)


@dataclass(frozen=True)
class IPAdapterFile:
    """An IP-Adapter that was opened: its config and tensors."""

    path: Path
    config: IPAdapterConfig
    component: Component


def open_ip_adapter(path: Path) -> IPAdapterFile:
    """Open an IP-Adapter's file by its header. BadFile, UnknownLayout, MissingWeights."""
    if path.is_dir():
        raise UnknownLayout(f"{shown(path.name)} is a folder; give an IP-Adapter's .safetensors")
    check_kind(path, "IP-Adapter")
    return IPAdapterFile(path, *ip_adapter_in(safetensors_file.header(path).tensors, path.name))


def ip_adapter_in(tensors: Tensors, name: str) -> tuple[IPAdapterConfig, Component]:
    """The config of an IP-Adapter's tensors, and these under our names.

    UnknownLayout for other files and kinds, MissingWeights for broken ones.
    """
    tensors = key_maps.renamed(tensors, TRAINING)
    if is_face_id(tensors):
        raise UnknownLayout(FACE_ID.format(shown(name)))
    if not any(
        one.startswith("ip_adapter.") and one.endswith(".to_k_ip.weight") for one in tensors
    ):
        some = first_names(list(tensors))
        raise UnknownLayout(f"{shown(name)} is no IP-Adapter for a U-Net: it contains {some}")
    parts = {}
    for theirs, ref in tensors.items():
        fused = theirs.endswith(".to_kv.weight")
        for index, part in enumerate(("to_k", "to_v") if fused else ("to_kv",)):
            parts[theirs.replace("to_kv", part)] = ref.chunk(index, 2) if fused else ref
    config = _config({one: ref.shape for one, ref in parts.items()}, name)
    return config, Component(parts, lambda one: one)


def is_face_id(tensors: Tensors) -> bool:
    """Whether it is an IP-Adapter for a face's identity vector."""
    has_norm = "image_proj.proj.0.weight" in tensors and "image_proj.norm.weight" in tensors
    marks = ("image_proj.perceiver_resampler.", "image_proj.id_")
    return has_norm or any(n.startswith(marks) or n.endswith("_lora.up.weight") for n in tensors)


def _config(shapes: Mapping[str, tuple[int, ...]], name: str) -> IPAdapterConfig:
    """The config that the tensors' shapes tell. MissingWeights."""

    def shape(tensor: str, axes: int) -> tuple[int, ...]:
        got = shapes.get(tensor, ())
        if len(got) != axes or not all(got):
            raise MissingWeights(
                f"{shown(name)} is no whole IP-Adapter: {tensor} is missing or of a wrong shape"
            )
        return got

    layers = sorted(int(match[1]) for match in map(KEY.fullmatch, shapes) if match)
    keys = [shape(f"ip_adapter.{layer}.to_k_ip.weight", 2) for layer in layers]
    widths, cross_dim = tuple(width for width, _ in keys), keys[0][1]
    if "image_proj.proj.weight" in shapes:
        rows, features = shape("image_proj.proj.weight", 2)
        return IPAdapterConfig("base", features, cross_dim, widths, max(rows // cross_dim, 1))
    if "image_proj.proj.3.weight" in shapes:
        features = shape("image_proj.proj.0.weight", 2)[1]
        return IPAdapterConfig("full", features, cross_dim, widths, 0)
    _, tokens, width = shape("image_proj.latents", 3)
    return IPAdapterConfig(
        "plus",
        shape("image_proj.proj_in.weight", 2)[1],
        cross_dim,
        widths,
        tokens,
        width,
        depth=len({n.split(".")[2] for n in shapes if n.startswith("image_proj.layers.")}),
        heads=max(shape("image_proj.layers.0.0.to_q.weight", 2)[0] // HEAD_WIDTH, 1),
        head_width=min(shape("image_proj.layers.0.0.to_q.weight", 2)[0], HEAD_WIDTH),
        mlp=shape("image_proj.layers.0.1.1.weight", 2)[0],
    )


def cross_widths(unet: UNetConfig) -> tuple[int, ...]:
    """The widths of a U-Net's cross-attentions, in an IP-Adapter's order: down, up, middle."""
    levels = [level for level, has in enumerate(unet.attention) if has]
    down = [(level, unet.depths(level, unet.layers)) for level in levels]
    up = [(level, unet.depths(level, unet.layers + 1, up=True)) for level in reversed(levels)]
    last = len(unet.channels) - 1
    middle = [(last, unet.depths(last, 1)[:1])] if unet.middle == "full" else []
    return tuple(
        unet.channels[level] for level, depths in [*down, *up, *middle] for _ in range(sum(depths))
    )


def check_fits(config: IPAdapterConfig, network: NetworkConfig, name: str, family: str) -> None:
    """Raise BadRequest for a model without a U-Net, UnknownLayout for one with another U-Net."""
    if not isinstance(network, UNetConfig):
        raise BadRequest(f"--ip-adapter: {shown(name)} needs a U-Net, which {family} has not")
    if (config.cross_dim, config.widths) != (network.cross_dim, cross_widths(network)):
        other = made_for(config) or "another U-Net"
        raise UnknownLayout(f"{shown(name)} is made for {other}; the model is {family}")


def made_for(config: IPAdapterConfig) -> str:
    """The family that an IP-Adapter was made for; empty if unknown."""
    return MADE_FOR.get((config.cross_dim, len(config.widths)), "")


# By the text's width and the number of cross-attentions.
MADE_FOR = {
    (768, 16): "Stable Diffusion 1",
    (1024, 16): "Stable Diffusion 2",
    (2048, 70): "Stable Diffusion XL",
}
