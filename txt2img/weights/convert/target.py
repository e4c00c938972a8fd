"""What weights are converted to: a dtype, ComfyUI's 8 bits, or one of GGUF's types."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from txt2img.errors import BadRequest, MissingWeights
from txt2img.models.optimize.packed import rotated
from txt2img.system.text import nearest, shown
from txt2img.weights.formats import tensors
from txt2img.weights.formats.dequantize import EIGHT
from txt2img.weights.formats.quantize_blocks import ENCODERS, quantize
from txt2img.weights.formats.quantized_layers import DESCRIPTION, FLOAT8
from txt2img.weights.formats.safetensors_file import TensorRef
from txt2img.weights.formats.writers import BLOCKS, PlannedTensor

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
NAMES = {"fp32": "F32", "fp16": "F16", "bf16": "BF16", "fp8": "F8_E4M3", "int8": "I8"}
OTHER_NAMES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "half": "fp16"}
GGUF_TYPES = (*ENCODERS, *DTYPES)
SMALL = 1024  # values, up to which a tensor is not worth quantising
LARGE = 2**20  # values, from which on a table of tokens is worth 8 bits
GROUPS = (256, 64, 16)  # inputs that ConvRot rotates together: the most that divide a row
# Types that stand in where a row is no whole blocks of 256, as in llama.cpp.
FALLBACKS = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
PREFIX = "model.diffusion_model."
# Layers that are small and matter much, which city96's converter keeps wide, too: the first and the
# last, embeddings of times, sizes and texts; and language models' tables of tokens.
_WIDE = re.compile(
    r"(^|\.)(img_in|txt_in|time_in|vector_in|guidance_in|final_layer|time_embed|label_emb"
    r"|time_embedding|add_embedding|t_embedder|y_embedder|x_embedder|all_x_embedder"
    r"|all_final_layer|context_embedder|cap_embedder|time_text_embed|time_guidance_embed"
    r"|pos_embed|x_pad_token|cap_pad_token|token_embedding|position_embedding"
    r"|positional_embedding|shared|embed_tokens|relative_attention_bias"
    r"|attn_rel_b|token_embd|output|lm_head|text_projection)"
    r"(\.|$)|^(conv_in|conv_out|proj_out|norm_out|out\.2|input_blocks\.0\.0)\."
)
_VAE = re.compile(
    r"(first_stage_model|vae)\.|(encoder|decoder)\.(conv|down|mid|up|norm|quant|post)"
)


@dataclass(frozen=True)
class Part:
    """A tensor to be written: those that it is read from, one below the other."""

    name: str
    refs: tuple[TensorRef, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        first = self.refs[0].shape
        rows = sum(ref.shape[0] for ref in self.refs) if first else 0
        return (rows, *first[1:]) if first else first

    @property
    def dtype(self) -> str:
        """The dtype of the first that it is read from."""
        return self.refs[0].dtype

    @property
    def is_narrow(self) -> bool:
        """Whether it is quantised already, or in 8-bit floats."""
        return any(ref.is_quantized or ref.is_float8 for ref in self.refs)

    def read(self, files: tensors.Files) -> Tensor:
        """Its values, in their dtype or dequantised to float32. Raises BadFile."""
        values = [tensors.read_stored(self.name, ref, files) for ref in self.refs]
        values = [value.float() if value.dtype.itemsize == 1 else value for value in values]
        return values[0] if len(values) == 1 else torch.cat(values)


@dataclass(frozen=True)
class Target:
    """A way to store weights: `kind` is a dtype of DTYPES, F8_E4M3, I8, a GGUF type, or empty.

    Empty is each tensor's own dtype.
    """

    kind: str
    gguf: bool = False
    reshapes: bool = False  # rows that are no whole blocks are laid out anew, as for U-Nets

    def planned(self, part: Part) -> list[PlannedTensor]:
        """The tensors that a part becomes."""
        kind, shape = self.kind_of(part), part.shape
        if kind in (FLOAT8[0], "I8"):
            layer = part.name.removesuffix("weight")
            scales = (shape[0], 1) if kind == "I8" else ()
            length = len(self._description(part))
            return [
                PlannedTensor(part.name, kind, shape, prod(shape)),
                PlannedTensor(f"{layer}weight_scale", "F32", scales, 4 * prod(scales)),
                PlannedTensor(f"{layer}{DESCRIPTION}", "U8", (length,), length),
            ]
        values, nbytes = BLOCKS.get(kind, (1, 0))
        count = prod(shape)
        if not self.gguf and kind not in DTYPES:  # whole numbers, which stay
            return [PlannedTensor(part.name, kind, shape, sum(ref.nbytes for ref in part.refs))]
        return [PlannedTensor(part.name, kind, shape, count // values * nbytes)]

    def encoded(self, part: Part, files: tensors.Files) -> list[Tensor]:
        """The contents of what `planned` gives. Raises BadFile, MissingWeights."""
        kind, value = self.kind_of(part), part.read(files)
        if kind in ENCODERS:
            return [quantize(value.float().flatten(), kind)]
        if kind == "I8":
            return self._int8(part, value.float())
        if kind == FLOAT8[0]:
            scale = value.float().abs().max() / torch.finfo(EIGHT[kind]).max
            numbers = (value.float() / scale.clamp(min=1e-30)).to(EIGHT[kind])
            return [numbers, scale, self._description(part)]
        return [value if kind not in DTYPES else _cast(part, value, DTYPES[kind])]

    def kind_of(self, part: Part) -> str:
        """How a part is stored."""
        if part.dtype not in (*DTYPES, "F64") and not part.is_narrow:
            return part.dtype
        stored = "BF16" if part.is_narrow else "F32" if part.dtype == "F64" else part.dtype
        if self.gguf:
            return self._gguf_kind(part, stored)
        if not self.kind:
            return stored
        if self.kind in DTYPES:
            return self.kind
        return stored if len(part.shape) != 2 or stays_wide(part) else self.kind

    def _gguf_kind(self, part: Part, stored: str) -> str:
        """The GGUF type of a part."""
        if len(part.shape) < 2:
            return "F32"
        count, row = prod(part.shape), part.shape[-1]
        if stays_wide(part):
            is_table = part.name.startswith(("token_embd.", "output.weight"))
            return "F32" if count < LARGE or not is_table or row % 32 else "Q8_0"
        if len(part.shape) > 2 and not self.reshapes:
            return "F32" if self.kind == "F32" else "BF16" if stored == "BF16" else "F16"
        for kind in (self.kind, FALLBACKS.get(self.kind, self.kind)):
            if (count if self.reshapes else row) % BLOCKS[kind][0] == 0:
                return kind
        return "BF16" if stored == "BF16" else "F16"

    def _int8(self, part: Part, value: Tensor) -> list[Tensor]:
        """A matrix in int8, its rows' scales, and what describes it."""
        group = _group(part.shape[1])
        turned = rotated(value, group) if group else value
        scale = turned.abs().amax(1, keepdim=True) / 127
        numbers = (turned / scale.clamp(min=1e-30)).round().clamp(-127, 127).to(torch.int8)
        return [numbers, scale, self._description(part)]

    def _description(self, part: Part) -> Tensor:
        """What ComfyUI reads of a quantised layer: JSON in bytes."""
        told: dict[str, object] = {"format": "float8_e4m3fn"}
        if self.kind == "I8":
            told = {"format": "int8_tensorwise"}
            if group := _group(part.shape[1]):
                told |= {"convrot": True, "convrot_groupsize": group}
        return torch.tensor(list(json.dumps(told).encode()), dtype=torch.uint8)


def parse_target(text: str | None) -> Target:
    """The target that --to names. BadRequest."""
    name = OTHER_NAMES.get((text or "").lower(), (text or "").lower())
    if name in ("", "safetensors"):
        return Target("")
    if name in NAMES:
        return Target(NAMES[name])
    kinds = {f"gguf:{kind}".lower(): kind for kind in GGUF_TYPES}
    if name in kinds:
        return Target(kinds[name], gguf=True)
    allowed = (*NAMES, *(f"gguf:{kind}" for kind in GGUF_TYPES), "safetensors")
    hint = nearest(text or "", allowed) or f"; choose from {', '.join(allowed)}"
    raise BadRequest(f"--to {shown(text)}{hint}")


def stays_wide(part: Part) -> bool:
    """Whether a part is not worth quantising, or would be harmed most."""
    name = part.name.removeprefix(PREFIX)
    is_weight = name.endswith(".weight")  # OpenCLIP's fused ones end otherwise
    return (
        not is_weight or prod(part.shape) <= SMALL or bool(_WIDE.search(name) or _VAE.match(name))
    )


def architecture(names: Sequence[str]) -> str:
    """The architecture of a network in the original layout, as GGUF files name it; "" if unknown.

    FLUX.2 and Z-Image are called as ComfyUI-GGUF calls them.
    """
    signs = {
        "double_blocks.0.": "flux",
        "joint_blocks.0.": "sd3",
        "cap_embedder.": "lumina2",
        "label_emb.": "sdxl",
        "add_embedding.": "sdxl",
        "input_blocks.0.": "sd1",
        "down_blocks.0.": "sd1",
    }
    found = (arch for sign, arch in signs.items() if any(n.startswith(sign) for n in names))
    return next(found, "")


def _group(columns: int) -> int:
    return next((group for group in GROUPS if columns % group == 0), 0)


def _cast(part: Part, value: Tensor, dtype: torch.dtype) -> Tensor:
    """A value in a dtype. Raises MissingWeights if it does not fit."""
    cast = value.to(dtype)
    if not bool(cast.isfinite().all()):
        what = "is too large for" if bool(value.isfinite().all()) else "is not finite in"
        raise MissingWeights(f"{shown(part.name)} {what} {dtype}; use --to bf16 or fp32")
    return cast
