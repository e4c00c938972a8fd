"""Which family a single file in the original layout is of, told by its keys and shapes."""

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace

from txt2img.errors import BadFile, UnknownLayout
from txt2img.models.configs import Depth, TextConfig, UNetConfig, VAEConfig
from txt2img.system.files import ADVICE, open_regular
from txt2img.system.text import shown
from txt2img.weights.distilled import told as few_steps
from txt2img.weights.families import (
    SD15,
    SD21,
    SD21_BASE,
    SDXL,
    SDXL_REFINER,
    XL_BIG_G,
    Family,
    checked,
    named,
    schedule_for,
    told_apart,
)
from txt2img.weights.formats.safetensors_file import Header, TensorRef
from txt2img.weights.layouts.key_maps import (
    CLIP,
    OPEN_CLIP,
    REFINER_CLIP,
    UNET,
    VAE,
    XL_CLIP,
    XL_OPEN_CLIP,
    below,
)

Tensors = Mapping[str, TensorRef]
HEAD = 64  # features of one attention head in SD 2 and in every published CLIP text model
OPEN_CLIP_USED = 23  # layers of ViT-H that SD 2 uses; some files leave out the 24th
# ComfyUI's: SD 2's v-prediction models have a last text-attention norm this uneven.
V_UNEVEN = 0.09
FORMATS = {"F64": "<d", "F32": "<f", "BF16": "<f", "F16": "<e"}  # of struct
PREDICTIONS = {"epsilon": "eps", "eps": "eps", "v": "v", "v_prediction": "v", "v-prediction": "v"}


@dataclass(frozen=True)
class Row:
    """A kind of file and the key that gives it away; any of several, the first row wins."""

    name: str
    keys: tuple[str, ...]
    family: Family | None = None  # None: known, but not supported


ROWS = (
    Row("an EDM model (CosXL)", ("edm_vpred.", "edm_mean")),
    Row("an unCLIP model, which draws from a picture", ("noise_augmentor.",)),
    Row("Stable Diffusion XL", (f"{XL_OPEN_CLIP}.transformer.resblocks.",), SDXL),
    Row("Stable Diffusion XL refiner", (f"{REFINER_CLIP}.transformer.resblocks.",), SDXL_REFINER),
    Row(
        "a Stable Diffusion XL model without its text encoders, whose U-Net --unet takes",
        (f"{UNET}.label_emb.0.0.weight", "conditioner.embedders."),
    ),
    Row("a Stable Diffusion 3 model", (f"{UNET}.joint_blocks.", "joint_blocks.")),
    Row("a FLUX model", (f"{UNET}.double_blocks.", "double_blocks.")),
    Row("Stable Diffusion 2", (f"{OPEN_CLIP}.transformer.resblocks.",), SD21_BASE),
    Row(
        "Stable Diffusion 1",
        (f"{CLIP}.text_model.encoder.layers.", f"{CLIP}.encoder.layers."),
        SD15,
    ),
    Row(
        "a Stable Diffusion model without its text encoder, whose U-Net --unet takes",
        (f"{UNET}.input_blocks.",),
    ),
    Row(
        "a LoRA, which changes a model and is not one", ("lora_unet_", "lora_te_", "unet.down_blo")
    ),
    Row(
        "a U-Net alone, which --unet takes beside a model",
        ("input_blocks.", "time_embed.", "down_blocks."),
    ),
    Row(
        "a VAE alone, which --vae takes beside a model",
        (f"{VAE}.", "encoder.down", "decoder.up"),
    ),
    Row("a tiny VAE (TAESD), which --vae takes beside a model", ("decoder.layers.", "3.conv.0.")),
    Row(
        "a text encoder alone, which --text-encoder takes beside a model",
        (
            *("text_model.", "embeddings.token_embedding", "transformer.resblocks."),
            *("text_encoders.", "token_embedding."),
        ),
    ),
    Row("a ControlNet", ("control_model.", "controlnet_")),
)


def detect(header: Header, prediction: str | None = None) -> Family:
    """The family of an original-layout file; `prediction` overrules what the file seems to predict.

    Raises UnknownLayout, which names what the file seems to be.
    """
    row = _row(header.tensors)
    family = row.family
    if family is None:
        raise UnknownLayout(f"this is {row.name}; a whole SD 1, SD 2 or SDXL model is needed here")
    unet, vae = below(header.tensors, UNET), below(header.tensors, VAE)
    texts = _texts(header.tensors, family)
    network = unet_config(unet, family, texts[-1].projection)
    kind = prediction or prediction_of(header, family)
    process = replace(family.process, zero_snr="ztsnr" in header.tensors)
    defaults = SD21.defaults if family is SD21_BASE and kind == "v" else family.defaults
    defaults = replace(defaults, schedule=schedule_for(process))
    return checked(
        replace(
            family,
            name=named(network),
            network=network,
            vae=vae_config(vae, family.vae.scaling) if vae else family.vae,
            text=texts[0],
            text_2=texts[1] if texts[1:] else None,
            process=process,
            prediction=kind,
            defaults=few_steps(defaults) if network.scale_width else defaults,
        )
    )


def _row(tensors: Tensors) -> Row:
    for row in ROWS:
        if any(name.startswith(row.keys) for name in tensors):
            return row
    some = ", ".join(shown(name) for name in list(tensors)[:2]) or "no tensors"
    raise UnknownLayout(f"no known layout: it holds {some}; SD 1, SD 2 and SDXL are supported")


def prediction_of(header: Header, family: Family) -> str:
    """What the U-Net predicts: by metadata, else marker tensors, else (SD 2) a look at weights."""
    said = header.metadata.get("modelspec.prediction_type", "").lower()
    if said in PREDICTIONS:
        return PREDICTIONS[said]
    if (
        header.metadata.get("modelspec.architecture", "").endswith("-v")
        or "v_pred" in header.tensors
    ):
        return "v"
    if family is not SD21_BASE:
        return family.prediction
    norms = [n for n in header.tensors if n.endswith("1.transformer_blocks.0.norm1.bias")]
    outputs = [n for n in norms if n.startswith(f"{UNET}.output_blocks.")]
    last = max(outputs, key=lambda n: int(n.split(".")[3]), default=None)
    if last is None:
        return family.prediction
    values = _floats(header.tensors[last])
    mean = sum(values) / len(values)
    uneven = math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))
    return "v" if uneven > V_UNEVEN else "eps"


def _floats(stored: TensorRef) -> list[float]:
    """A small tensor's values, read without torch. Raises BadFile if the file shrank."""
    with open_regular(stored.path) as file:
        file.seek(stored.start)
        content = file.read(stored.nbytes)
    if len(content) < stored.nbytes or stored.dtype not in FORMATS:
        raise BadFile(f"{stored.path.name}: a norm of {stored.dtype} that cannot be read; {ADVICE}")
    if stored.dtype == "BF16":  # the upper half of a float32
        content = b"".join(b"\0\0" + content[i : i + 2] for i in range(0, len(content), 2))
    return [value for (value,) in struct.iter_unpack(FORMATS[stored.dtype], content)]


def unet_config(tensors: Tensors, family: Family, pooled: int) -> UNetConfig:
    """The U-Net's shape from its tensors' (below model.diffusion_model)."""
    inputs, width = _shape(tensors, "input_blocks.0.0.weight", 4)[1::-1]
    outputs = _shape(tensors, "out.2.weight", 4)[0]
    channels, down = _way_down(tensors, width)
    layers, levels = len(down[0]), len(channels)
    up = _way_up(tensors, layers + 1, levels)
    attention = tuple(any(depths) for depths in down)
    # The middle tells the depth of a last level that has no attention itself.
    deepest = _count(tensors, "middle_block.1.transformer_blocks.")
    if not attention[-1]:
        down[-1], up[-1] = [deepest or 1], [deepest or 1]
    depth, up_depth = _depths(down, attention), _depths(up, attention)
    first = _first_attention(tensors)
    told = _shape(tensors, "label_emb.0.0.weight", 2)[1] if pooled else 0
    by_width, told_scale = family.network.linear_projection, "time_embed.cond_proj.weight"
    return UNetConfig(
        in_channels=inputs,
        out_channels=outputs,
        channels=tuple(channels),
        layers=layers,
        attention=attention,
        depth=depth,
        up_depth=None if up_depth == depth else up_depth,
        middle="full" if deepest else "residual" if _count(tensors, "middle_block.") else "none",
        heads=tuple(max(1, width // HEAD) if by_width else 8 for width in channels),
        cross_dim=_shape(tensors, f"{first}.transformer_blocks.0.attn2.to_k.weight", 2)[1],
        linear_projection=len(_shape(tensors, f"{first}.proj_in.weight", None)) == 2,
        pooled=pooled,
        sizes=(told - pooled) // family.network.size_width,
        scale_width=_shape(tensors, told_scale, 2)[1] if told_scale in tensors else 0,
    )


def vae_config(tensors: Tensors, scaling: float) -> VAEConfig:
    """The VAE's shape from its tensors' (below first_stage_model); its scale they do not tell."""
    levels = _count(tensors, "encoder.down.")
    channels = tuple(
        _shape(tensors, f"encoder.down.{level}.block.0.conv1.weight", 4)[0]
        for level in range(levels)
    )
    return VAEConfig(
        scaling=scaling,
        latent_channels=_shape(tensors, "decoder.conv_in.weight", 4)[1],
        channels=channels,
        layers=_count(tensors, "encoder.down.0.block."),
        mid_attention="decoder.mid.attn_1.q.weight" in tensors,
        quant_conv="quant_conv.weight" in tensors,
    )


def vae_of_diffusers(tensors: Tensors, scaling: float) -> VAEConfig:
    """The same from the names that diffusers gives a VAE's tensors."""
    start = "encoder.down_blocks."
    return VAEConfig(
        scaling=scaling,
        latent_channels=_shape(tensors, "decoder.conv_in.weight", 4)[1],
        channels=tuple(
            _shape(tensors, f"{start}{level}.resnets.0.conv1.weight", 4)[0]
            for level in range(_count(tensors, start))
        ),
        layers=_count(tensors, f"{start}0.resnets."),
        mid_attention=any(name.startswith("decoder.mid_block.attentions.") for name in tensors),
        quant_conv="quant_conv.weight" in tensors,
    )


def _texts(tensors: Tensors, family: Family) -> tuple[TextConfig, ...]:
    """The text encoders' shapes."""
    if family is SDXL:
        return _clip(tensors, XL_CLIP, SDXL.text), _open_clip(tensors, XL_OPEN_CLIP, XL_BIG_G)
    if family is SDXL_REFINER:
        return (_open_clip(tensors, REFINER_CLIP, XL_BIG_G),)
    if family is SD15:
        return (_clip(tensors, CLIP, SD15.text),)
    return (_open_clip(tensors, OPEN_CLIP, SD21.text),)


def _clip(tensors: Tensors, prefix: str, like: TextConfig) -> TextConfig:
    """CLIP in transformers' layout, with or without `text_model`."""
    found = below(tensors, prefix)
    found = below(found, "text_model") or found
    layers = _count(found, "encoder.layers.")
    token, position = "embeddings.token_embedding.weight", "embeddings.position_embedding.weight"
    mlp = _shape(found, "encoder.layers.0.mlp.fc1.weight", 2)[0]
    return _sized(found, token, position, layers, mlp, like)


def _open_clip(tensors: Tensors, prefix: str, like: TextConfig) -> TextConfig:
    """OpenCLIP, of which SD 2 does not use the last layer; SDXL does, for the text as a whole."""
    found = below(tensors, prefix)
    layers = _count(found, "transformer.resblocks.")
    mlp = _shape(found, "transformer.resblocks.0.mlp.c_fc.weight", 2)[0]
    used = layers if like.projection or layers == OPEN_CLIP_USED else max(1, layers - 1)
    token, position = "token_embedding.weight", "positional_embedding"
    text = _sized(found, token, position, used, mlp, like)
    if not like.projection:
        return text
    return replace(text, projection=_shape(found, "text_projection", 2)[1])


def _sized(
    tensors: Tensors, token: str, position: str, layers: int, mlp: int, like: TextConfig
) -> TextConfig:
    vocab, width = _shape(tensors, token, 2)
    length = _shape(tensors, position, 2)[0]
    heads = max(1, width // HEAD)
    return replace(
        like, vocab=vocab, width=width, layers=layers, heads=heads, mlp=mlp, length=length
    )


def _way_down(tensors: Tensors, width: int) -> tuple[list[int], list[list[int]]]:
    """Channels and transformer depths by level, widest map first: a level ends at a smaller map."""
    channels: list[int] = [width]
    depths: list[list[int]] = [[]]
    for block in range(1, _count(tensors, "input_blocks.")):
        if f"input_blocks.{block}.0.op.weight" in tensors:
            channels, depths = [*channels, 0], [*depths, []]
            continue
        channels[-1] = _shape(tensors, f"input_blocks.{block}.0.out_layers.3.weight", 4)[0]
        depths[-1].append(_count(tensors, f"input_blocks.{block}.1.transformer_blocks."))
    return channels, depths


def _way_up(tensors: Tensors, count: int, levels: int) -> list[list[int]]:
    """Transformer depths by level on the way up, `count` each, widest map first too."""
    blocks = range(_count(tensors, "output_blocks."))
    each = [_count(tensors, f"output_blocks.{block}.1.transformer_blocks.") for block in blocks]
    return [each[level * count :][:count] for level in reversed(range(levels))]


def _depths(levels: list[list[int]], attention: tuple[bool, ...]) -> tuple[Depth, ...]:
    """Transformer blocks by level: one number where all of a level have the same."""
    each = [tuple(level) if len(set(level)) > 1 else sum(level[:1]) for level in levels]
    return told_apart(each, attention)


def _first_attention(tensors: Tensors) -> str:
    """The name of the first transformer. Raises UnknownLayout if there is none."""
    end = ".transformer_blocks.0.attn2.to_k.weight"
    found = sorted(name for name in tensors if name.endswith(end))
    if not found:
        raise UnknownLayout("a U-Net without attention on the text, which no SD model has")
    return found[0].removesuffix(end)


def _count(tensors: Tensors, prefix: str) -> int:
    """How many numbered parts a prefix has."""
    heads = {n[len(prefix) :].split(".", 1)[0] for n in tensors if n.startswith(prefix)}
    return len([head for head in heads if head.isdecimal()])


def _shape(tensors: Tensors, name: str, dimensions: int | None) -> tuple[int, ...]:
    """A tensor's shape. Raises UnknownLayout where it is not there or has other dimensions."""
    if name not in tensors:
        raise UnknownLayout(f"an SD model without the tensor {shown(name)}: the file is incomplete")
    shape = tensors[name].shape
    if 0 in shape or (dimensions is not None and len(shape) != dimensions):
        raise UnknownLayout(f"{shown(name)} has the shape {shape}, which no SD model has")
    return shape
