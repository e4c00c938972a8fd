"""ControlNet files: complete lists of published ones at full size, wrong files, hashes."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from diffusers import ControlNetModel, ControlNetUnionModel
from safetensors.torch import save_file
from torch import nn

from tests.support import tiny, tiny_control, tiny_xl
from txt2img.errors import Txt2imgError
from txt2img.models.controlnet import ControlNet
from txt2img.weights.families import SD15, SD21, SDXL, Family
from txt2img.weights.file_summary import summarise
from txt2img.weights.layouts.components import check_tensors
from txt2img.weights.layouts.control import ControlFile, open_control, tensors_loaded

Shapes = Mapping[str, tuple[int, ...]]
SD = {"block_out_channels": (320, 640, 1280, 1280), "layers_per_block": 2}
XL = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "transformer_layers_per_block": (1, 2, 10),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "conditioning_embedding_out_channels": (16, 32, 96, 256),
}
# Of lllyasviel's and thibaud's, diffusers' three sizes for SDXL, xinsir's two Union models.
FULL: dict[str, tuple[Family, type[nn.Module], dict[str, object]]] = {
    "sd15": (SD15, ControlNetModel, SD | {"cross_attention_dim": 768}),
    "sd21": (
        SD21,
        ControlNetModel,
        SD
        | {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20)}
        | {"use_linear_projection": True},
    ),
    "sdxl": (SDXL, ControlNetModel, XL),
    "sdxl-mid": (SDXL, ControlNetModel, XL | {"transformer_layers_per_block": (1, 1, 1)}),
    "sdxl-small": (
        SDXL,
        ControlNetModel,
        XL | {"down_block_types": ("DownBlock2D",) * 3, "mid_block_type": "UNetMidBlock2D"},
    ),
    "union": (SDXL, ControlNetUnionModel, XL | {"num_control_type": 6}),
    "union-promax": (SDXL, ControlNetUnionModel, XL | {"num_control_type": 8}),
}


def shapes_of(kind: type[nn.Module], config: dict[str, object]) -> Shapes:
    with torch.device("meta"):
        return {n: tuple(value.shape) for n, value in kind(**config).state_dict().items()}


def write_header(path: Path, shapes: Shapes, metadata: Mapping[str, str] | None = None) -> Path:
    """A file of these tensors, of which no byte is on the disk."""
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return path


def check_whole(file: ControlFile) -> None:
    """Compare a file's tensors with those of the network that is built for it."""
    with torch.device("meta"):
        state = ControlNet(file.config).state_dict()
    check_tensors("control", file.component, {n: tuple(v.shape) for n, v in state.items()})


@pytest.mark.parametrize("name", FULL)
def test_published_lists_map_one_to_one(name: str, tmp_path: Path) -> None:
    family, kind, config = FULL[name]
    path = write_header(tmp_path / "a.safetensors", shapes_of(kind, config))
    check_whole(open_control(path, family, "m"))
    summary = summarise(path)
    assert summary is not None and (summary.kind, summary.base) == ("ControlNet", family.name)


@pytest.mark.parametrize("name", ["sd15", "sd21", "sdxl"])
@pytest.mark.parametrize("prefix", ["control_model.", ""])
def test_original_lists_map_one_to_one(name: str, prefix: str, tmp_path: Path) -> None:
    family, kind, config = FULL[name]
    with torch.device("meta"):
        network = kind(**config)
    shapes = {f"{prefix}{n}": tuple(v.shape) for n, v in tiny_control.original(network).items()}
    path = write_header(tmp_path / "a.safetensors", shapes)
    check_whole(open_control(path, family, "m"))
    summary = summarise(path)
    assert summary is not None and (summary.kind, summary.base) == ("ControlNet", family.name)


def test_the_original_list_has_the_published_names() -> None:
    """Of lllyasviel's control_sd15: 340 tensors, some of whose names stand in its cldm.py."""
    _, kind, config = FULL["sd15"]
    with torch.device("meta"):
        names = {*tiny_control.original(kind(**config))}
    assert len(names) == 340
    assert names >= {
        *(f"input_hint_block.{i}.weight" for i in range(0, 16, 2)),
        *(f"zero_convs.{i}.0.bias" for i in range(12)),
        "middle_block_out.0.weight",
        "time_embed.2.bias",
        "input_blocks.11.0.out_layers.3.weight",
        "input_blocks.8.1.transformer_blocks.0.attn2.to_k.weight",
        "middle_block.1.proj_in.weight",
    }


def test_a_full_control_lora_needs_the_base_models_tensors_alone(tmp_path: Path) -> None:
    """Stability AI's of rank 256: changes of matrices and filters, biases and norms as a whole."""
    family, kind, config = FULL["sdxl"]
    with torch.device("meta"):
        network = kind(**config)
    shapes: dict[str, tuple[int, ...]] = {"lora_controlnet": (1,)}
    for name, value in tiny_control.original(network).items():
        own = name.startswith(("input_hint_block", "zero_convs", "middle_block_out"))
        if own or value.ndim < 2 or name == "input_blocks.0.0.weight":
            shapes[name] = tuple(value.shape)
        else:
            stem = name.removesuffix(".weight")
            shapes[f"{stem}.up"] = (value.shape[0], 256)
            shapes[f"{stem}.down"] = (256, *value.shape[1:])
    file = open_control(write_header(tmp_path / "a.safetensors", shapes), family, "m")
    assert file.is_lora
    base = {n: v for n, v in open_control(  # any tensors of these names and shapes do
        write_header(tmp_path / "b.safetensors", shapes_of(kind, config)), family, "m"
    ).component.tensors.items()}  # fmt: skip
    with torch.device("meta"):
        state = ControlNet(file.config).state_dict()
    loaded = tensors_loaded(file, base)
    assert {n: ref.shape for n, ref in loaded.items()} == {n: v.shape for n, v in state.items()}


def test_shuffle_is_known_by_its_name(tmp_path: Path) -> None:
    family, kind, config = FULL["sd15"]
    path = tmp_path / "control_v11e_sd15_shuffle.safetensors"
    assert open_control(write_header(path, shapes_of(kind, config)), family, "m").config.global_pool


WRONG = {
    "another family's": ("sdxl", SD15, "is made for Stable Diffusion XL; the model is Stable Diff"),
    "another text width": ("sd15", SD21, "is made for Stable Diffusion 1; the model is"),
    "another text": ("sd21", SD15, "is made for Stable Diffusion 2; the model is"),
    "a small one's": ("sdxl-small", SD15, "is made for Stable Diffusion XL; the model is"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_controlnet_of_another_family_is_told(case: str, tmp_path: Path) -> None:
    name, family, message = WRONG[case]
    _, kind, config = FULL[name]
    path = write_header(tmp_path / "a.safetensors", shapes_of(kind, config))
    with pytest.raises(Txt2imgError, match=message):
        open_control(path, family, "m")


OTHERS: dict[str, tuple[Shapes, str]] = {
    "LLLite": ({"lllite_unet_input_blocks_4.down.0.weight": (4, 4)}, "a ControlLLLite, which is"),
    "FLUX's": ({"controlnet_x_embedder.weight": (4, 4)}, "for a transformer such as FLUX"),
    "SD 3's": ({"controlnet_blocks.0.weight": (4, 4)}, "for a transformer such as SD 3"),
    "a LoRA": ({"lora_unet_a.lora_down.weight": (4, 4)}, "is a LoRA, no ControlNet"),
    "a difference": (
        {"difference": (1,), "control_model.input_hint_block.0.weight": (4, 3, 3, 3)},
        "a difference to a base model",
    ),
    "a U-Net": ({"input_blocks.0.0.weight": (4, 4, 3, 3)}, "is a U-Net, no ControlNet"),
    "an unknown one": ({"a": (4, 4), "b": (4, 4)}, "is unknown, no ControlNet: it contains"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_other_files_are_told(case: str, tmp_path: Path) -> None:
    shapes, message = OTHERS[case]
    path = write_header(tmp_path / "a.safetensors", shapes)
    with pytest.raises(Txt2imgError, match=message) as error:
        open_control(path, SD15, "m")
    assert "\n" not in str(error.value)


def test_a_cut_list_is_told(tmp_path: Path) -> None:
    family, kind, config = FULL["sd15"]
    shapes = dict(shapes_of(kind, config))
    del shapes["controlnet_down_blocks.11.weight"]
    file = open_control(write_header(tmp_path / "a.safetensors", shapes), family, "m")
    with pytest.raises(Txt2imgError, match=r'blocks\.11\.weight" missing'):
        check_whole(file)


def test_half_precision_and_both_folders_are_read(tmp_path: Path) -> None:
    control = tiny_control.control("sd1")
    state = {name: value.half() for name, value in control.network.state_dict().items()}
    save_file(state, tmp_path / "diffusion_pytorch_model.fp16.safetensors")
    from txt2img.weights.checkpoint import open_checkpoint

    family = open_checkpoint(str(tiny.sd1().folder)).family
    check_whole(open_control(tmp_path, family, "m"))
    other = open_checkpoint(str(tiny_xl.base().folder)).family
    with pytest.raises(Txt2imgError, match="is made for"):
        open_control(tmp_path, other, "m")
