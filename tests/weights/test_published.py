"""Published models' complete key lists map one to one onto our modules, from headers alone."""

import json
import struct
from functools import cache, partial
from math import prod
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.support import published, tiny
from tests.support.published import Shapes
from txt2img.models.clip import TextEncoder
from txt2img.models.configs import TextConfig, UNetConfig, VAEConfig
from txt2img.models.unet import UNet
from txt2img.models.vae import VAE
from txt2img.pipeline.estimates.forecast import forecast_for
from txt2img.request.resolve import AdapterPaths
from txt2img.system.text import format_size
from txt2img.weights.checkpoint import Checkpoint, open_checkpoint
from txt2img.weights.families import Family
from txt2img.weights.layouts import key_maps
from txt2img.weights.layouts.components import check_tensors, published_name
from txt2img.weights.layouts.diffusers_config import from_configs
from txt2img.weights.registry.aliases import ALIASES
from txt2img.weights.tokenizer_files import clip_tokenizer

MODELS = list(published.MODELS)
NAMES = {
    "sd15": "Stable Diffusion 1",
    "sd21": "Stable Diffusion 2",
    "sdxl": "Stable Diffusion XL",
    "refiner": "Stable Diffusion XL refiner",
    "ssd-1b": "SSD-1B",
    "vega": "Segmind Vega",
    "bk-sdm-base": "distilled Stable Diffusion 1 (base)",
    "bk-sdm-small": "distilled Stable Diffusion 1 (small)",
    "bk-sdm-tiny": "distilled Stable Diffusion 1 (tiny)",
    "sd15-inpainting": "Stable Diffusion 1 inpainting",
    "instruct-pix2pix": "Stable Diffusion 1 pix2pix",
    "lcm-dreamshaper": "Stable Diffusion 1",
}


def hollow(path: Path, shapes: Shapes) -> Path:
    """A sparse safetensors file with the header of half-precision weights."""
    rows, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * prod(shape)
        rows[name] = {"dtype": "F16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(rows).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return path


def hollow_folder(folder: Path, model: str) -> Path:
    """A diffusers folder with all configs and no weights behind the headers."""
    for component, config in published.configs(model).items():
        (folder / component).mkdir()
        name = "scheduler_config" if component == "scheduler" else "config"
        (folder / component / f"{name}.json").write_text(json.dumps(config))
    for component, shapes in published.folder_keys(model).items():
        stem = "model" if component.startswith("text") else "diffusion_pytorch_model"
        hollow(folder / component / f"{stem}.safetensors", shapes)
    for component, text in published.MODELS[model].texts.items():
        pad = "<|endoftext|>" if text == "clip-l" else "!"
        tiny.write_tokenizer(
            folder / component.replace("text_encoder", "tokenizer"), clip_tokenizer(77, pad)
        )
    return folder


@cache
def module_shapes(kind: type[nn.Module], config: UNetConfig | VAEConfig | TextConfig) -> Shapes:
    build = (
        partial(kind, config, clip_tokenizer(77, "!"))
        if kind is TextEncoder
        else partial(kind, config)
    )
    with torch.device("meta"):
        return {published_name(name): tuple(v.shape) for name, v in build().state_dict().items()}


def wanted(family: Family) -> list[Shapes]:
    """The shapes of our own modules, in the order of a checkpoint's components."""
    texts = [module_shapes(TextEncoder, text) for text in family.texts]
    return [module_shapes(UNet, family.network), module_shapes(VAE, family.vae), *texts]


def matched(plan: Checkpoint) -> None:
    """Every tensor of the checkpoint has its module's name and shape, and none is left over."""
    for (component, part), shapes in zip(plan.components.items(), wanted(plan.family), strict=True):
        check_tensors(component, part, shapes)
        assert {name: stored.shape for name, stored in part.tensors.items()} == shapes


@pytest.mark.parametrize("model", MODELS)
def test_a_single_file_is_opened_from_its_header(model: str, tmp_path: Path) -> None:
    path = hollow(tmp_path / f"{model}.safetensors", published.file_keys(model))
    plan = open_checkpoint(str(path), None)
    assert plan.family.name == NAMES[model]
    matched(plan)


@pytest.mark.parametrize("model", MODELS)
def test_a_folder_is_opened_from_its_headers(model: str, tmp_path: Path) -> None:
    plan = open_checkpoint(str(hollow_folder(tmp_path, model)), None)
    assert plan.family.name == NAMES[model]
    matched(plan)


@pytest.mark.parametrize("model", MODELS)
def test_both_layouts_give_the_same_network(model: str) -> None:
    network = from_configs(published.configs(model)).network
    table = key_maps.unet_from_ldm(network)
    mapped = {
        key_maps.rename(name, table): shape
        for name, shape in published.shapes(f"original-unet-{model}").items()
    }
    assert mapped == published.shapes(f"unet-{model}")


def test_the_lists_are_small() -> None:
    assert sum(path.stat().st_size for path in published.KEYS.glob("*.txt")) < 2**20


# Which list of tests/support/keys a short name's tensors are those of, where it is not its own.
LISTS = {
    "sd21-base": "sd21",
    "sd-turbo": "sd21",
    "sdxl-turbo": "sdxl",
    "sdxl-refiner": "refiner",
    "small-sd": "bk-sdm-small",
    "lcm-sd15": "lcm-dreamshaper",
}
TABLE = {
    cells[0]: cells[1:]
    for line in (Path(__file__).parent.parent.parent / "weights.md").read_text("utf-8").splitlines()
    if (cells := [cell.strip(" `") for cell in line.strip("|").split("|")])[0] in ALIASES
}


def test_the_table_of_models_names_them_all() -> None:
    assert {name for name in ALIASES if "lora" not in name} == TABLE.keys()
    assert all(ALIASES[name].id == cells[0] for name, cells in TABLE.items())
    assert all(ALIASES[name].licence == cells[2] for name, cells in TABLE.items())


@pytest.mark.parametrize(
    "name", [name for name in TABLE if LISTS.get(name, name) in published.MODELS]
)
def test_the_table_has_the_sizes_and_the_forecast_memory(name: str, tmp_path: Path) -> None:
    model = LISTS.get(name, name)
    keys = published.folder_keys(model).values()
    assert TABLE[name][1] == format_size(2 * sum(prod(s) for part in keys for s in part.values()))
    path = str(hollow(tmp_path / "x.safetensors", published.file_keys(model)))
    ways = ((None, False), (None, True))
    found = [forecast_for(path, AdapterPaths(), "cpu", dtype, low).weights for dtype, low in ways]
    assert TABLE[name][3:] == list(map(format_size, found))
