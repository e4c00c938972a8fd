"""Adapter files' names for a model's layers, and the role of each tensor.

Aliases are generated from the model's own names, so that every layer has all of them: kohya's with
underscores, diffusers' and peft's with dots, and those of the original layout.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from txt2img.models.clip import TextEncoder
from txt2img.models.unet import UNet
from txt2img.weights.layouts import key_maps
from txt2img.weights.layouts.components import published_name

# Early diffusers' names for the layers of a text encoder's attention.
OLD_TEXT = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}
# Prefixes of a text encoder's layers: with underscores (kohya, LyCORIS), with dots (the others).
TEXT_PREFIXES = {
    "text": (
        ("lora_te_", "lora_te1_", "lycoris_"),
        (
            *("text_encoder.", "base_model.model."),
            *("text_encoders.clip_l.transformer.", "text_encoders.clip_h.transformer."),
        ),
    ),
    "text_2": (("lora_te2_",), ("text_encoder_2.", "text_encoders.clip_g.transformer.")),
}


@dataclass(frozen=True)
class Share:
    """What a file's key changes: one of our layers, by all of its rows or some of a fused layer's.

    `rows` are the first, how many, and how many the fused layer has. `swapped` layers have the
    halves of their rows the other way round in the file.
    """

    layer: str  # a key of `layers`
    rows: tuple[int, int, int] | None = None
    swapped: bool = False
    original: bool = False  # named as in the original layout


def layers(network: nn.Module, encoders: Sequence[TextEncoder]) -> dict[str, nn.Module]:
    """The layers that adapters can change, by "unet.…" or "transformer.…", "text.…", "text_2.…"."""
    denoiser = "unet" if isinstance(network, UNet) else "transformer"
    modules = {f"{denoiser}.{name}": layer for name, layer in network.named_modules()}
    for part, encoder in zip(("text", "text_2"), encoders, strict=False):
        modules |= {
            f"{part}.{published_name(name)}": layer for name, layer in encoder.named_modules()
        }
    return {
        name: layer
        for name, layer in modules.items()
        if isinstance(getattr(layer, "weight", None), Tensor)
        and not isinstance(layer, nn.Embedding)
    }


def key_aliases(
    network: nn.Module, encoders: Sequence[TextEncoder]
) -> dict[str, tuple[Share, ...]]:
    """All names that files may have for a layer of a U-Net or of text encoders → ours."""
    table = key_maps.unet_from_ldm(network.config) if isinstance(network, UNet) else {}
    back = key_maps.inverted(table)
    # The refiner's only text encoder is SDXL's second, and files may call it either.
    refiner = len(encoders) == 1 and encoders[0].config.projection
    aliases: dict[str, tuple[Share, ...]] = {}
    for layer in layers(network, encoders):
        part, _, name = layer.partition(".")
        if part == "unet":
            names = _unet_aliases(name, back)
        elif part == "transformer":  # see transformer_key_names.py
            continue
        else:
            names = _text_aliases(name, ("text", "text_2") if refiner else (part,))
        aliases |= dict.fromkeys(names, (Share(layer),))
    return aliases


def _unet_aliases(name: str, back: dict[str, str]) -> Iterator[str]:
    """The aliases of a layer of the U-Net; `back` maps to the original layout."""
    for full in (name, key_maps.rename(name, back) or name):
        for ending in ("", ".0") if name.endswith(".to_out.0") else ("",):
            short = full.removesuffix(ending)
            flat = short.replace(".", "_")
            yield from (f"lora_unet_{flat}", f"oft_unet_{flat}", f"lycoris_{flat}")
            yield from (f"unet.{short}", f"base_model.model.{short}", short)
            yield from (f"diffusion_model.{short}", f"model.diffusion_model.{short}")


def _text_aliases(name: str, parts: tuple[str, ...]) -> Iterator[str]:
    """The aliases of a layer of a text encoder that files know as one of `parts`."""
    layer, _, last = name.rpartition(".")
    old = OLD_TEXT.get(last)
    for full in (name, f"text_model.{name}", *([f"text_model.{layer}.{old}"] if old else [])):
        for part in parts:
            flat, dotted = TEXT_PREFIXES[part]
            yield from (f"{prefix}{full.replace('.', '_')}" for prefix in flat)
            yield from (f"{prefix}{full}" for prefix in dotted)
