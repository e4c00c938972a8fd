"""A U-Net or text encoders in place of a model's own, from files that hold little else.

Read are the original layout and ComfyUI's, diffusers' and transformers', and OpenCLIP's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from txt2img.errors import BadRequest, MissingWeights, ModelNotFound, UnknownLayout
from txt2img.models.configs import UNetConfig
from txt2img.system import files
from txt2img.system.text import shown
from txt2img.weights.distilled import by_name, told
from txt2img.weights.families import Family, checked, named
from txt2img.weights.formats import safetensors_file
from txt2img.weights.formats.safetensors_file import Header, TensorRef
from txt2img.weights.layouts import detect, diffusers_config, key_maps
from txt2img.weights.layouts.components import Part, text_part, text_widths
from txt2img.weights.layouts.diffusers_config import TEXTS

STEM = "diffusion_pytorch_model"
# What may stand before a U-Net's names: a whole checkpoint's, ComfyUI's, diffusers', nothing.
PREFIXES = ("model.diffusion_model.", "diffusion_model.", "unet.", "")


@dataclass(frozen=True)
class Found:
    """Parts of a model and the family that it is of with them in place."""

    name: str
    family: Family
    parts: dict[str, Part]  # by component


def open_unet(name: str, own: Family, prediction: str | None) -> Found:
    """The U-Net at a path, for a model of the family `own`; no weights are read.

    Raises ModelNotFound, BadFile, UnknownLayout if the model's other parts do not fit it.
    """
    path = _existing("U-Net", name)
    if path.is_file() and path.stem == STEM and (path.parent / "config.json").is_file():
        path = path.parent
    config: UNetConfig | None = None
    home = path.parent if path.name == "unet" else path
    title = home.resolve().name.removesuffix(".safetensors")
    if path.is_dir():
        inner = path / "unet" if (path / "unet").is_dir() else path
        if not (inner / "config.json").is_file():
            raise UnknownLayout(
                f"{shown(path.name)} is no folder of a U-Net: it has no config.json"
            )
        config = diffusers_config.unet_config(files.read_json(inner / "config.json"), _pooled(own))
        header = safetensors_file.component(inner, STEM)
    else:
        header = safetensors_file.header(path)
    prefix = next((p for p in PREFIXES if _any(header.tensors, p)), None)
    if prefix is None:
        raise UnknownLayout(f"{shown(title)} is no U-Net: it holds {_some(header.tensors)}")
    inside = _below(header.tensors, prefix)
    original = any(key.startswith("input_blocks.") for key in inside)
    if original:
        config = detect.unet_config(inside, own, _pooled(own))
        table = key_maps.unet_from_ldm(config)
    else:
        config, table = config or _like(inside, own.network), {}
    family = _with_network(own, config, title, _prediction(header, inside, own, prediction))
    return Found(title, family, {"unet": _part(inside, table, prefix)})


def open_texts(names: Sequence[str], own: Family) -> dict[str, Part]:
    """The text encoders in files, by the component that each is as wide as; no weights are read.

    Raises ModelNotFound, BadFile, UnknownLayout; MissingWeights if the model reads other widths,
    BadRequest if one is there twice.
    """
    components = dict(zip(TEXTS, own.texts, strict=False))
    made: dict[str, Part] = {}
    for name in names:
        path = _existing("text encoder", name)
        tensors = (
            safetensors_file.component(path, "model").tensors
            if path.is_dir()
            else safetensors_file.header(path).tensors
        )
        widths = text_widths(tensors)
        if not widths:
            raise UnknownLayout(f"{shown(path.name)} is no CLIP text model: {_some(tensors)}")
        fitting = [
            (component, prefix, text)
            for prefix, width in widths.items()
            for component, text in components.items()
            if text.width == width
        ]
        if not fitting:
            got = " and ".join(map(str, widths.values()))
            wanted = " and ".join(str(text.width) for text in own.texts)
            raise MissingWeights(f"{path.name} is {got} wide; this model's text is {wanted} wide")
        for component, prefix, text in fitting:
            if component in made:
                raise BadRequest(f"--text-encoder: two files for {component}; give one of them")
            made[component] = text_part(tensors, prefix, text)
    return made


def _existing(what: str, name: str) -> Path:
    path = Path(name).expanduser()
    if not path.exists():
        raise ModelNotFound(
            f"no {what} {shown(name)}: give a .safetensors file or a diffusers folder"
        )
    return path


def _pooled(own: Family) -> int:
    """How wide the text as a whole is that the model's U-Net is told."""
    return own.texts[-1].projection


def _any(tensors: Mapping[str, TensorRef], prefix: str) -> bool:
    kinds = (f"{prefix}input_blocks.", f"{prefix}down_blocks.")
    return any(name.startswith(kinds) for name in tensors)


def _below(tensors: Mapping[str, TensorRef], prefix: str) -> dict[str, TensorRef]:
    """The U-Net's tensors, without what training and older programs leave beside them."""
    return {
        name.removeprefix(prefix): stored
        for name, stored in tensors.items()
        if name.startswith(prefix) and key_maps.rename(name, key_maps.LEFTOVERS) is not None
    }


def _like(inside: Mapping[str, TensorRef], own: UNetConfig) -> UNetConfig:
    """The model's own shape, but for what it sees beside the latent: a file has no config."""
    shape = inside["conv_in.weight"].shape if "conv_in.weight" in inside else ()
    if len(shape) != 4 or not shape[1]:
        raise UnknownLayout("a U-Net without a usable conv_in.weight: the file is incomplete")
    told = inside.get("time_embedding.cond_proj.weight")
    width = told.shape[1] if told is not None and len(told.shape) == 2 else 0
    return replace(own, in_channels=shape[1], scale_width=width)


def _prediction(
    header: Header, inside: Mapping[str, TensorRef], own: Family, asked: str | None
) -> str:
    """What the U-Net predicts: as asked, as the file says or shows, else as the model's own."""
    if asked is not None:
        return asked
    marks = {name for name in ("v_pred", "ztsnr") if name in header.tensors}
    named = {f"{key_maps.UNET}.{name}": stored for name, stored in inside.items()}
    whole = replace(header, tensors=named | {name: header.tensors[name] for name in marks})
    return detect.prediction_of(whole, own)


def _with_network(own: Family, network: UNetConfig, title: str, prediction: str) -> Family:
    """The family with another U-Net. Raises UnknownLayout if the other parts do not fit it."""
    defaults = told(own.defaults) if network.scale_width else by_name(own.defaults, title)
    return checked(
        replace(
            own,
            name=named(network),
            network=network,
            prediction=prediction,
            defaults=defaults,
        )
    )


def _part(inside: Mapping[str, TensorRef], table: key_maps.Table, prefix: str) -> Part:
    back = key_maps.backwards(table)
    made = key_maps.renamed(inside, table)
    return Part(made, lambda name: f"{prefix}{key_maps.rename(name, back)}")


def _some(tensors: Mapping[str, TensorRef]) -> str:
    return (
        ", ".join(shown(name, safetensors_file.NAME_MAX) for name in list(tensors)[:3]) or "nothing"
    )
