"""The kind of a weight file that is no whole model, for `txt2img models` and completion."""

from pathlib import Path

from txt2img.errors import BadFile, UnknownLayout
from txt2img.system.text import shown
from txt2img.weights.adapters import file_layout
from txt2img.weights.formats import safetensors_file
from txt2img.weights.layouts.components import VISION, text_widths
from txt2img.weights.layouts.taesd import is_taesd

NAME_IN_FOLDER = "diffusion_pytorch_model.safetensors"  # of a folder that holds a single network
# A tensor of each of the architectures that most upscalers have; spandrel knows more.
UPSCALERS = {
    *("conv_first.weight", "model.1.sub.0.RDB1.conv1.0.weight"),  # SwinIR, HAT, DAT, …; ESRGAN
    *("body.1.weight", "block_1.c1_r.sk.weight", "feats.0.weight"),  # Compact; SPAN; PLKSR
    *("residual_layer.0.residual_layer.0.layer.0.fn.0.weight", "gblocks.0.weight"),  # OmniSR; MoSR
    *("in_to_dim.weight", "to_feat.weight", "sft.weight"),  # MoESR; SAFMN, SeemoRe; DITN
    *("unet1.conv1.conv.0.weight", "initial.cnn.depthwise.weight"),  # Real-CUGAN; SwiftSRGAN
}
# Beginnings of tensors' names, after the prefixes of whole checkpoints.
STARTS = {
    "ControlLLLite": ("lllite_",),
    "ControlNet": (
        *(
            "controlnet_cond_embedding.",
            "input_hint_block.",
            "control_model.",
            "controlnet_blocks.",
        ),
        *("controlnet_x_embedder.", "lora_controlnet"),
    ),
    "IP-Adapter": ("image_proj.", "ip_adapter."),
    "T2I-Adapter": (
        *("adapter.body.", "body.0.resnets.", "body.0.block1."),
        "body.0.body.0.block1.",
    ),
    "U-Net": ("input_blocks.", "down_blocks."),
    "text encoder": ("encoder.block.0.layer.0.SelfAttention.", "model.layers.0.self_attn."),
    "VAE": ("decoder.",),
}
PREFIXES = ("model.diffusion_model.", "diffusion_model.", "unet.", "first_stage_model.")

OPTIONS = {  # that take a file of a kind
    "LoRA": "lora",
    "ControlNet": "control",
    "T2I-Adapter": "control",
    "IP-Adapter": "ip-adapter",
    "image encoder": "ip-encoder",
    "upscaler": "upscale",
    "embedding": "embedding",
    "VAE": "vae",
    "U-Net": "unet",
    "text encoder": "text-encoder",
}


def file_of(path: Path) -> Path:
    """The weight file of a folder that holds a single network; else the path itself."""
    return path / NAME_IN_FOLDER if (path / NAME_IN_FOLDER).is_file() else path


def with_article(kind: str) -> str:
    """A kind of file with a or an."""
    return f"{'an' if kind[:1] in 'aeiouI' else 'a'} {kind}"


def check_kind(path: Path, wanted: str) -> None:
    """Raise UnknownLayout for a file that is of a kind, and of another than is wanted."""
    if (kind := kind_of(path)) not in (wanted, ""):
        option = f"; give it with --{OPTIONS[kind]}" if kind in OPTIONS else ""
        raise UnknownLayout(f"{shown(path.name)} is {with_article(kind)}, no {wanted}{option}")


def kind_of(path: Path) -> str:
    """LoRA, embedding, upscaler, encoder or one of STARTS; empty for all else, or broken.

    A folder's is that of the single network in it.
    """
    try:
        tensors = safetensors_file.header(file_of(path)).tensors
    except BadFile:
        return ""
    if {file_layout.split(name)[1] for name in tensors} - {"", "ia3"}:
        return "LoRA"
    shapes = [ref.shape for ref in tensors.values()]
    if file_layout.A1111 in tensors or set(tensors) in map(set, file_layout.XL):
        return "embedding"
    if len(shapes) == 1 and len(shapes[0]) == 2:
        return "embedding"
    if not UPSCALERS.isdisjoint(tensors):
        return "upscaler"
    if is_taesd(tensors):
        return "VAE"
    bare = {name.removeprefix(next(filter(name.startswith, PREFIXES), "")) for name in tensors}
    for kind, starts in STARTS.items():
        if any(name.startswith(starts) for name in bare):
            return kind
    if text_widths(tensors):
        return "text encoder"
    return "image encoder" if any(name.startswith(VISION) for name in bare) else ""
