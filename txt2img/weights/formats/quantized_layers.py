"""Quantised layers of safetensors files: ComfyUI's 8 bits; other programs' are refused by name.

ComfyUI describes a layer by JSON, in bytes beside its weight or in the file's metadata, and names
its scale; files from before name the scale only.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn, Protocol

from txt2img.errors import BadFile, UnknownLayout
from txt2img.system.files import ADVICE, open_regular, parse_object
from txt2img.system.text import shown

FLOAT8 = ("F8_E4M3", "F8_E5M2")
# A weight's scale, earlier and now, and that of the layer's input, which is for 8-bit arithmetic.
SCALES = {"scale_weight": "scale_input", "weight_scale": "input_scale"}
SCALE_DTYPES = ("F32", "F16", "BF16", "F64")
DESCRIPTION = "comfy_quant"  # a layer's, as JSON in bytes
DESCRIPTION_MAX = 2**12  # bytes
METADATA = "_quantization_metadata"  # the descriptions of all layers
MARKER = "scaled_fp8"  # a tensor that only names the 8-bit dtype of a file
PREFIX = "model.diffusion_model."  # which layers in the metadata may lack
FORMATS = {"float8_e4m3fn": FLOAT8, "float8_e5m2": FLOAT8, "int8_tensorwise": ("I8",)}
GROUPS = tuple(4**n for n in range(1, 7))  # of inputs that ConvRot rotates together
GROUP = 256
INSTEAD = "use its GGUF, fp8 or int8 (ConvRot) version, or the bf16 one"
# Endings of tensors that only one program writes, and what it calls its format.
FOREIGN = {
    "weight_scale_2": "nvfp4",
    "wscales": "nunchaku's SVDQuant",
    "SCB": "bitsandbytes' int8",
    "bitsandbytes__nf4": "bitsandbytes' nf4",
    "bitsandbytes__fp4": "bitsandbytes' fp4",
    "g_idx": "GPTQ",
    "qzeros": "AWQ",
    "zero_point": "SDNQ",
    "svd_up": "SDNQ",
    "weight_scale_inv": "fp8 in blocks",
}
METHODS = {"sdnq": "SDNQ", "gptq": "GPTQ", "awq": "AWQ", "svdquant": "nunchaku's SVDQuant"}


SIGNS = {*SCALES, DESCRIPTION, MARKER, *FOREIGN}  # endings of names that need a look


class StoredTensor(Protocol):
    """A tensor in a file, as far as it is looked at here."""

    @property
    def path(self) -> Path: ...
    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def start(self) -> int: ...
    @property
    def nbytes(self) -> int: ...


Tensors = Mapping[str, StoredTensor]


def scales(
    tensors: Tensors, metadata: Mapping[str, str]
) -> tuple[dict[str, tuple[str, int]], set[str]]:
    """Quantised weights with their scales' names and the groups that are rotated; what to drop.

    Raises UnknownLayout for layers that are quantised in another way, BadFile for malformed ones.
    """
    descriptions = _descriptions(tensors, metadata)
    found: dict[str, tuple[str, int]] = {}
    dropped = {name for name in tensors if name.split(".")[-1] in (MARKER, DESCRIPTION)}
    for name, scale in tensors.items():
        layer, _, ending = name.rpartition(".")
        weight = tensors.get(f"{layer}.weight")
        if ending not in SCALES or weight is None:
            continue
        given = descriptions.pop(layer, None)
        if given is None and weight.dtype not in FLOAT8:
            continue
        found[f"{layer}.weight"] = name, _group(f"{layer}.weight", weight, scale, given)
        dropped |= {name, f"{layer}.{SCALES[ending]}"}
    for layer, given in descriptions.items():
        _check_unscaled(tensors, layer, given)
    endings = {name.rpartition(".")[2]: ref for name, ref in tensors.items()}
    for ending, kind in FOREIGN.items():
        if ending in endings:
            _refuse(endings[ending].path.name, kind)
    return found, dropped


def refuse_method(config: object, name: str) -> None:
    """Raise UnknownLayout for a network whose config.json says how it is quantised."""
    given = config if isinstance(config, dict) else {}
    method = str(given.get("quant_method", given.get("quant_type", "")))
    _refuse(name, METHODS.get(method.lower(), shown(method)))


def _group(
    name: str, weight: StoredTensor, scale: StoredTensor, given: Mapping[str, object] | None
) -> int:
    """The inputs of a scaled weight that are rotated together; 0 if none are. Raises as above."""
    where = f"{weight.path.name}: {shown(name, 120)}"
    kind = "float8_e4m3fn" if given is None else str(given.get("format"))
    if kind not in FORMATS:
        _refuse(weight.path.name, shown(kind)[1:-1])
    if weight.dtype not in FORMATS[kind]:
        raise BadFile(f"{where} is {weight.dtype}, but described as {kind}; {ADVICE}")
    if scale.dtype == "U8":
        _refuse(weight.path.name, "mxfp8")
    shape, count = weight.shape, math.prod(scale.shape)
    if scale.dtype not in SCALE_DTYPES or len(shape) < 2 or count not in (1, shape[0]):
        raise BadFile(
            f"{where} {shape} has a scale of {scale.dtype} {scale.shape}; it must be one float, or "
            f"one for each row; {ADVICE}"
        )
    if given is None or given.get("convrot", False) is False:
        return 0
    group = given.get("convrot_groupsize", GROUP)
    if type(group) is not int or group not in GROUPS or len(shape) != 2 or shape[1] % group:
        raise BadFile(
            f"{where} {shape} is rotated by groups of {shown(group)}; they must be a power of 4 "
            f"that divides the columns; {ADVICE}"
        )
    return group


def _descriptions(tensors: Tensors, metadata: Mapping[str, str]) -> dict[str, Mapping[str, object]]:
    """The descriptions of quantised layers, by layer. Raises BadFile."""
    found: dict[str, Mapping[str, object]] = {}
    if METADATA in metadata:
        content = parse_object(metadata[METADATA].encode(), METADATA)
        layers = content.get("layers", {})
        for layer, given in layers.items() if isinstance(layers, dict) else ():
            full = layer if f"{layer}.weight" in tensors else f"{PREFIX}{layer}"
            found[full] = given if isinstance(given, dict) else {"format": given}
    by_path: dict[Path, list[str]] = {}
    for name, ref in tensors.items():
        if name.endswith(f".{DESCRIPTION}"):
            by_path.setdefault(ref.path, []).append(name)
    for path, names in by_path.items():
        with open_regular(path) as file:
            for name in names:
                file.seek(tensors[name].start)
                content = parse_object(
                    file.read(min(tensors[name].nbytes, DESCRIPTION_MAX)), path.name
                )
                found[name.removesuffix(f".{DESCRIPTION}")] = content
    return found


def _check_unscaled(tensors: Tensors, layer: str, given: Mapping[str, object]) -> None:
    """Raise unless a layer that is described, but has no scale, needs none."""
    weight = tensors.get(f"{layer}.weight")
    ref = weight or tensors.get(f"{layer}.{DESCRIPTION}")
    kind = str(given.get("format"))
    if ref is None:
        return  # the metadata of a larger file that this one was cut out of
    if kind not in FORMATS:
        _refuse(ref.path.name, shown(kind)[1:-1])
    if weight is None or weight.dtype not in FLOAT8:
        layer_name = f"{ref.path.name}: {shown(layer, 120)} is quantized as {kind}"
        raise BadFile(f"{layer_name}, but its weight or its weight_scale is missing; {ADVICE}")


def _refuse(name: str, kind: str) -> NoReturn:
    raise UnknownLayout(f"{shown(name)} is quantized as {kind}, which is not supported; {INSTEAD}")
