"""Open a U-Net or text encoders that replace a model's own.

Supported are the original layout, ComfyUI's, diffusers' and transformers', and OpenCLIP's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from txt2img.errors import BadRequest, MissingWeights, UnknownLayout
from txt2img.models.configs import UNetConfig
from txt2img.system import files
from txt2img.system.text import shown
from txt2img.weights.distilled import for_lcm, from_name
from txt2img.weights.families import Family, check_family, family_name
from txt2img.weights.formats import safetensors_file
from txt2img.weights.formats.safetensors_file import Header, TensorRef
from txt2img.weights.layouts import detect, diffusers_config, key_maps
from txt2img.weights.layouts.components import (
    STEM,
    Component,
    component,
    config_folder,
    first_names,
    network_path,
    text_component,
    text_widths,
)
from txt2img.weights.layouts.diffusers_config import TEXT_ENCODERS

# Prefixes of a U-Net's names: of a whole checkpoint, ComfyUI, diffusers, and none.
PREFIXES = ("model.diffusion_model.", "diffusion_model.", "unet.", "")


@dataclass(frozen=True)
class UNetOverride:
    """A U-Net's name and tensors, and the family of the model with it."""

    name: str
    family: Family
    component: Component


def open_unet(name: str, family_before: Family, prediction: str | None) -> UNetOverride:
    """Open the U-Net at a path for a model of the family `family_before`, without reading weights.

    Raises ModelNotFound, BadFile, UnknownLayout if the model's other components do not fit it.
    """
    path = network_path("U-Net", name)
    home = path.parent if path.name == "unet" else path
    title = home.resolve().name.removesuffix(".safetensors").removesuffix(safetensors_file.GGUF)
    like, pooled = family_before.unet, family_before.clip_texts[-1].projection
    config: UNetConfig | None = None
    if path.is_dir():
        inner = config_folder("U-Net", path, "unet")
        config = diffusers_config.unet_config(files.read_json(inner / "config.json"), pooled)
        header = safetensors_file.component(inner, STEM)
    else:
        header = safetensors_file.header(path)
    prefix = next((prefix for prefix in PREFIXES if _has_unet(header.tensors, prefix)), None)
    if prefix is None:
        some = first_names(list(header.tensors))
        raise UnknownLayout(f"{shown(title)} is no U-Net: it contains {some}")
    tensors = key_maps.strip_prefix(key_maps.without_leftovers(header.tensors), prefix)
    if any(name.startswith("input_blocks.") for name in tensors):
        config = detect.unet_config(tensors, like, pooled)
        table = key_maps.unet_from_ldm(config)
    else:
        config, table = config or _config_like(tensors, like), {}
    family = _with_network(
        family_before, config, title, _prediction(header, tensors, family_before, prediction)
    )
    return UNetOverride(title, family, component(tensors, table, prefix))


def open_text_encoders(names: Sequence[str], family_before: Family) -> dict[str, Component]:
    """Open the text encoders at paths, each for the component of its width.

    Raises ModelNotFound, BadFile, UnknownLayout; MissingWeights if the model has other widths,
    BadRequest if a component is there twice.
    """
    texts = dict(zip(TEXT_ENCODERS, family_before.clip_texts, strict=False))
    components: dict[str, Component] = {}
    for name in names:
        path = network_path("text encoder", name)
        tensors = (
            safetensors_file.component(path, "model").tensors
            if path.is_dir()
            else safetensors_file.header(path).tensors
        )
        widths = text_widths(tensors)
        if not widths:
            some = first_names(list(tensors))
            raise UnknownLayout(f"{shown(path.name)} is no CLIP text model: {some}")
        fitting = [
            (role, prefix, text)
            for prefix, width in widths.items()
            for role, text in texts.items()
            if text.width == width
        ]
        if not fitting:
            got = " and ".join(map(str, widths.values()))
            needed = " and ".join(str(text.width) for text in family_before.texts)
            raise MissingWeights(f"{path.name} is {got} wide; this model's text is {needed} wide")
        for role, prefix, text in fitting:
            if role in components:
                raise BadRequest(f"--text-encoder: two files for {role}; give one of them")
            components[role] = text_component(tensors, prefix, text)
    return components


def _has_unet(tensors: Mapping[str, TensorRef], prefix: str) -> bool:
    blocks = (f"{prefix}input_blocks.", f"{prefix}down_blocks.")
    return any(name.startswith(blocks) for name in tensors)


def _config_like(tensors: Mapping[str, TensorRef], own: UNetConfig) -> UNetConfig:
    """The model's own config, with the file's input channels and guidance embedding."""
    shape = tensors["conv_in.weight"].shape if "conv_in.weight" in tensors else ()
    if len(shape) != 4 or not shape[1]:
        raise UnknownLayout("a U-Net without a usable conv_in.weight: the file is incomplete")
    scale = tensors.get("time_embedding.cond_proj.weight")
    width = scale.shape[1] if scale is not None and len(scale.shape) == 2 else 0
    return replace(own, in_channels=shape[1], scale_width=width)


def _prediction(
    header: Header, unet: Mapping[str, TensorRef], own: Family, prediction: str | None
) -> str:
    """The U-Net's prediction type: as given, else as detected in the file, else the model's."""
    if prediction is not None:
        return prediction
    markers = {name: header.tensors[name] for name in detect.MARKERS if name in header.tensors}
    tensors = {f"{key_maps.UNET}.{name}": ref for name, ref in unet.items()}
    return detect.prediction_of(replace(header, tensors=tensors | markers), own)


def _with_network(
    family_before: Family, network: UNetConfig, title: str, prediction: str
) -> Family:
    """The family with another U-Net. Raises UnknownLayout if the two do not fit."""
    defaults = (
        for_lcm(family_before.defaults)
        if network.scale_width
        else from_name(family_before.defaults, title)
    )
    return check_family(
        replace(
            family_before,
            name=family_name(network),
            network=network,
            prediction=prediction,
            defaults=defaults,
        )
    )
