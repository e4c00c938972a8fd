"""Which family a single file in the original layout is of, told by its keys and shapes."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from txt2img.errors import UnknownLayout
from txt2img.escape import shown
from txt2img.models.text import TextConfig
from txt2img.models.unet import UNetConfig
from txt2img.models.vae import VAEConfig
from txt2img.weights.families import SD15, SD21, SD21_BASE, Family, checked, schedule_for, special
from txt2img.weights.files import Header, Stored, tensor
from txt2img.weights.keymaps import CLIP, OPEN_CLIP, UNET, VAE, below

Tensors = Mapping[str, Stored]
HEAD = 64  # features of one attention head in SD 2 and in every published CLIP text model
OPEN_CLIP_USED = 23  # layers of ViT-H that SD 2 uses; some files leave out the 24th
# ComfyUI's: SD 2's v-prediction models have a last text-attention norm this uneven.
V_UNEVEN = 0.09
PREDICTIONS = {"epsilon": "eps", "eps": "eps", "v": "v", "v_prediction": "v", "v-prediction": "v"}


@dataclass(frozen=True)
class Row:
    """A kind of file and the key that gives it away; any of several, the first row wins."""

    name: str
    keys: tuple[str, ...]
    family: Family | None = None  # None: known, but not supported


ROWS = (
    Row("a Stable Diffusion XL model", (f"{UNET}.label_emb.0.0.weight", "conditioner.embedders.")),
    Row("a Stable Diffusion 3 model", (f"{UNET}.joint_blocks.", "joint_blocks.")),
    Row("a FLUX model", (f"{UNET}.double_blocks.", "double_blocks.")),
    Row("Stable Diffusion 2", (f"{OPEN_CLIP}.transformer.resblocks.",), SD21_BASE),
    Row(
        "Stable Diffusion 1",
        (f"{CLIP}.text_model.encoder.layers.", f"{CLIP}.encoder.layers."),
        SD15,
    ),
    Row("a Stable Diffusion model without its text encoder", (f"{UNET}.input_blocks.",)),
    Row(
        "a LoRA, which changes a model and is not one", ("lora_unet_", "lora_te_", "unet.down_blo")
    ),
    Row("a single network of a diffusers folder; give the folder", ("down_blocks.", "encoder.do")),
    Row("a VAE alone", (f"{VAE}.", "encoder.down.", "decoder.up.")),
    Row("a text encoder alone", ("text_model.", "embeddings.token_embedding")),
    Row("a ControlNet", ("control_model.", "controlnet_")),
)


def detect(header: Header, prediction: str | None = None) -> Family:
    """The family of an original-layout file; `prediction` overrules what the file seems to predict.

    Raises UnknownLayout, which names what the file seems to be.
    """
    row = _row(header.tensors)
    family = row.family
    if family is None:
        raise UnknownLayout(f"this is {row.name}; a whole SD 1 or SD 2 model is needed here")
    unet, vae = below(header.tensors, UNET), below(header.tensors, VAE)
    network = _unet(unet, family)
    kind = prediction or _prediction(header, family)
    process = replace(family.process, zero_snr="ztsnr" in header.tensors)
    text = _clip(header.tensors) if family is SD15 else _open_clip(header.tensors)
    defaults = SD21.defaults if family is SD21_BASE and kind == "v" else family.defaults
    return checked(
        replace(
            family,
            network=network,
            vae=_vae(vae),
            text=text,
            process=process,
            prediction=kind,
            defaults=replace(defaults, schedule=schedule_for(process)),
        )
    )


def _row(tensors: Tensors) -> Row:
    for row in ROWS:
        if any(name.startswith(row.keys) for name in tensors):
            return row
    some = ", ".join(shown(name) for name in list(tensors)[:2]) or "no tensors"
    raise UnknownLayout(f"no known layout: it holds {some}; SD 1 and SD 2 models are supported")


def _prediction(header: Header, family: Family) -> str:
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
    uneven = torch.std(tensor(last, header.tensors[last]).float(), unbiased=False).item()
    return "v" if uneven > V_UNEVEN else "eps"


def _unet(tensors: Tensors, family: Family) -> UNetConfig:
    """The U-Net's shape from its tensors' (below model.diffusion_model)."""
    inputs, width = _shape(tensors, "input_blocks.0.0.weight", 4)[1::-1]
    outputs = _shape(tensors, "out.2.weight", 4)[0]
    if inputs != outputs:
        raise UnknownLayout(special(inputs, outputs))
    # 1. blocks go on until a step to the smaller map, level after level
    channels, attention, depth, layers, here = [width], [False], [0], 0, 0
    for block in range(1, _count(tensors, "input_blocks.")):
        if f"input_blocks.{block}.0.op.weight" in tensors:
            layers, here = layers or here, 0
            channels, attention, depth = [*channels, 0], [*attention, False], [*depth, 0]
            continue
        here += 1
        channels[-1] = _shape(tensors, f"input_blocks.{block}.0.out_layers.3.weight", 4)[0]
        if blocks := _count(tensors, f"input_blocks.{block}.1.transformer_blocks."):
            attention[-1], depth[-1] = True, blocks
    # 2. the middle tells what all levels share, and the depth of a last one without attention
    middle = "middle_block.1"
    deepest = _count(tensors, f"{middle}.transformer_blocks.")
    cross_dim = _shape(tensors, f"{middle}.transformer_blocks.0.attn2.to_k.weight", 2)[1]
    by_width = family.network.linear_projection
    return UNetConfig(
        in_channels=inputs,
        out_channels=outputs,
        channels=tuple(channels),
        layers=layers or here,
        attention=tuple(attention),
        depth=tuple(blocks or deepest for blocks in depth),
        heads=tuple(max(1, width // HEAD) if by_width else 8 for width in channels),
        cross_dim=cross_dim,
        linear_projection=len(_shape(tensors, f"{middle}.proj_in.weight", None)) == 2,
    )


def _vae(tensors: Tensors) -> VAEConfig:
    """The VAE's shape from its tensors' (below first_stage_model)."""
    levels = _count(tensors, "encoder.down.")
    channels = tuple(
        _shape(tensors, f"encoder.down.{level}.block.0.conv1.weight", 4)[0]
        for level in range(levels)
    )
    return VAEConfig(
        latent_channels=_shape(tensors, "decoder.conv_in.weight", 4)[1],
        channels=channels,
        layers=_count(tensors, "encoder.down.0.block."),
        mid_attention="decoder.mid.attn_1.q.weight" in tensors,
        quant_conv="quant_conv.weight" in tensors,
    )


def _clip(tensors: Tensors) -> TextConfig:
    """SD 1's text encoder: CLIP in transformers' layout, with or without `text_model`."""
    found = below(tensors, CLIP)
    found = below(found, "text_model") or found
    layers = _count(found, "encoder.layers.")
    token, position = "embeddings.token_embedding.weight", "embeddings.position_embedding.weight"
    mlp = _shape(found, "encoder.layers.0.mlp.fc1.weight", 2)[0]
    return _sized(found, token, position, layers, mlp, SD15.text)


def _open_clip(tensors: Tensors) -> TextConfig:
    """SD 2's text encoder: OpenCLIP, of which the last layer is not used."""
    found = below(tensors, OPEN_CLIP)
    layers = _count(found, "transformer.resblocks.")
    mlp = _shape(found, "transformer.resblocks.0.mlp.c_fc.weight", 2)[0]
    used = layers if layers == OPEN_CLIP_USED else max(1, layers - 1)
    token, position = "token_embedding.weight", "positional_embedding"
    return _sized(found, token, position, used, mlp, SD21.text)


def _sized(
    tensors: Tensors, token: str, position: str, layers: int, mlp: int, like: TextConfig
) -> TextConfig:
    vocab, width = _shape(tensors, token, 2)
    length = _shape(tensors, position, 2)[0]
    heads = max(1, width // HEAD)
    return replace(
        like, vocab=vocab, width=width, layers=layers, heads=heads, mlp=mlp, length=length
    )


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
