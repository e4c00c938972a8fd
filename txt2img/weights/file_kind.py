"""What a weight file is that is no whole model: for lists of what there is to choose from."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from txt2img.errors import BadFile
from txt2img.weights.adapters import key_names, textual_inversion
from txt2img.weights.formats import safetensors_file
from txt2img.weights.formats.safetensors_file import Stored
from txt2img.weights.layouts.components import text_widths
from txt2img.weights.layouts.taesd import is_tiny

# By how tensors' names begin, after what a whole checkpoint puts before them.
STARTS = {
    "U-Net": ("input_blocks.", "down_blocks."),
    "VAE": ("decoder.",),
}
BEFORE = ("model.diffusion_model.", "diffusion_model.", "unet.", "first_stage_model.")


# What only the layers of other families are called, dots and underscores alike, first match wins.
OTHERS = (
    ("FLUX", ("single_transformer_blocks", "double_blocks", "single_blocks")),
    ("Stable Diffusion 3", ("joint_blocks", "transformer_transformer_blocks")),
    ("Stable Cascade", ("lora_prior_unet", "down_blocks_0_0_channelwise")),
    ("PixArt", ("adaln_single", "cross_attn_kv_linear")),
    ("a video model", ("motion_modules", "temporal_transformer", "blocks_0_cross_attn")),
)
# How wide the text is that attention looks at.
WIDTHS = {
    768: "Stable Diffusion 1",
    1024: "Stable Diffusion 2",
    2048: "Stable Diffusion XL",
    1280: "Stable Diffusion XL refiner",
}


def made_for(tensors: Mapping[str, Stored]) -> str:
    """The family that an adapter was made for, told by its names and shapes; empty if unknown."""
    for family, signs in OTHERS:
        if any(sign in name.replace(".", "_") for name in tensors for sign in signs):
            return family
    return next((WIDTHS[width] for width in _text_widths(tensors) if width in WIDTHS), "")


def _text_widths(tensors: Mapping[str, Stored]) -> Iterable[int]:
    """How wide the text is to each layer that reads it."""
    for name, stored in tensors.items():
        layer, role = key_names.split(name)
        reads = layer.replace(".", "_").endswith(("attn2_to_k", "attn2_to_v"))
        if reads and role == "down" and len(stored.shape) >= 2:
            yield stored.shape[1]


def kind_of(path: Path) -> str:
    """LoRA, embedding, VAE, U-Net or text encoder; empty if it is something else, or broken."""
    try:
        tensors = safetensors_file.header(path).tensors
    except BadFile:
        return ""
    if {key_names.split(name)[1] for name in tensors} - {"", "ia3"}:
        return "LoRA"
    shapes = [stored.shape for stored in tensors.values()]
    if textual_inversion.A1111 in tensors or set(tensors) in map(set, textual_inversion.XL):
        return "embedding"
    if len(shapes) == 1 and len(shapes[0]) == 2:
        return "embedding"
    if is_tiny(tensors):
        return "VAE"
    bare = {name.removeprefix(next(filter(name.startswith, BEFORE), "")) for name in tensors}
    for kind, starts in STARTS.items():
        if any(name.startswith(starts) for name in bare):
            return kind
    return "text encoder" if text_widths(tensors) else ""
