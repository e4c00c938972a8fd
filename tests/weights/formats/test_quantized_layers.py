"""Layers that ComfyUI quantised are read exactly; other and malformed ones are refused by name."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.support import comfy_files
from tests.support.comfy_files import description
from txt2img.errors import BadFile, UnknownLayout
from txt2img.models.optimize.packed import rotated, rotation
from txt2img.weights.formats import safetensors_file, tensors

CPU = torch.device("cpu")
ROWS, COLUMNS = 6, 512


def matrix() -> Tensor:
    """A weight with a column of outliers, as those of transformers are."""
    weight = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(0))
    weight[:, 3] *= 40
    return weight


MADE = {
    "fp8": comfy_files.fp8(matrix()),
    "fp8, a scale for each row": comfy_files.fp8(matrix(), "float8_e5m2", rows=True),
    "fp8, as before": comfy_files.fp8(matrix(), old=True),
    "int8": comfy_files.int8(matrix()),
    "int8, rotated": comfy_files.int8(matrix(), 256),
    "int8, rotated by a few": comfy_files.int8(matrix(), 16),
}


def saved(path: Path, layer: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    parts = {f"unet.a.{name}": value.clone() for name, value in layer.items()}
    save_file(parts | {"unet.scaled_fp8": torch.empty(0)}, path, metadata)
    return path


@pytest.mark.parametrize("kind", MADE)
def test_weights_are_those_that_were_quantised(tmp_path: Path, kind: str) -> None:
    """Read wide, and packed; whole, in parts, with halves exchanged."""
    parts, expected = MADE[kind]
    header = safetensors_file.header(saved(tmp_path / "a.safetensors", parts))
    assert set(header.tensors) == {"unet.a.weight"}
    ref = header.tensors["unet.a.weight"]
    assert ref.is_quantized and ref.nbytes < ROWS * (COLUMNS + 5)
    for part, want in (
        (ref, expected),
        (ref.take(1, 4), expected[1:5]),
        (ref.chunk(2, 3), expected[4:]),
        (ref.swap_halves(), expected.roll(ROWS // 2, 0)),
    ):
        wide = tensors.read({"w": part}, CPU, torch.float32)["w"]
        assert (wide - want).abs().max() <= 1e-6 * want.abs().max()
        blocks = tensors.read_packed({"w": part}, CPU)["w"].view(torch.uint8)
        assert tuple(blocks.shape) == tensors.block_shape(part)
        rows = torch.empty(part.shape)
        tensors.unpack_of(part)(blocks, rows)
        again = rotated(rows, part.rotation) if part.rotation else rows
        assert torch.equal(again, wide)


def test_rotating_makes_outliers_harmless() -> None:
    """The reason for ConvRot: an outlier's size is shared by its group."""
    errors = [
        float((comfy_files.int8(matrix(), group)[1] - matrix()).norm() / matrix().norm())
        for group in (0, 256)
    ]
    assert errors[1] < errors[0] / 2
    for group in (4, 16, 64, 256):
        ours = rotation(group, CPU).double()
        assert torch.equal(ours, comfy_files.rotation(group))
        assert torch.equal(ours, ours.T) and torch.equal(ours @ ours, torch.eye(group).double())


def test_layers_may_be_described_in_the_metadata(tmp_path: Path) -> None:
    parts, expected = MADE["int8, rotated"]
    told = json.loads(bytes(parts["comfy_quant"].tolist()))
    content = {"format_version": "1.0", "layers": {"unet.a": told, "elsewhere": "nvfp4"}}
    bare = {name: value for name, value in parts.items() if name != "comfy_quant"}
    metadata = {"_quantization_metadata": json.dumps(content)}
    header = safetensors_file.header(saved(tmp_path / "a.safetensors", bare, metadata))
    wide = tensors.read(header.tensors, CPU, torch.float32)["unet.a.weight"]
    assert (wide - expected).abs().max() <= 1e-6 * expected.abs().max()


def told(**layer: object) -> dict[str, Tensor]:
    return {"comfy_quant": description(**layer)}


INT8 = comfy_files.int8(matrix(), 256)[0]
FP8 = comfy_files.fp8(matrix())[0]
EMPTY = torch.empty(0)
CONVROT = {"format": "int8_tensorwise", "convrot": True}
REFUSED: dict[str, tuple[dict[str, Tensor], str]] = {
    "nvfp4": (told(format="nvfp4"), "quantized as nvfp4, which is not supported; use its GGUF"),
    "nvfp4 undescribed": ({"weight_scale_2": EMPTY}, "quantized as nvfp4,"),
    "mxfp8": (told(format="mxfp8"), "quantized as mxfp8,"),
    "mxfp8 undescribed": (
        {"weight": FP8["weight"], "weight_scale": torch.zeros(6, 16, dtype=torch.uint8)},
        "quantized as mxfp8,",
    ),
    "w4a4": (INT8 | told(format="convrot_w4a4"), "quantized as convrot_w4a4,"),
    "fp8 in blocks": (FP8 | told(format="float8_e4m3fn_blockwise"), "as float8_e4m3fn_blockwise,"),
    "nunchaku": ({"qweight": EMPTY, "wscales": EMPTY}, "quantized as nunchaku's SVDQuant,"),
    "GPTQ": ({"qweight": EMPTY, "qzeros": EMPTY, "g_idx": EMPTY}, "quantized as GPTQ,"),
    "AWQ": ({"qweight": EMPTY, "qzeros": EMPTY}, "quantized as AWQ,"),
    "SDNQ": ({"scale": EMPTY, "zero_point": EMPTY}, "quantized as SDNQ,"),
    "nf4": ({"weight.quant_state.bitsandbytes__nf4": EMPTY}, "quantized as bitsandbytes' nf4,"),
    "broken JSON": (FP8 | {"comfy_quant": torch.zeros(9, dtype=torch.uint8)}, "broken JSON"),
    "endless JSON": (
        FP8 | {"comfy_quant": torch.full((2**16,), ord(" "), dtype=torch.uint8)},
        "broken JSON",
    ),
    "another dtype": (INT8 | told(format="float8_e4m3fn"), "is I8, but described as float8_e4m3fn"),
    "no format": (INT8 | told(convrot=True), "quantized as None,"),
    "no scale": ({"weight": INT8["weight"]} | told(format="int8_tensorwise"), "is missing"),
    "no weight": (told(format="int8_tensorwise"), "is missing"),
    "scales of another count": (
        INT8 | {"weight_scale": torch.ones(5)},
        r"a scale of F32 \(5,\); it must be one float",
    ),
    "scales of integers": (
        INT8 | {"weight_scale": torch.ones(6, dtype=torch.int32)},
        r"a scale of I32 \(6,\)",
    ),
    "groups of no power of 4": (
        INT8 | told(**CONVROT, convrot_groupsize=128),
        "is rotated by groups of 128; they must be a power of 4",
    ),
    "groups that do not divide": (
        INT8 | told(**CONVROT, convrot_groupsize=1024),
        "is rotated by groups of 1024",
    ),
    "groups in words": (INT8 | told(**CONVROT, convrot_groupsize="all"), 'by groups of "all"'),
}


@pytest.mark.parametrize(("layer", "words"), REFUSED.values(), ids=REFUSED)
def test_other_and_malformed_layers_are_refused_in_one_line(
    tmp_path: Path, layer: dict[str, Tensor], words: str
) -> None:
    with pytest.raises(BadFile, match=words) as caught:
        safetensors_file.header(saved(tmp_path / "a.safetensors", layer))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize("method", ["sdnq", "gptq", "bitsandbytes"])
def test_a_folder_says_in_its_config_how_it_is_quantised(tmp_path: Path, method: str) -> None:
    save_file({"a.weight": torch.ones(2)}, tmp_path / "model.safetensors")
    config = {"quantization_config": {"quant_method": method}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnknownLayout, match=rf"(?i)is quantized as .?{method}.?, which is not"):
        safetensors_file.component(tmp_path, "model")


@pytest.mark.parametrize(
    ("layer", "at"),
    [
        (INT8 | {"weight_scale": torch.full((6, 1), torch.nan)}, "scale"),
        (FP8 | {"weight_scale": torch.tensor(torch.inf)}, "scale"),
        (FP8 | {"weight": torch.full((6, 512), torch.nan).to(torch.float8_e4m3fn)}, "weight"),
        (FP8 | {"weight": torch.full((6, 512), torch.inf).to(torch.float8_e5m2)}, "weight"),
    ],
)
def test_values_that_are_not_finite_are_refused(
    tmp_path: Path, layer: dict[str, Tensor], at: str
) -> None:
    refs = safetensors_file.header(saved(tmp_path / "a.safetensors", layer)).tensors
    for read in (
        lambda: tensors.read_packed(refs, CPU),
        lambda: tensors.read(refs, CPU, torch.float32),
    ):
        with pytest.raises(BadFile, match="not finite"):
            read()
