"""Adapter files' names for a diffusion transformer's layers.

Generated as in key_names.py. One key of the original layout may stand for several of our layers, of
which each takes its rows.
"""

from collections.abc import Iterator

from torch import nn

from txt2img.models.configs import FluxConfig
from txt2img.weights.adapters.key_names import Share, layers
from txt2img.weights.layouts.transformer_key_maps import ADDED_QKV, QKV, fused_rows, layers_of

# kohya's, OneTrainer's and LyCORIS', with underscores; the last is for files that mix both marks.
FLAT = ("lora_unet_", "lora_transformer_", "lycoris_", "oft_unet_", "diffusion_model_", "")
# diffusers' and peft's, ai-toolkit's, ComfyUI's, with dots.
DOTTED = ("transformer.", "diffusion_model.", "model.diffusion_model.", "base_model.model.", "")

Aliases = dict[str, tuple[Share, ...]]


def aliases(network: nn.Module) -> Aliases:
    """All names that files may have for the layers of a transformer → ours."""
    config, part = network.config, "transformer."
    original = layers_of(config)
    names = {layer.removeprefix(part) for layer in layers(network, ()) if layer.startswith(part)}
    found: Aliases = {}
    for name in names:
        found |= dict.fromkeys(spellings(name), (Share(f"{part}{name}"),))
    fused = original.fused | (_xlabs(config) if isinstance(config, FluxConfig) else {})
    for name in names:
        theirs, swapped = original.original(name), name in original.swapped
        if theirs != name and theirs not in fused:
            share = Share(f"{part}{name}", swapped=swapped, original=True)
            found |= dict.fromkeys(spellings(theirs), (share,))
    for theirs, rows in fused.items():
        found |= dict.fromkeys(spellings(theirs), tuple(_shares(part, rows)))
    return found


def spellings(name: str) -> Iterator[str]:
    """The names of a layer with all prefixes, and without the index of a layer's only module."""
    for short in (name, name.removesuffix(".0")) if name.endswith("to_out.0") else (name,):
        flat = short.replace(".", "_")
        yield from (f"{prefix}{flat}" for prefix in FLAT)
        yield from (f"{prefix}{short}" for prefix in DOTTED)


def _shares(part: str, rows: dict[str, int]) -> Iterator[Share]:
    """Our layers' shares of a fused one."""
    first, total = 0, sum(rows.values())
    for name, count in rows.items():
        cut = None if count == total else (first, count, total)
        yield Share(f"{part}{name}", cut, original=True)
        first += count


def _xlabs(config: FluxConfig) -> dict[str, dict[str, int]]:
    """XLabs' layers of FLUX.1, which are those of attention: 1 is the picture's, 2 the text's."""
    width = config.width
    found: dict[str, dict[str, int]] = {}
    for index in range(config.double_blocks):
        theirs, ours = f"double_blocks.{index}", f"transformer_blocks.{index}.attn"
        for number, names, out in ((1, QKV, "to_out.0"), (2, ADDED_QKV, "to_add_out")):
            found[f"{theirs}.qkv_lora{number}"] = fused_rows(ours, names, width)
            found[f"{theirs}.proj_lora{number}"] = {f"{ours}.{out}": width}
    for index in range(config.single_blocks):
        theirs, ours = f"single_blocks.{index}", f"single_transformer_blocks.{index}"
        found[f"{theirs}.qkv"] = fused_rows(f"{ours}.attn", QKV, width)
        found[f"{theirs}.proj"] = {f"{ours}.proj_out": width}
    return found
