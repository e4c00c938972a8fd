"""Key maps: full key sets map one to one onto our modules, as diffusers' own converters do."""

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from torch import Tensor

from tests.support import tiny, tiny_xl
from txt2img.errors import MissingWeights
from txt2img.models.clip import TextEncoder
from txt2img.models.configs import TextConfig
from txt2img.models.unet import UNet
from txt2img.models.vae import VAE
from txt2img.weights.families import SD15, SD21, SDXL, SDXL_REFINER
from txt2img.weights.formats.safetensors_file import TensorRef
from txt2img.weights.layouts import key_maps
from txt2img.weights.layouts.components import original_components, published_name
from txt2img.weights.tokenizer_files import clip_tokenizer

FAMILIES = {
    "sd15": (SD15, tiny.FULL_SD1),
    "sd21": (SD21, tiny.FULL_SD2),
    "sdxl": (SDXL, tiny_xl.FULL),
    "refiner": (SDXL_REFINER, tiny_xl.FULL_REFINER),
}
Shapes = dict[str, tuple[int, ...]]


@cache
def single_file(name: str) -> dict[str, Tensor]:
    """All tensors of a full-size single file, on the meta device."""
    _, sizes = FAMILIES[name]
    with torch.device("meta"):
        if isinstance(sizes, tiny_xl.Sizes):
            return tiny_xl.original(*tiny_xl.networks(sizes))
        return tiny.original(*tiny.networks(sizes), sizes.sd2)


def stored(tensors: Mapping[str, Tensor]) -> dict[str, TensorRef]:
    return {n: TensorRef(Path("x"), n, "F32", tuple(v.shape), 0) for n, v in tensors.items()}


def shapes(tensors: Mapping[str, Tensor] | Mapping[str, TensorRef]) -> Shapes:
    return {name: tuple(value.shape) for name, value in tensors.items()}


@pytest.mark.parametrize("name", FAMILIES)
def test_unet_maps_one_to_one(name: str) -> None:
    family, _ = FAMILIES[name]
    found = key_maps.strip_prefix(stored(single_file(name)), f"{key_maps.UNET}.")
    with torch.device("meta"):
        wanted = shapes(UNet(family.network).state_dict())
    assert shapes(key_maps.renamed(found, key_maps.unet_from_ldm(family.network))) == wanted


@pytest.mark.parametrize("name", FAMILIES)
def test_vae_maps_one_to_one(name: str) -> None:
    family, _ = FAMILIES[name]
    found = key_maps.strip_prefix(stored(single_file(name)), f"{key_maps.VAE}.")
    with torch.device("meta"):
        wanted = shapes(VAE(family.vae).state_dict())
    ours = key_maps.renamed(found, key_maps.vae_from_ldm(family.vae))
    assert shapes(key_maps.conv_to_linear(ours)) == wanted


@pytest.mark.parametrize("name", FAMILIES)
def test_text_encoders_map_one_to_one(name: str) -> None:
    family, _ = FAMILIES[name]
    parts = original_components(stored(single_file(name)), family)
    found = [part for component, part in parts.items() if component.startswith("text")]
    assert len(found) == len(family.texts)
    for part, config, pad in zip(found, family.texts, family.pad_tokens, strict=True):
        with torch.device("meta"):
            state = TextEncoder(config, clip_tokenizer(77, pad)).state_dict()
        assert shapes(part.tensors) == {published_name(n): tuple(v.shape) for n, v in state.items()}


@pytest.mark.parametrize("name", ["sdxl", "refiner"])
def test_no_tensor_of_a_file_is_left_over(name: str) -> None:
    family, _ = FAMILIES[name]
    whole = stored(single_file(name))
    parts = original_components(whole, family)
    dropped = {n for n in whole if n.endswith(("position_ids", "logit_scale"))}
    fused = sum(3 if ".in_proj_" in n else 1 for n in whole if n not in dropped)
    assert sum(len(part.tensors) for part in parts.values()) == fused
    with pytest.raises(MissingWeights, match=r"something\.else"):
        original_components(whole | stored({"something.else": torch.zeros(1)}), family)


@pytest.mark.parametrize("name", FAMILIES)
def test_unet_map_equals_diffusers_converter(name: str) -> None:
    family, _ = FAMILIES[name]
    marked = {n: torch.full((1,), i) for i, n in enumerate(single_file(name))}
    added = "text_time" if family.network.sizes else None
    config = {"layers_per_block": 2, "class_embed_type": None, "addition_embed_type": added}
    theirs = convert_ldm_unet_checkpoint(dict(marked), config)
    table = key_maps.unet_from_ldm(family.network)
    ours = {
        key_maps.rename(n.removeprefix(f"{key_maps.UNET}."), table): value
        for n, value in marked.items()
        if n.startswith(f"{key_maps.UNET}.")
    }
    assert {n: int(v) for n, v in ours.items()} == {n: int(v) for n, v in theirs.items()}


@pytest.mark.parametrize("name", FAMILIES)
def test_vae_map_equals_diffusers_converter(name: str) -> None:
    family, _ = FAMILIES[name]
    marked = {n: torch.full((1, 1, 1, 1), i) for i, n in enumerate(single_file(name))}
    config = {"down_block_types": (0,) * 4, "up_block_types": (0,) * 4}
    theirs = convert_ldm_vae_checkpoint(dict(marked), config)
    table = key_maps.vae_from_ldm(family.vae)
    ours = {
        key_maps.rename(n.removeprefix(f"{key_maps.VAE}."), table): value
        for n, value in marked.items()
        if n.startswith(f"{key_maps.VAE}.")
    }
    assert {n: int(v) for n, v in ours.items()} == {n: int(v) for n, v in theirs.items()}


def test_open_clip_map_equals_diffusers_converter() -> None:
    model = tiny.sd2()
    single = tiny.original(model.unet, model.vae, model.text, sd2=True)
    theirs = convert_open_clip_checkpoint(model.text, single)
    table = key_maps.clip_from_open_clip(3)
    ours = key_maps.renamed(
        key_maps.strip_prefix(key_maps.split_qkv(stored(single)), f"{key_maps.OPEN_CLIP}."), table
    )
    wanted = {n.removeprefix("text_model."): tuple(v.shape) for n, v in theirs.items()}
    wanted.pop("text_projection.weight", None)
    last = [n for n in wanted if n.startswith("encoder.layers.3.")]
    assert shapes(ours) == {n: s for n, s in wanted.items() if n not in last}


def test_projected_open_clip_map_equals_diffusers_converter() -> None:
    model = tiny_xl.refiner()
    single = tiny_xl.original(model.unet, model.vae, model.texts)
    prefix = f"{key_maps.REFINER_CLIP}."
    theirs = convert_open_clip_checkpoint(model.texts[0], single, prefix)
    theirs_by_name = {n.removeprefix("text_model."): value for n, value in theirs.items()}
    ours = original_components(stored(single), replace(SDXL_REFINER, texts=(small_text(),)))[
        "text_encoder"
    ]
    for name in ("logit_scale", "attn_mask"):
        theirs_by_name.pop(name, None)
    assert {n: tuple(v.shape) for n, v in theirs_by_name.items()} == shapes(ours.tensors)


def small_text() -> TextConfig:
    """The tiny refiner's text encoder."""
    return replace(SDXL_REFINER.clip_texts[0], width=128, layers=4, heads=2, mlp=64, projection=96)


def test_rename_takes_the_longest_beginning() -> None:
    table: key_maps.Table = {"a": "x", "a.b": "y", "a.b.c": None}
    assert key_maps.rename("a.c", table) == "x.c"
    assert key_maps.rename("a.b.d", table) == "y.d"
    assert key_maps.rename("a.b.c.d", table) is None
    assert key_maps.rename("ab.c", table) == "ab.c"


def test_two_names_for_one_tensor_are_refused() -> None:
    tensors = stored({"query": torch.zeros(1), "to_q": torch.zeros(1)})
    with pytest.raises(MissingWeights, match="to_q"):
        key_maps.renamed(tensors, {"query": "to_q"})


def test_old_vae_attention_names_become_ours() -> None:
    table = key_maps.vae_from_old_diffusers()
    name = "encoder.mid_block.attentions.0.proj_attn.bias"
    assert key_maps.rename(name, table) == "encoder.mid_block.attentions.0.to_out.0.bias"
