"""Detect the family and configs of a single file in the original layout, by keys and shapes."""

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

from txt2img.errors import BadFile, UnknownLayout
from txt2img.models.configs import FLUX2_VAE, Depth, TextConfig, UNetConfig, VAEConfig
from txt2img.system.files import ADVICE, open_regular
from txt2img.weights.distilled import for_lcm
from txt2img.weights.families import (
    SD15,
    SD21,
    SD21_BASE,
    SDXL,
    SDXL_REFINER,
    XL_BIG_G,
    Family,
    check_family,
    default_schedule,
    family_name,
    normalise_depths,
)
from txt2img.weights.formats.safetensors_file import Header, TensorRef
from txt2img.weights.layouts.components import count_modules, first_names, shape_of
from txt2img.weights.layouts.key_maps import (
    CLIP,
    OPEN_CLIP,
    REFINER_CLIP,
    UNET,
    VAE,
    XL_CLIP,
    XL_OPEN_CLIP,
    strip_prefix,
)

Tensors = Mapping[str, TensorRef]
HEAD_DIM = 64  # of SD 2 and of every published CLIP text model
OPEN_CLIP_USED = 23  # layers of ViT-H that SD 2 uses; some files lack the 24th
# ComfyUI's test: a standard deviation of the last attention norm's bias above this means v.
V_DEVIATION = 0.09
SUPPORTED = "SD 1, SD 2, SDXL, SD 3, FLUX.1, FLUX.2 klein or Z-Image"
MARKERS = ("v_pred", "ztsnr")  # empty tensors that say v-prediction, zero terminal SNR
STRUCT_FORMATS = {"F64": "<d", "F32": "<f", "BF16": "<f", "F16": "<e"}
PREDICTIONS = {"epsilon": "eps", "eps": "eps", "v": "v", "v_prediction": "v", "v-prediction": "v"}
_shape = partial(shape_of, "SD model")


@dataclass(frozen=True)
class Kind:
    """A kind of file, recognised by the beginning of any tensor's name; the first kind wins."""

    name: str
    keys: tuple[str, ...]
    family: Family | None = None  # None: recognised, but not supported here
    transformer: str = ""  # a key of transformers.ARCHITECTURES


def _network_keys(*names: str) -> tuple[str, ...]:
    """Beginnings of a network's names, after the prefixes of files and bare."""
    return tuple(f"{p}{name}" for p in (f"{UNET}.", "diffusion_model.", "") for name in names)


# Diffusion transformers by one tensor that only they have; those without a key are not supported.
TRANSFORMERS = (
    Kind("Chroma", _network_keys("distilled_guidance_layer.")),
    Kind("FLUX.2", _network_keys("double_stream_modulation_img.lin."), transformer="flux2"),
    Kind("HunyuanVideo", _network_keys("txt_in.individual_token_refiner.")),
    Kind("FLUX.1", _network_keys("double_blocks.0.img_attn.norm.key_norm."), transformer="flux"),
    Kind("Stable Diffusion 3", _network_keys("joint_blocks.0.context_block."), transformer="sd3"),
    Kind("Krea 2", _network_keys("txtfusion.projector.")),
    Kind("Z-Image", _network_keys("layers.0.adaLN_modulation.0."), transformer="z-image"),
    Kind("Lumina 2", _network_keys("cap_embedder.")),
    Kind("Qwen-Image", _network_keys("transformer_blocks.0.img_mlp.net.0.proj.", "txt_norm.")),
    Kind("HiDream", _network_keys("caption_projection.0.linear.")),
    Kind("AuraFlow", _network_keys("double_layers.")),
    Kind("Anima", _network_keys("llm_adapter.")),
    Kind("Wan", _network_keys("head.modulation")),
    Kind("LTX-Video", _network_keys("patchify_proj.")),
    Kind("PixArt", _network_keys("t_block.1.")),
    Kind("Stable Cascade", _network_keys("clf.1.", "effnet_mapper.")),
)
KINDS = (
    Kind("an EDM model (CosXL)", ("edm_vpred.", "edm_mean")),
    Kind("an unCLIP model, which draws from a picture", ("noise_augmentor.",)),
    Kind("Stable Diffusion XL", (f"{XL_OPEN_CLIP}.transformer.resblocks.",), SDXL),
    Kind("Stable Diffusion XL refiner", (f"{REFINER_CLIP}.transformer.resblocks.",), SDXL_REFINER),
    Kind(
        "a Stable Diffusion XL model without its text encoders: use its U-Net with --unet",
        (f"{UNET}.label_emb.0.0.weight", "conditioner.embedders."),
    ),
    Kind("a ControlNet", ("controlnet_blocks.", "controlnet_x_embedder.", "control_layers.")),
    *TRANSFORMERS,
    Kind("Stable Diffusion 2", (f"{OPEN_CLIP}.transformer.resblocks.",), SD21_BASE),
    Kind(
        "Stable Diffusion 1",
        (f"{CLIP}.text_model.encoder.layers.", f"{CLIP}.encoder.layers."),
        SD15,
    ),
    Kind(
        "a Stable Diffusion model without its text encoder: use its U-Net with --unet",
        (f"{UNET}.input_blocks.",),
    ),
    Kind(
        "a LoRA, which changes a model and is not one", ("lora_unet_", "lora_te_", "unet.down_blo")
    ),
    Kind(
        "a U-Net alone: use it with --unet",
        ("input_blocks.", "time_embed.", "down_blocks."),
    ),
    Kind(
        "a VAE alone: use it with --vae",
        (f"{VAE}.", "encoder.down", "decoder.up"),
    ),
    Kind("a tiny VAE (TAESD): use it with --vae", ("decoder.layers.", "3.conv.0.")),
    Kind(
        "a text encoder alone: use it with --text-encoder",
        (
            *("text_model.", "embeddings.token_embedding", "transformer.resblocks."),
            *("text_encoders.", "token_embedding."),
            *("encoder.block.0.layer.0.SelfAttention.", "model.layers.0.self_attn."),
        ),
    ),
    Kind("a ControlNet", ("control_model.", "controlnet_")),
    Kind("a T2I-Adapter", ("adapter.body.", "body.0.resnets.", "body.0.block1.")),
    Kind("an IP-Adapter", ("image_proj.", "ip_adapter.")),
)


def detect(header: Header, prediction: str | None = None) -> Family:
    """Detect the family of an original-layout file; `prediction` overrides the detected one.

    Raises UnknownLayout, which names other kinds of files.
    """
    kind = match(header.tensors)
    family = kind.family
    if family is None:
        unsupported = ", which is not supported" if kind in TRANSFORMERS else ""
        raise UnknownLayout(
            f"this is {kind.name}{unsupported}; a whole {SUPPORTED} model is needed here"
        )
    unet, vae = strip_prefix(header.tensors, f"{UNET}."), strip_prefix(header.tensors, f"{VAE}.")
    texts = _texts(header.tensors, family)
    network = unet_config(unet, family.unet, texts[-1].projection)
    prediction = prediction or prediction_of(header, family)
    process = replace(family.process, zero_snr="ztsnr" in header.tensors)
    defaults = SD21.defaults if family is SD21_BASE and prediction == "v" else family.defaults
    defaults = replace(defaults, schedule=default_schedule(process))
    return check_family(
        replace(
            family,
            name=family_name(network),
            network=network,
            vae=vae_config(vae, family.vae.scaling) if vae else family.vae,
            texts=texts,
            process=process,
            prediction=prediction,
            defaults=for_lcm(defaults) if network.scale_width else defaults,
        )
    )


def match(tensors: Tensors) -> Kind:
    """The kind of a file. Raises UnknownLayout."""
    for kind in KINDS:
        if any(name.startswith(kind.keys) for name in tensors):
            return kind
    some = first_names(list(tensors))
    raise UnknownLayout(f"no known layout: it contains {some}; supported are {SUPPORTED}")


def prediction_of(header: Header, family: Family) -> str:
    """The prediction type: from metadata, else marker tensors, else (SD 2) a norm's values."""
    recorded = header.metadata.get("modelspec.prediction_type", "").lower()
    if recorded in PREDICTIONS:
        return PREDICTIONS[recorded]
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
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))
    return "v" if deviation > V_DEVIATION else "eps"


def _floats(ref: TensorRef) -> list[float]:
    """Read a small tensor without torch; numpy has no BF16. Raises BadFile."""
    with open_regular(ref.path) as file:
        file.seek(ref.start)
        content = file.read(ref.nbytes)
    if len(content) < ref.nbytes or ref.dtype not in STRUCT_FORMATS:
        raise BadFile(f"{ref.path.name}: a norm of {ref.dtype} that cannot be read; {ADVICE}")
    if ref.dtype == "BF16":  # the upper half of a float32
        content = b"".join(b"\0\0" + content[i : i + 2] for i in range(0, len(content), 2))
    return [value for (value,) in struct.iter_unpack(STRUCT_FORMATS[ref.dtype], content)]


def unet_config(tensors: Tensors, like: UNetConfig, pooled: int) -> UNetConfig:
    """The U-Net's config from its tensors, named as after `model.diffusion_model.`."""
    inputs, width = _shape(tensors, "input_blocks.0.0.weight", 4)[1::-1]
    outputs = _shape(tensors, "out.2.weight", 4)[0]
    channels, down = _down_levels(tensors, width)
    layers, levels = len(down[0]), len(channels)
    up = _up_levels(tensors, layers + 1, levels)
    attention = tuple(any(depths) for depths in down)
    # A last level without attention has the depth of the middle block.
    deepest = count_modules(tensors, "middle_block.1.transformer_blocks.")
    if not attention[-1]:
        down[-1], up[-1] = [deepest or 1], [deepest or 1]
    depth, up_depth = _depths(down, attention), _depths(up, attention)
    first = _first_attention(tensors)
    added = _shape(tensors, "label_emb.0.0.weight", 2)[1] if pooled else 0
    fixed_head_dim, scale = like.linear_projection, "time_embed.cond_proj.weight"
    return UNetConfig(
        in_channels=inputs,
        out_channels=outputs,
        channels=tuple(channels),
        layers=layers,
        attention=attention,
        depth=depth,
        up_depth=None if up_depth == depth else up_depth,
        middle="full"
        if deepest
        else "residual"
        if count_modules(tensors, "middle_block.")
        else "none",
        heads=tuple(max(1, width // HEAD_DIM) if fixed_head_dim else 8 for width in channels),
        cross_dim=_shape(tensors, f"{first}.transformer_blocks.0.attn2.to_k.weight", 2)[1],
        linear_projection=len(_shape(tensors, f"{first}.proj_in.weight", None)) == 2,
        pooled=pooled,
        sizes=(added - pooled) // like.size_width,
        scale_width=_shape(tensors, scale, 2)[1] if scale in tensors else 0,
    )


def vae_config(tensors: Tensors, scaling: float, diffusers: bool = False) -> VAEConfig:
    """The VAE's config from its tensors, named as after `first_stage_model.` or in `diffusers`."""
    names = ("down_blocks", "resnets", "mid_block.attentions.0.", "up_blocks")
    down, block, attention, up = names if diffusers else ("down", "block", "mid.attn_1.", "up")
    start, end = f"encoder.{down}.", f"decoder.{up}."
    levels = range(count_modules(tensors, start))

    def widths(place: str) -> tuple[int, ...]:
        first = (f"{place}{level}.{block}.0.conv1.weight" for level in levels)
        return tuple(_shape(tensors, name, 4)[0] for name in first)

    channels, decoder = widths(start), widths(end)[:: -1 if diffusers else 1]
    normed, quant = "bn.running_mean" in tensors, ("quant_conv.weight", "encoder.quant_conv.weight")
    patch = FLUX2_VAE.patch if normed else 1
    return VAEConfig(
        scaling=1.0 if normed else scaling,
        latent_channels=_shape(tensors, "decoder.conv_in.weight", 4)[1] * patch**2,
        channels=channels,
        layers=count_modules(tensors, f"{start}0.{block}."),
        mid_attention=any(name.startswith(f"decoder.{attention}") for name in tensors),
        quant_conv=any(name in tensors for name in quant),
        patch=patch,
        norm_eps=FLUX2_VAE.norm_eps if normed else 0.0,
        decoder_channels=None if decoder == channels else decoder,
    )


def _texts(tensors: Tensors, family: Family) -> tuple[TextConfig, ...]:
    """The text encoders' configs."""
    if family is SDXL:
        clip = clip_config(strip_prefix(tensors, f"{XL_CLIP}."), SDXL.clip_texts[0])
        return clip, _open_clip(tensors, XL_OPEN_CLIP, XL_BIG_G)
    if family is SDXL_REFINER:
        return (_open_clip(tensors, REFINER_CLIP, XL_BIG_G),)
    if family is SD15:
        return (clip_config(strip_prefix(tensors, f"{CLIP}."), SD15.clip_texts[0]),)
    return (_open_clip(tensors, OPEN_CLIP, SD21.clip_texts[0]),)


def clip_config(tensors: Tensors, like: TextConfig) -> TextConfig:
    """A CLIP config from transformers' names, with or without `text_model`."""
    projection, clip = like.projection, strip_prefix(tensors, "text_model.") or tensors
    if projection:
        projection = _shape(tensors, "text_projection.weight", 2)[0]
    layers = count_modules(clip, "encoder.layers.")
    token, position = "embeddings.token_embedding.weight", "embeddings.position_embedding.weight"
    mlp = _shape(clip, "encoder.layers.0.mlp.fc1.weight", 2)[0]
    return replace(_text_config(clip, token, position, layers, mlp, like), projection=projection)


def _open_clip(tensors: Tensors, prefix: str, like: TextConfig) -> TextConfig:
    """A CLIP config from OpenCLIP's names; SD 2 does not use the last layer, SDXL pools it."""
    clip = strip_prefix(tensors, f"{prefix}.")
    layers = count_modules(clip, "transformer.resblocks.")
    mlp = _shape(clip, "transformer.resblocks.0.mlp.c_fc.weight", 2)[0]
    used = layers if like.projection or layers == OPEN_CLIP_USED else max(1, layers - 1)
    token, position = "token_embedding.weight", "positional_embedding"
    text = _text_config(clip, token, position, used, mlp, like)
    if not like.projection:
        return text
    return replace(text, projection=_shape(clip, "text_projection", 2)[1])


def _text_config(
    tensors: Tensors, token: str, position: str, layers: int, mlp: int, like: TextConfig
) -> TextConfig:
    vocab, width = _shape(tensors, token, 2)
    length = _shape(tensors, position, 2)[0]
    heads = max(1, width // HEAD_DIM)
    return replace(
        like, vocab=vocab, width=width, layers=layers, heads=heads, mlp=mlp, length=length
    )


def _down_levels(tensors: Tensors, width: int) -> tuple[list[int], list[list[int]]]:
    """Channels and transformer depths of the down blocks, by level; each ends at a downsampler."""
    channels: list[int] = [width]
    depths: list[list[int]] = [[]]
    for block in range(1, count_modules(tensors, "input_blocks.")):
        if f"input_blocks.{block}.0.op.weight" in tensors:
            channels, depths = [*channels, 0], [*depths, []]
            continue
        channels[-1] = _shape(tensors, f"input_blocks.{block}.0.out_layers.3.weight", 4)[0]
        depths[-1].append(count_modules(tensors, f"input_blocks.{block}.1.transformer_blocks."))
    return channels, depths


def _up_levels(tensors: Tensors, count: int, levels: int) -> list[list[int]]:
    """Transformer depths of the up blocks, `count` a level, in the order of the down levels."""
    blocks = range(count_modules(tensors, "output_blocks."))
    each = [
        count_modules(tensors, f"output_blocks.{block}.1.transformer_blocks.") for block in blocks
    ]
    return [each[level * count :][:count] for level in reversed(range(levels))]


def _depths(levels: list[list[int]], attention: tuple[bool, ...]) -> tuple[Depth, ...]:
    """Transformer depths by level: one number where those of a level are equal."""
    each = [tuple(level) if len(set(level)) > 1 else sum(level[:1]) for level in levels]
    return normalise_depths(each, attention)


def _first_attention(tensors: Tensors) -> str:
    """The name of the first transformer. Raises UnknownLayout if there is none."""
    end = ".transformer_blocks.0.attn2.to_k.weight"
    names = sorted(name for name in tensors if name.endswith(end))
    if not names:
        raise UnknownLayout("a U-Net without attention on the text, which no SD model has")
    return names[0].removesuffix(end)
