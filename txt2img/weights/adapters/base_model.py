"""Which family an adapter file was made for, by its tensors' names and shapes."""

from collections.abc import Iterator, Mapping

from txt2img.weights.adapters import file_layout
from txt2img.weights.formats.safetensors_file import TensorRef

# Layer names that occur in one family only, with underscores for dots; the first match wins.
UNIQUE_LAYERS = (
    ("FLUX.2", ("single_stream_modulation", "to_qkv_mlp_proj")),
    ("Z-Image", ("noise_refiner", "context_refiner", "layers_0_attention_")),
    ("FLUX", ("single_transformer_blocks", "double_blocks", "single_blocks")),
    ("Stable Diffusion 3", ("joint_blocks", "transformer_transformer_blocks")),
    ("Stable Cascade", ("lora_prior_unet", "down_blocks_0_0_channelwise")),
    ("PixArt", ("adaln_single", "cross_attn_kv_linear")),
    ("a video model", ("motion_modules", "temporal_transformer", "blocks_0_cross_attn")),
)
# Families by the width of their text conditioning.
TEXT_WIDTHS = {
    768: "Stable Diffusion 1",
    1024: "Stable Diffusion 2",
    2048: "Stable Diffusion XL",
    1280: "Stable Diffusion XL refiner",
}


def base_model(tensors: Mapping[str, TensorRef]) -> str:
    """The family that an adapter was trained on; empty if unknown."""
    for family, layers in UNIQUE_LAYERS:
        if any(layer in name.replace(".", "_") for name in tensors for layer in layers):
            return family
    return next(
        (TEXT_WIDTHS[width] for width in text_widths_of(tensors) if width in TEXT_WIDTHS), ""
    )


def text_widths_of(tensors: Mapping[str, TensorRef]) -> Iterator[int]:
    """The text width of each cross-attention layer that the adapter changes."""
    for name, ref in tensors.items():
        layer, role = file_layout.split(name)
        reads_text = layer.replace(".", "_").endswith(("attn2_to_k", "attn2_to_v"))
        if reads_text and role == "down" and len(ref.shape) >= 2:
            yield ref.shape[1]
