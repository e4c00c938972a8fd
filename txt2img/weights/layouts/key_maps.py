"""Key maps from other layouts' tensor names to ours, as tables made from a config.

A table maps the beginning of a name, up to a dot, to ours; None drops the tensor. The longest
beginning wins, and names without a row stay, so identity rows are not written.
"""

from collections.abc import Mapping
from dataclasses import replace

from txt2img.errors import MissingWeights
from txt2img.models.configs import UNetConfig, VAEConfig
from txt2img.system.text import shown
from txt2img.weights.formats.safetensors_file import TensorRef

Table = dict[str, str | None]

UNET, VAE = "model.diffusion_model", "first_stage_model"
CLIP, OPEN_CLIP = "cond_stage_model.transformer", "cond_stage_model.model"
# SDXL's first and second text encoder; the refiner has only the second kind, in first place.
XL_CLIP, XL_OPEN_CLIP = "conditioner.embedders.0.transformer", "conditioner.embedders.1.model"
REFINER_CLIP = "conditioner.embedders.0.model"

# Leftovers of training and of older programs, which sampling does not need.
LEFTOVERS: Table = dict.fromkeys(
    (
        "model_ema",
        "embedding_manager",
        "betas",
        "alphas_cumprod",
        "alphas_cumprod_prev",
        "sqrt_alphas_cumprod",
        "sqrt_one_minus_alphas_cumprod",
        "log_one_minus_alphas_cumprod",
        "sqrt_recip_alphas_cumprod",
        "sqrt_recipm1_alphas_cumprod",
        "posterior_variance",
        "posterior_log_variance_clipped",
        "posterior_mean_coef1",
        "posterior_mean_coef2",
        "lvlb_weights",
        "logvar",
        "scale_factor",
        "v_pred",
        "ztsnr",
        "first_stage_model.loss",
        "first_stage_model.model_ema",
        "cond_stage_model.logit_scale",
        "cond_stage_model.text_projection",
        "conditioner.embedders.0.logit_scale",
        "conditioner.embedders.0.text_projection",
        "conditioner.embedders.1.logit_scale",
        "denoiser.sigmas",
    )
)
CLIP_LEFTOVERS: Table = dict.fromkeys(
    ("embeddings.position_ids", "text_projection", "logit_scale", "attn_mask")
)
PROJECTION: Table = {"text_projection.weight": "text_projection.weight"}

RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
VAE_ATTENTION = {
    "norm": "group_norm",
    "q": "to_q",
    "k": "to_k",
    "v": "to_v",
    "proj_out": "to_out.0",
}
OLD_VAE_ATTENTION = {
    "query": "to_q",
    "key": "to_k",
    "value": "to_v",
    "proj_attn": "to_out.0",
}
VAE_BATCH_NORM: Table = {"bn.num_batches_tracked": None}
FUSED = {"attn.in_proj_weight": "weight", "attn.in_proj_bias": "bias"}


def rename(name: str, table: Mapping[str, str | None]) -> str | None:
    """Our name for another layout's, or None for a tensor that is dropped."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        beginning = ".".join(parts[:length])
        if beginning in table:
            ours = table[beginning]
            return None if ours is None else ".".join([ours, *parts[length:]])
    return name


def renamed(tensors: Mapping[str, TensorRef], table: Table) -> dict[str, TensorRef]:
    """Rename and drop tensors by a table. Raises MissingWeights if two get the same name."""
    result: dict[str, TensorRef] = {}
    for name, ref in tensors.items():
        ours = rename(name, table)
        if ours is None:
            continue
        if ours in result:
            raise MissingWeights(f"two tensors, one of them {shown(name)}, mean the same: {ours}")
        result[ours] = ref
    return result


def without_leftovers(
    tensors: Mapping[str, TensorRef], leftovers: Table = LEFTOVERS
) -> dict[str, TensorRef]:
    """Drop the leftovers of training and of older programs."""
    return {name: ref for name, ref in tensors.items() if rename(name, leftovers) is not None}


def inverted(table: Table) -> dict[str, str]:
    """The table from our names to the other layout's, for messages."""
    return {ours: theirs for theirs, ours in table.items() if ours is not None}


def strip_prefix(tensors: Mapping[str, TensorRef], prefix: str) -> dict[str, TensorRef]:
    """The tensors whose names begin with a prefix, without it."""
    return {n.removeprefix(prefix): ref for n, ref in tensors.items() if n.startswith(prefix)}


def unet_from_ldm(config: UNetConfig) -> Table:
    """A U-Net's original names (below model.diffusion_model) → ours."""
    table: Table = {
        "time_embed.0": "time_embedding.linear_1",
        "time_embed.2": "time_embedding.linear_2",
        "time_embed.cond_proj": "time_embedding.cond_proj",
        "label_emb.0.0": "add_embedding.linear_1",
        "label_emb.0.2": "add_embedding.linear_2",
        "input_blocks.0.0": "conv_in",
        "out.0": "conv_norm_out",
        "out.2": "conv_out",
        "middle_block.1": "mid_block.attentions.0",
    }
    resnets = {"middle_block.0": "mid_block.resnets.0", "middle_block.2": "mid_block.resnets.1"}
    levels, width = len(config.channels), config.layers + 1
    for level in range(levels):
        for layer in range(config.layers):
            block = f"input_blocks.{level * width + layer + 1}"
            resnets[f"{block}.0"] = f"down_blocks.{level}.resnets.{layer}"
            table[f"{block}.1"] = f"down_blocks.{level}.attentions.{layer}"
        if level < levels - 1:
            down = f"down_blocks.{level}.downsamplers.0.conv"
            table[f"input_blocks.{(level + 1) * width}.0.op"] = down
        for layer in range(width):
            block = f"output_blocks.{level * width + layer}"
            resnets[f"{block}.0"] = f"up_blocks.{level}.resnets.{layer}"
            table[f"{block}.1"] = f"up_blocks.{level}.attentions.{layer}"
        if level < levels - 1:
            # The step to the larger map follows attention where the level has any.
            place = 2 if config.attention[levels - 1 - level] else 1
            block = f"output_blocks.{level * width + config.layers}.{place}"
            table[f"{block}.conv"] = f"up_blocks.{level}.upsamplers.0.conv"
    for theirs, ours in resnets.items():
        table |= {f"{theirs}.{a}": f"{ours}.{b}" for a, b in RESNET.items()}
    return table


def vae_from_ldm(config: VAEConfig) -> Table:
    """A VAE's original names (below first_stage_model) → ours."""
    table: Table = VAE_BATCH_NORM | {
        "encoder.quant_conv": "quant_conv",  # FLUX.2 has them inside
        "decoder.post_quant_conv": "post_quant_conv",
    }
    last = len(config.channels) - 1
    resnets: dict[str, str] = {}
    for side in ("encoder", "decoder"):
        table[f"{side}.norm_out"] = f"{side}.conv_norm_out"
        for index in (0, 1):
            resnets[f"{side}.mid.block_{index + 1}"] = f"{side}.mid_block.resnets.{index}"
        for a, b in VAE_ATTENTION.items():
            table[f"{side}.mid.attn_1.{a}"] = f"{side}.mid_block.attentions.0.{b}"
    for level in range(last + 1):
        down, up = f"encoder.down.{level}", f"decoder.up.{last - level}"
        for layer in range(config.layers):
            resnets[f"{down}.block.{layer}"] = f"encoder.down_blocks.{level}.resnets.{layer}"
        for layer in range(config.layers + 1):
            resnets[f"{up}.block.{layer}"] = f"decoder.up_blocks.{level}.resnets.{layer}"
        if level < last:
            table[f"{down}.downsample"] = f"encoder.down_blocks.{level}.downsamplers.0"
            table[f"{up}.upsample"] = f"decoder.up_blocks.{level}.upsamplers.0"
    for theirs, ours in resnets.items():
        table[theirs] = ours
        table[f"{theirs}.nin_shortcut"] = f"{ours}.conv_shortcut"
    return table


def vae_from_old_diffusers() -> Table:
    """Early diffusers' names of a VAE's attention → ours."""
    return VAE_BATCH_NORM | {
        f"{side}.mid_block.attentions.0.{a}": f"{side}.mid_block.attentions.0.{b}"
        for side in ("encoder", "decoder")
        for a, b in OLD_VAE_ATTENTION.items()
    }


def clip_from_published(projected: bool = False) -> Table:
    """transformers' names of a CLIP text model, with or without `text_model` → without it.

    The text projection is dropped unless the model is `projected`.
    """
    modules = ("embeddings", "encoder", "final_layer_norm")
    table: Table = {f"text_model.{module}": module for module in modules}
    table |= CLIP_LEFTOVERS | {f"text_model.{name}": None for name in CLIP_LEFTOVERS}
    return table | (PROJECTION if projected else {})


def clip_from_open_clip(layers: int, projected: bool = False) -> Table:
    """OpenCLIP's names (q, k and v already split) → ours; the layer after `layers` is dropped."""
    table: Table = {
        "token_embedding": "embeddings.token_embedding",
        "positional_embedding": "embeddings.position_embedding.weight",
        "ln_final": "final_layer_norm",
        f"transformer.resblocks.{layers}": None,
    } | CLIP_LEFTOVERS
    for layer in range(layers):
        theirs, ours = f"transformer.resblocks.{layer}", f"encoder.layers.{layer}"
        table |= {
            f"{theirs}.ln_1": f"{ours}.layer_norm1",
            f"{theirs}.ln_2": f"{ours}.layer_norm2",
            f"{theirs}.mlp.c_fc": f"{ours}.mlp.fc1",
            f"{theirs}.mlp.c_proj": f"{ours}.mlp.fc2",
            f"{theirs}.attn": f"{ours}.self_attn",
        }
    return table | ({"text_projection": PROJECTION["text_projection.weight"]} if projected else {})


def split_qkv(tensors: Mapping[str, TensorRef]) -> dict[str, TensorRef]:
    """Split OpenCLIP's fused attention projections into those of q, k and v.

    Its text projection is transposed, since OpenCLIP stores it as (in, out).
    """
    result: dict[str, TensorRef] = {}
    for name, ref in tensors.items():
        if name.rpartition(".")[2] == "text_projection" and len(ref.shape) == 2:
            ref = ref.transpose()
        fused = next((ending for ending in FUSED if name.endswith(ending)), None)
        if fused is None:
            result[name] = ref
            continue
        for index, letter in enumerate("qkv"):
            part = f"{name.removesuffix(fused)}attn.{letter}_proj.{FUSED[fused]}"
            result[part] = ref.chunk(index, 3)
    return result


def conv_to_linear(tensors: Mapping[str, TensorRef]) -> dict[str, TensorRef]:
    """Reshape the 1×1 convolutions (C, C, 1, 1) of a VAE's attention to linear layers (C, C)."""
    return {
        name: replace(ref, shape=ref.shape[:2])
        if ".attentions.0." in name and ref.shape[2:] == (1, 1)
        else ref
        for name, ref in tensors.items()
    }
