"""Files of ControlNets, without torch: their layout, kind and family.

Layouts are diffusers', the original one, and Control-LoRA's: changes of the base model's weights.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from txt2img.errors import BadRequest, UnknownLayout
from txt2img.models.configs import UNetConfig
from txt2img.models.control_configs import ControlNetConfig, T2IAdapterConfig
from txt2img.request.control import UNION_TYPES
from txt2img.system.files import read_json
from txt2img.system.text import shown
from txt2img.weights.adapters.base_model import TEXT_WIDTHS
from txt2img.weights.families import Family, normalise_depths
from txt2img.weights.file_kind import check_kind, kind_of
from txt2img.weights.formats import safetensors_file
from txt2img.weights.formats.json_values import Config
from txt2img.weights.formats.safetensors_file import TensorRef
from txt2img.weights.layouts import key_maps, t2i_adapter
from txt2img.weights.layouts.components import (
    STEM,
    Component,
    component,
    count_modules,
    first_names,
)
from txt2img.weights.registry.find import model_name

Tensors = Mapping[str, TensorRef]
PREFIX = "control_model."  # of the original layout's names, in some files
LORA = "lora_controlnet"  # the tensor that marks a Control-LoRA
HALVES = (".up", ".down")  # of a Control-LoRA's change
HALF_UNET = ("conv_in.", "time_embedding.", "add_embedding.", "down_blocks.", "mid_block.")
READS_TEXT = ".attn2.to_k."
# Files by the beginning of a tensor's name, and what to say of them.
REFUSED = {
    "lllite_": "a ControlLLLite, which is not supported: use a ControlNet of the same kind",
    "difference": "a difference to a base model, which is not supported: use the whole ControlNet",
    "controlnet_x_embedder.": "a ControlNet for a transformer such as FLUX.1; U-Nets alone have "
    "them here",
    "controlnet_blocks.": "a ControlNet for a transformer such as SD 3; U-Nets alone have them "
    "here",
}


@dataclass(frozen=True)
class ControlFile:
    """A ControlNet's or a T2I-Adapter's file: its config, and its tensors under our names."""

    path: Path
    config: ControlNetConfig | T2IAdapterConfig
    component: Component
    is_lora: bool = False  # of `.up` and `.down`, and whole tensors in place of the base model's


def weights_path(path: Path) -> Path:
    """The weight file of a path, which may be a diffusers folder. UnknownLayout."""
    if not path.is_dir():
        return path
    names = (f"{STEM}.safetensors", f"{STEM}.fp16.safetensors")
    file = next((path / name for name in names if (path / name).is_file()), None)
    if file is None:
        raise UnknownLayout(f"{shown(path)} holds no {names[0]}: it is no ControlNet's folder")
    return file


def open_control(path: Path, family: Family, model: str) -> ControlFile:
    """Open a ControlNet or a T2I-Adapter for a family's models, without reading weights.

    UnknownLayout for other files, or one for another family; BadFile.
    """
    file, base = weights_path(path), family.network
    name = model_name(path) if path.is_dir() else path.name
    stored = safetensors_file.header(file).tensors
    is_adapter = t2i_adapter.is_t2i_adapter(stored)
    if not is_adapter:
        _check_kind(file, name, stored)
    if not isinstance(base, UNetConfig):
        raise BadRequest(f"--control: {shown(name)} needs a U-Net, which {family.name} has not")
    if is_adapter:
        xl = t2i_adapter.is_for_xl(base)
        adapter, part = t2i_adapter.t2i_adapter_in(stored, name, xl)
        t2i_adapter.check_fits(adapter, name, family)
        return ControlFile(file, adapter, part)
    prefix = PREFIX if any(n.startswith(PREFIX) for n in stored) else ""
    tensors = {n.removeprefix(prefix): ref for n, ref in stored.items() if n != LORA}
    is_original = any(n.startswith("input_blocks.") for n in tensors)
    table = original_table(base, tensors) if is_original else {}
    part = component(tensors, table, prefix)
    config = read_json(file.parent / "config.json") if _has_config(file) else {}
    control_config = _control_config(part.tensors, base, config, name, LORA in stored)
    if control_config is None or 2 ** (len(control_config.hint) - 1) != family.vae.factor:
        advice = "give --model" if model == "default" else f"the model is {family.name}"
        other = family_of(stored) or "another model"
        raise UnknownLayout(f"{shown(name)} is made for {other}; {advice}")
    return ControlFile(file, control_config, part, LORA in stored)


def tensors_loaded(file: ControlFile, base: Tensors) -> dict[str, TensorRef]:
    """What is read of a ControlNet; of a Control-LoRA also the half of the base model's U-Net."""
    own = file.component.tensors
    if not file.is_lora:
        return dict(own)
    half = {name: ref for name, ref in base.items() if name.startswith(HALF_UNET)}
    return half | {name: ref for name, ref in own.items() if not name.endswith(HALVES)}


def check_control(path: Path, family: Family, model: str, kind: str = "") -> ControlFile:
    """Raise what loading would for a file that is no ControlNet, or one for another family."""
    control = open_control(path, family, model)
    if kind:
        type_index(control.config, kind, path.name)
    return control


def type_index(config: ControlNetConfig | T2IAdapterConfig, kind: str, name: str) -> int | None:
    """The number of a Union model's type; None for none. BadRequest."""
    if not kind:
        return None
    if isinstance(config, T2IAdapterConfig) or not config.types:
        raise BadRequest(f"--control: {shown(name)} is no Union model, and takes no type {kind}")
    if UNION_TYPES[kind] >= config.types:
        raise BadRequest(
            f"--control: {shown(name)} has no type {kind}; it has {_types_of(config.types)}"
        )
    return UNION_TYPES[kind]


def _types_of(count: int) -> str:
    """The first `count` types of Union models, each by its first name."""
    rows = reversed([*UNION_TYPES.items()])
    first = {index: name for name, index in rows if index < count}
    return ", ".join(first[index] for index in sorted(first))


def family_of(tensors: Tensors) -> str:
    """The family that a ControlNet was made for; empty if unknown."""
    widths = text_widths(tensors)
    known = [TEXT_WIDTHS[width] for width in widths if width in TEXT_WIDTHS]
    added = any(".label_emb." in f".{n}" or ".add_embedding." in f".{n}" for n in tensors)
    return known[0] if known else "Stable Diffusion XL" if added and not widths else ""


def text_widths(tensors: Tensors) -> set[int]:
    """The widths of the text that a ControlNet's cross-attentions read."""
    return {
        ref.shape[1]
        for name, ref in tensors.items()
        if READS_TEXT in name and name.endswith((".weight", ".down")) and len(ref.shape) >= 2
    }


def details(tensors: Tensors) -> dict[str, object]:
    """What a ControlNet's tensors tell of it, for `info`."""
    method = "the model's own half U-Net"
    if LORA in tensors:
        ranks = {ref.shape[0] for name, ref in tensors.items() if name.endswith(".down")}
        method = f"Control-LoRA of rank {max(ranks, default=0)}"
    elif "task_embedding" in tensors:
        count = tensors["task_embedding"].shape[0]
        method = f"Union of {count} types: {_types_of(count)}"
    elif not any(READS_TEXT in name for name in tensors):
        method = "half a U-Net without attention"
    return {"method": method}


def original_table(base: UNetConfig, tensors: Tensors) -> key_maps.Table:
    """The original layout's names of a ControlNet → ours."""
    table = key_maps.unet_from_ldm(base)
    table["middle_block_out.0"] = "controlnet_mid_block"
    # Convolutions at even places, activations between them.
    last = 2 * count_modules(tensors, "input_hint_block.") - 2
    for i in range(0, last + 1, 2):
        place = "conv_in" if i == 0 else "conv_out" if i == last else f"blocks.{i // 2 - 1}"
        table[f"input_hint_block.{i}"] = f"controlnet_cond_embedding.{place}"
    for i in range(len(base.channels) * (base.layers + 1)):
        table[f"zero_convs.{i}.0"] = f"controlnet_down_blocks.{i}"
    return table


def _check_kind(file: Path, name: str, tensors: Tensors) -> None:
    """Raise UnknownLayout for a file that is no ControlNet of a U-Net."""
    for start, what in REFUSED.items():
        if any(tensor.removeprefix(PREFIX).startswith(start) for tensor in tensors):
            raise UnknownLayout(f"{shown(name)} is {what}")
    check_kind(file, "ControlNet")
    if not kind_of(file):
        some = first_names(list(tensors))
        raise UnknownLayout(f"{shown(name)} is unknown, no ControlNet: it contains {some}")


def _has_config(file: Path) -> bool:
    return file.name.startswith(STEM) and (file.parent / "config.json").is_file()


def _control_config(
    tensors: Tensors, base: UNetConfig, config: Config, name: str, is_lora: bool
) -> ControlNetConfig | None:
    """The config of a ControlNet for a base model's U-Net; None if it is for another one."""
    like = replace(base, in_channels=base.out_channels, scale_width=0)
    unet = like if is_lora else _unet_like(tensors, like)
    hint = "controlnet_cond_embedding"
    first, types = tensors.get(f"{hint}.conv_in.weight"), tensors.get("task_embedding")
    fits = text_widths(tensors) <= {base.cross_dim}
    if unet is None or first is None or len(first.shape) != 4 or not fits:
        return None
    strided = (tensors.get(f"{hint}.blocks.{i}.weight") for i in range(1, 16, 2))
    wider = [ref.shape[0] for ref in strided if ref is not None and ref.shape]
    is_shuffle = bool(config.get("global_pool_conditions")) or "shuffle" in name.lower()
    count = types.shape[0] if types is not None and types.shape else 0
    kinds = tensors.get("control_add_embedding.linear_1.weight")
    width = kinds.shape[-1] // count if count and kinds is not None and kinds.shape else 256
    return ControlNetConfig(
        unet,
        (first.shape[0], *wider),
        first.shape[1],
        config.get("controlnet_conditioning_channel_order") == "bgr",
        is_shuffle,
        count,
        width,
        count_modules(tensors, "transformer_layes."),
    )


def _unet_like(tensors: Tensors, base: UNetConfig) -> UNetConfig | None:
    """The base model's config with the attention that tensors have; None if widths differ.

    Small ControlNets for SDXL have fewer transformer blocks, or none.
    """
    levels = range(len(base.channels))
    widths = [_shape(tensors, f"down_blocks.{i}.resnets.0.conv1.weight")[:1] for i in levels]
    depths = [
        [
            count_modules(tensors, f"down_blocks.{i}.attentions.{layer}.transformer_blocks.")
            for layer in range(base.layers)
        ]
        for i in levels
    ]
    middle = count_modules(tensors, "mid_block.attentions.0.transformer_blocks.")
    inputs = _shape(tensors, "conv_in.weight")[1:2]
    added = _shape(tensors, "add_embedding.linear_1.weight")[1:]
    sizes = base.pooled + base.sizes * base.size_width
    if (
        [*map(list, widths)] != [[width] for width in base.channels]
        or inputs != (base.in_channels,)
        or count_modules(tensors, "down_blocks.") != len(base.channels)
        or count_modules(tensors, "down_blocks.0.resnets.") != base.layers
        or added != ((sizes,) if sizes else ())
    ):
        return None
    attention = tuple(any(level) for level in depths)
    if not attention[-1]:
        depths[-1] = [middle or 1]
    each = [tuple(level) if len(set(level)) > 1 else level[0] for level in depths]
    return replace(
        base,
        attention=attention,
        depth=normalise_depths(each, attention),
        middle="full" if middle else "residual",
    )


def _shape(tensors: Tensors, name: str) -> tuple[int, ...]:
    return tensors[name].shape if name in tensors else ()
