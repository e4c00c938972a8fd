"""Families and prediction types are detected by keys, shapes, metadata and markers."""

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor

from tests.support import tiny, tiny_xl
from txt2img.errors import UnknownLayout
from txt2img.models.unet import UNet
from txt2img.request import Schedule
from txt2img.weights.families import NETWORKS, SD15, SD21, SD21_BASE, SDXL, SDXL_REFINER
from txt2img.weights.formats.safetensors_file import Header, TensorRef, header
from txt2img.weights.layouts.detect import detect, match
from txt2img.weights.layouts.diffusers_config import unet_config
from txt2img.weights.layouts.key_maps import rename, unet_from_ldm

UNET = "model.diffusion_model"
NORM = "model.diffusion_model.output_blocks.5.1.transformer_blocks.0.norm1.bias"


def full(sizes: tiny.Sizes) -> dict[str, Tensor]:
    with torch.device("meta"):
        return tiny.original(*tiny.networks(sizes), sizes.sd2)


def head(tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> Header:
    stored = {n: TensorRef(Path("x"), n, "F32", tuple(v.shape), 0) for n, v in tensors.items()}
    return Header(metadata or {}, stored)


def test_sd15_is_detected_by_its_shapes() -> None:
    assert detect(head(full(tiny.FULL_SD1))) == SD15


def test_sd21_is_detected_by_its_shapes() -> None:
    tensors = full(tiny.FULL_SD2)
    assert detect(head(tensors), "v") == SD21
    assert detect(head(tensors), "eps") == SD21_BASE


@cache
def full_xl(sizes_name: str) -> dict[str, Tensor]:
    with torch.device("meta"):
        return tiny_xl.original(*tiny_xl.networks(getattr(tiny_xl, sizes_name)))


def test_sdxl_and_its_refiner_are_detected_by_their_shapes() -> None:
    assert detect(head(full_xl("FULL"))) == SDXL
    assert detect(head(full_xl("FULL_REFINER"))) == SDXL_REFINER


@pytest.mark.parametrize(
    ("metadata", "marks", "wanted"),
    [
        ({}, (), ("eps", False)),
        ({}, ("v_pred",), ("v", False)),
        ({}, ("v_pred", "ztsnr"), ("v", True)),
        ({"modelspec.prediction_type": "v"}, (), ("v", False)),
        ({"modelspec.prediction_type": "v"}, ("ztsnr",), ("v", True)),
        ({"modelspec.prediction_type": "epsilon"}, ("v_pred",), ("eps", False)),
    ],
)
def test_sdxl_of_another_prediction_is_marked(
    metadata: dict[str, str], marks: tuple[str, ...], wanted: tuple[str, bool]
) -> None:
    marked = {mark: torch.zeros(0) for mark in marks}
    found = detect(head(full_xl("FULL") | marked, metadata))
    assert (found.prediction, found.process.zero_snr) == wanted
    assert found.defaults.schedule == (Schedule.TRAILING if wanted[1] else Schedule.KARRAS)
    assert (found.defaults.width, found.defaults.height) == (1024, 1024)


# The shapes of published distilled models, as their configs say them.
XL = {"channels": (320, 640, 1280), "heads": (5, 10, 20)}
SSD_1B = {
    "mid_block_type": "UNetMidBlock2D",
    "transformer_layers_per_block": [1, [2, 2], [4, 4]],
    "reverse_transformer_layers_per_block": [[4, 4, 10], [2, 1, 1], 1],
}
VEGA = {
    "mid_block_type": "UNetMidBlock2D",
    "transformer_layers_per_block": [1, [1, 1], [2, 2]],
    "reverse_transformer_layers_per_block": [[2, 2, 2], [1, 1, 1], 1],
}
BK_BASE: dict[str, object] = {"layers_per_block": 1}
BK_SMALL = {"layers_per_block": 1, "mid_block_type": None}
BK_TINY = BK_SMALL | {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("CrossAttnDownBlock2D",) * 3,
    "up_block_types": ("CrossAttnUpBlock2D",) * 3,
}
DISTILLED: list[tuple[str, dict[str, object], bool]] = [
    ("SSD-1B", SSD_1B, True),
    ("Segmind Vega", VEGA, True),
    ("distilled Stable Diffusion 1 (base)", BK_BASE, False),
    ("distilled Stable Diffusion 1 (small)", BK_SMALL, False),
    ("distilled Stable Diffusion 1 (tiny)", BK_TINY, False),
]


@pytest.mark.parametrize(("name", "config", "xl"), DISTILLED)
def test_distilled_models_are_detected_by_their_shapes_and_configs(
    name: str, config: dict[str, object], xl: bool
) -> None:
    with torch.device("meta"):
        if xl:
            unet = tiny_xl.networks(replace(tiny_xl.FULL, more=config))[0]
        else:
            unet = UNet2DConditionModel(cross_attention_dim=768, **config)
    shape = unet.config
    tensors = tiny.ldm_unet(
        unet.state_dict(), len(shape["block_out_channels"]), shape["layers_per_block"]
    )
    rest = full_xl("FULL") if xl else full(tiny.FULL_SD1)
    others = {n: v for n, v in rest.items() if not n.startswith(f"{UNET}.")}
    found = detect(head(others | tensors))
    assert (found.name, found.network) == (name, NETWORKS[name])
    assert unet_config({key: shape[key] for key in shape}, 1280 if xl else 0) == found.network
    with torch.device("meta"):
        ours = {n: tuple(v.shape) for n, v in UNet(found.network).state_dict().items()}
    assert ours == {n: tuple(v.shape) for n, v in unet.state_dict().items()}
    table = unet_from_ldm(found.network)
    assert {rename(n.removeprefix(f"{UNET}."), table) for n in tensors} == set(ours)


def test_sd2_without_its_unused_layer_keeps_all_layers() -> None:
    kept = {n: v for n, v in full(tiny.FULL_SD2).items() if ".resblocks.23." not in n}
    assert detect(head(kept), "v").texts == SD21.texts


def small(
    path: Path, metadata: dict[str, str], more: dict[str, Tensor], sd2: bool = True
) -> Header:
    """A tiny file's header with other metadata and tensors, and a small vocabulary."""
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


OTHERS = [
    (f"{UNET}.label_emb.0.0.weight", "XL"),
    ("conditioner.embedders.1.model.ln_final.weight", "XL"),
    ("edm_vpred.sigma_max", "EDM"),
    ("noise_augmentor.data_mean", "unCLIP"),
    (f"{UNET}.txtfusion.projector.weight", "this is Krea 2, which is not supported"),
    ("txt_norm.weight", "this is Qwen-Image, which is not supported; a whole SD 1, .* FLUX.1"),
    ("distilled_guidance_layer.norms.0.scale", "Chroma"),
    (f"{UNET}.cap_embedder.1.weight", "Lumina 2"),
    ("controlnet_blocks.0.weight", "a ControlNet"),
    ("lora_unet_down_blocks_0_attentions_0_proj_in.lora_up.weight", "LoRA"),
    ("down_blocks.0.resnets.0.conv1.weight", "U-Net alone: use it with --unet"),
    ("encoder.down_blocks.0.resnets.0.conv1.weight", "VAE alone: use it with --vae"),
    ("decoder.up.0.block.0.conv1.weight", "VAE alone: use it with --vae.*a whole SD 1"),
    ("input_blocks.0.0.weight", "a U-Net alone: use it with --unet; a whole SD 1"),
    ("decoder.layers.0.weight", "TAESD.*use it with --vae"),
    ("transformer.resblocks.0.ln_1.weight", "text encoder alone"),
    ("text_model.final_layer_norm.weight", "text encoder alone: use it with --text-encoder"),
    ("text_encoders.clip_l.logit_scale", "text encoder alone"),
    (f"{UNET}.input_blocks.0.0.weight", "without its text encoder"),
    ("control_model.time_embed.0.weight", "ControlNet"),
    ("model.layers.0.mlp.up_proj.weight", "no known layout.*up_proj"),
]


TRANSFORMERS = {
    "flux": "double_blocks.0.img_attn.norm.key_norm.scale",
    "flux2": "double_stream_modulation_img.lin.weight",
    "sd3": "joint_blocks.0.context_block.adaLN_modulation.1.bias",
    "z-image": "layers.0.adaLN_modulation.0.weight",
}


@pytest.mark.parametrize("prefix", ["", f"{UNET}.", "diffusion_model."])
@pytest.mark.parametrize(("which", "name"), TRANSFORMERS.items())
def test_transformers_are_known_by_one_tensor(which: str, name: str, prefix: str) -> None:
    others = {"vae.decoder.conv_in.weight": torch.zeros(1), "cap_embedder.0.weight": torch.zeros(1)}
    assert match(head({f"{prefix}{name}": torch.zeros(1), **others}).tensors).transformer == which


@pytest.mark.parametrize(("name", "words"), OTHERS)
def test_other_models_are_refused_by_name(name: str, words: str) -> None:
    with pytest.raises(UnknownLayout, match=words) as caught:
        detect(head({name: torch.zeros(1, 1, 1, 1)}))
    assert "\n" not in str(caught.value)


def test_empty_file_is_no_model() -> None:
    with pytest.raises(UnknownLayout, match="it contains nothing"):
        detect(head({}))


@pytest.mark.parametrize(("channels", "what"), [(5, "depth"), (7, "upscaler"), (6, "unknown")])
def test_networks_of_other_input_channels_are_refused_by_name(channels: int, what: str) -> None:
    with pytest.raises(UnknownLayout, match=what):
        detect(head(wider(full(tiny.FULL_SD1), channels)))


def wider(tensors: dict[str, Tensor], channels: int) -> dict[str, Tensor]:
    """The same model with more input channels."""
    weight = torch.empty(320, channels, 3, 3, device="meta")
    return tensors | {f"{UNET}.input_blocks.0.0.weight": weight}


@pytest.mark.parametrize(("channels", "what"), [(9, "inpainting"), (8, "pix2pix")])
def test_inpainting_and_pix2pix_models_are_known(channels: int, what: str) -> None:
    for tensors, family, prediction in (
        (full(tiny.FULL_SD1), SD15, "eps"),
        (full(tiny.FULL_SD2), SD21, "v"),
        (full_xl("FULL"), SDXL, "eps"),
    ):
        found = detect(head(wider(tensors, channels)), prediction)
        assert found.name == f"{family.name} {what}"
        assert found.network == replace(family.network, in_channels=channels)
        assert found.extra_inputs.startswith("a picture")


def test_a_missing_tensor_that_decides_the_config_is_named() -> None:
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
