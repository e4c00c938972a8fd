"""Families and prediction types, told by keys, shapes, metadata and markers."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import save_file
from torch import Tensor

from txt2img.errors import UnknownLayout
from txt2img.request import Schedule
from txt2img.weights.detect import detect
from txt2img.weights.families import SD15, SD21, SD21_BASE
from txt2img.weights.files import Header, Stored, header

NORM = "model.diffusion_model.output_blocks.5.1.transformer_blocks.0.norm1.bias"


def full(sizes: tiny.Sizes) -> dict[str, Tensor]:
    with torch.device("meta"):
        return tiny.original(*tiny.networks(sizes), sizes.sd2)


def head(tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> Header:
    stored = {n: Stored(Path("x"), "F32", tuple(v.shape), 0, v.nbytes) for n, v in tensors.items()}
    return Header(metadata or {}, stored)


def test_sd15_is_read_off_its_shapes() -> None:
    assert detect(head(full(tiny.FULL_SD1))) == SD15


def test_sd21_is_read_off_its_shapes() -> None:
    tensors = full(tiny.FULL_SD2)
    assert detect(head(tensors), "v") == SD21
    assert detect(head(tensors), "eps") == SD21_BASE


def test_sd2_without_its_unused_layer_keeps_all_layers() -> None:
    kept = {n: v for n, v in full(tiny.FULL_SD2).items() if ".resblocks.23." not in n}
    assert detect(head(kept), "v").text == SD21.text


def small(
    path: Path, metadata: dict[str, str], more: dict[str, Tensor], sd2: bool = True
) -> Header:
    """A tiny file's header, with other metadata and tensors, and few words."""
    model = tiny.sd2() if sd2 else tiny.sd1()
    state = tiny.original(model.unet, model.vae, model.text, sd2)
    words = next(name for name in state if "token_embedding" in name)
    save_file(state | {words: state[words][:9].clone()} | more, path, metadata)
    return header(path)


@pytest.mark.parametrize(
    ("metadata", "more", "wanted"),
    [
        ({"modelspec.prediction_type": "v"}, {}, "v"),
        ({"modelspec.prediction_type": "epsilon"}, {"v_pred": torch.zeros(0)}, "eps"),
        ({"modelspec.architecture": "stable-diffusion-v2-768-v"}, {}, "v"),
        ({}, {"v_pred": torch.zeros(0)}, "v"),
        ({}, {}, "eps"),
        ({}, {NORM: torch.randn(64)}, "v"),
    ],
)
def test_prediction_type_of_sd2(
    tmp_path: Path, metadata: dict[str, str], more: dict[str, Tensor], wanted: str
) -> None:
    found = detect(small(tmp_path / "a.safetensors", metadata, more))
    assert found.prediction == wanted
    assert found.defaults.width == (768 if wanted == "v" else 512)


def test_sd1_predicts_noise_unless_marked(tmp_path: Path) -> None:
    assert detect(small(tmp_path / "a.safetensors", {}, {}, sd2=False)).prediction == "eps"
    marked = {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
    found = detect(small(tmp_path / "b.safetensors", {}, marked, sd2=False))
    assert (found.prediction, found.process.zero_snr) == ("v", True)
    assert found.defaults.schedule == Schedule.TRAILING


UNET = "model.diffusion_model"
OTHERS = [
    (f"{UNET}.label_emb.0.0.weight", "XL"),
    ("conditioner.embedders.1.model.ln_final.weight", "XL"),
    (f"{UNET}.joint_blocks.0.x_block.attn.qkv.weight", "Stable Diffusion 3"),
    ("double_blocks.0.img_attn.qkv.weight", "FLUX"),
    ("lora_unet_down_blocks_0_attentions_0_proj_in.lora_up.weight", "LoRA"),
    ("down_blocks.0.resnets.0.conv1.weight", "single network.*give the folder"),
    ("encoder.down_blocks.0.resnets.0.conv1.weight", "single network.*give the folder"),
    ("decoder.up.0.block.0.conv1.weight", "VAE alone"),
    ("text_model.final_layer_norm.weight", "text encoder alone"),
    (f"{UNET}.input_blocks.0.0.weight", "without its text encoder"),
    ("control_model.time_embed.0.weight", "ControlNet"),
    ("model.layers.0.mlp.up_proj.weight", "no known layout.*up_proj"),
]


@pytest.mark.parametrize(("name", "words"), OTHERS)
def test_other_models_are_refused_by_name(name: str, words: str) -> None:
    with pytest.raises(UnknownLayout, match=words) as caught:
        detect(head({name: torch.zeros(1, 1, 1, 1)}))
    assert "\n" not in str(caught.value)


def test_empty_file_is_no_model() -> None:
    with pytest.raises(UnknownLayout, match="no tensors"):
        detect(head({}))


@pytest.mark.parametrize(("channels", "what"), [(9, "inpainting"), (8, "pix2pix"), (5, "depth")])
def test_networks_that_see_more_are_refused_by_name(channels: int, what: str) -> None:
    tensors = full(tiny.FULL_SD1)
    tensors[f"{UNET}.input_blocks.0.0.weight"] = torch.empty(320, channels, 3, 3, device="meta")
    with pytest.raises(UnknownLayout, match=what):
        detect(head(tensors))


def test_tell_tale_tensor_that_lacks_is_named() -> None:
    tensors = full(tiny.FULL_SD1)
    del tensors[f"{UNET}.out.2.weight"]
    with pytest.raises(UnknownLayout, match=r"out\.2\.weight.*incomplete"):
        detect(head(tensors))


def test_nonsense_shapes_are_refused() -> None:
    good = head(full(tiny.FULL_SD1)).tensors
    for name, shape in (
        (f"{UNET}.input_blocks.0.0.weight", (320, 4)),
        (f"{UNET}.input_blocks.2.0.out_layers.3.weight", (100, 100, 3, 3)),
        ("first_stage_model.encoder.down.0.block.0.conv1.weight", (7, 7, 3, 3)),
        ("first_stage_model.decoder.conv_in.weight", (512, 16, 3, 3)),
        ("cond_stage_model.transformer.text_model.embeddings.token_embedding.weight", (9, 64)),
    ):
        with pytest.raises(UnknownLayout):
            detect(Header({}, good | {name: replace(good[name], shape=shape)}))
