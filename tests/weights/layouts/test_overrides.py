"""U-Nets and text encoders from files of their own, in every layout, as diffusers' networks."""

import json
import os
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextModel

from tests.conftest import Command
from tests.support import tiny, tiny_xl
from txt2img.diffusion.conditioning import Cond
from txt2img.errors import (
    BadRequest,
    MissingWeights,
    ModelNotFound,
    Txt2imgError,
    UnknownLayout,
)
from txt2img.images import image_file
from txt2img.request import Sampler
from txt2img.request.resolve import ComponentOverrides
from txt2img.system.device.device import Device
from txt2img.weights.load import load
from txt2img.weights.model import Model

CPU = Device(torch.device("cpu"), torch.float32)
State = dict[str, Tensor]


def scattered(network: nn.Module) -> nn.Module:
    tiny._scatter(network)
    return network.eval().requires_grad_(False)


@cache
def unet() -> UNet2DConditionModel:
    """Another U-Net of the tiny model's shape."""
    torch.manual_seed(11)
    return scattered(tiny.networks(tiny.SD1)[0])


def with_unet(path: Path, model: Path | None = None) -> Model:
    return load(str(model or tiny.sd1().file), CPU, overrides=ComponentOverrides(unet=str(path)))


def off(got: Tensor, wanted: Tensor) -> float:
    assert got.shape == wanted.shape
    return float((got - wanted).abs().max() / wanted.abs().max())


def write(state: State, path: Path) -> Path:
    save_file({name: value.contiguous().clone() for name, value in state.items()}, path)
    return path


def ldm(prefix: str) -> State:
    state = tiny.ldm_unet(unet().state_dict(), 2, 2)
    return {n.replace("model.diffusion_model.", prefix, 1): v for n, v in state.items()}


def original(root: Path) -> Path:
    return write(ldm("model.diffusion_model."), root / "mine.safetensors")


def comfy(root: Path) -> Path:
    return write(ldm("diffusion_model."), root / "mine.safetensors")


def bare(root: Path) -> Path:
    return write(ldm("") | {"v_pred": torch.ones(1)}, root / "mine.safetensors")


def diffusers(root: Path) -> Path:
    return write(unet().state_dict(), root / "mine.safetensors")


def folder(root: Path) -> Path:
    unet().save_pretrained(root / "mine")
    return root / "mine"


def model_folder(root: Path) -> Path:
    unet().save_pretrained(root / "mine" / "unet")
    return root / "mine" / "unet" / "diffusion_pytorch_model.safetensors"


def checkpoint(root: Path) -> Path:
    vae = {"first_stage_model.decoder.conv_in.bias": torch.ones(2)}
    return write(ldm("model.diffusion_model.") | vae, root / "mine.safetensors")


@pytest.mark.parametrize(
    "layout", [original, comfy, bare, diffusers, folder, model_folder, checkpoint]
)
def test_a_unet_of_every_layout_equals_diffusers(
    layout: Callable[[Path], Path], tmp_path: Path
) -> None:
    model, own = with_unet(layout(tmp_path)), load(str(tiny.sd1().file), CPU)
    x, tokens, time = torch.randn(1, 4, 8, 8), torch.randn(1, 77, 32), torch.tensor([501.0])
    with torch.no_grad():
        wanted = unet()(x, time, tokens).sample
        assert off(model.network(x, time, Cond(tokens)), wanted) < 1e-5
    assert (model.name, model.hash != own.hash) == ("mine", True)
    assert model.family.prediction == ("v" if layout is bare else "eps")
    for mine, other in ((model.vae, own.vae), (model.text, own.text)):
        state = other.state_dict()
        assert all(torch.equal(v, state[n]) for n, v in mine.state_dict().items())


def test_a_unets_name_decides_its_defaults(tmp_path: Path) -> None:
    path = diffusers(tmp_path)
    usual = with_unet(path).family.defaults
    named = with_unet(path.rename(tmp_path / "sdxl_lightning_4step_unet.safetensors"))
    assert (usual.steps, usual.sampler) == (30, Sampler.DPMPP_2M)
    assert (named.family.defaults.steps, named.family.defaults.sampler) == (4, Sampler.EULER)


def test_a_unet_without_a_model_loads_for_xl(tmp_path: Path) -> None:
    base = tiny_xl.base()
    for name, state in (
        ("a", tiny.ldm_unet(base.unet.state_dict(), 3, 2)),
        ("b", dict(base.unet.state_dict())),
    ):
        path = write(state, tmp_path / f"{name}.safetensors")
        model = with_unet(path, base.folder)
        assert torch.equal(model.network.conv_out.weight, base.unet.conv_out.weight)


@cache
def text() -> CLIPTextModel:
    """Another text encoder of the tiny model's shape."""
    torch.manual_seed(12)
    return scattered(tiny.networks(tiny.SD1)[2])


def published(prefix: str) -> State:
    return {f"{prefix}{name}": value for name, value in tiny.bare(text()).items()}


def open_clip(prefix: str) -> State:
    """As OpenCLIP writes it: all layers, and the image encoder too."""
    state = {f"text_model.{n}": v for n, v in tiny.bare(text()).items()}
    state["text_projection.weight"] = torch.randn(16, 32)
    named = tiny_xl.open_clip(state, "x")
    seeing = {"visual.proj": torch.ones(2), "logit_scale": torch.ones(1)} if not prefix else {}
    return {n.replace("x.", prefix, 1): v for n, v in named.items()} | seeing


TEXTS: dict[str, Callable[[], State]] = {
    "transformers": lambda: published("text_model."),
    "without text_model": lambda: published(""),
    "a whole CLIP": lambda: {
        **published("text_model."),
        "vision_model.class_embedding": torch.ones(3),
        "text_projection.weight": torch.ones(4, 32),
        "logit_scale": torch.ones(()),
    },
    "ComfyUI": lambda: {
        **published("text_encoders.clip_l.transformer.text_model."),
        "text_encoders.clip_l.logit_scale": torch.ones(()),
    },
    "a checkpoint's": lambda: published("cond_stage_model.transformer.text_model."),
    "OpenCLIP": lambda: open_clip(""),
    "OpenCLIP within": lambda: open_clip("cond_stage_model.model."),
}


@pytest.mark.parametrize("layout", TEXTS)
def test_a_text_encoder_of_every_layout_equals_transformers(layout: str, tmp_path: Path) -> None:
    path = write(TEXTS[layout](), tmp_path / "clip.safetensors")
    own = load(str(tiny.sd1().folder), CPU)
    model = load(str(tiny.sd1().folder), CPU, overrides=ComponentOverrides(texts=(str(path),)))
    ids = torch.tensor(model.text.encoders[0].tokenizer.chunks("a red apple"))
    with torch.no_grad():
        wanted = text()(ids).last_hidden_state
        assert off(model.text.encode(["a red apple"]).tokens, wanted) < 1e-5
    assert (model.name, model.hash != own.hash) == (own.name, True)


def test_an_open_clip_layer_that_sd2_does_not_use_is_left_out(tmp_path: Path) -> None:
    state = tiny.open_clip(tiny.bare(tiny.sd2().text))
    bare = {n.removeprefix("cond_stage_model.model."): v for n, v in state.items()}
    path = write(bare, tmp_path / "h.safetensors")
    model = load(str(tiny.sd2().folder), CPU, overrides=ComponentOverrides(texts=(str(path),)))
    own = load(str(tiny.sd2().folder), CPU).text.state_dict()
    assert all(torch.equal(v, own[n]) for n, v in model.text.state_dict().items())


@pytest.mark.parametrize("together", [True, False])
def test_sdxls_two_encoders_are_distinguished(together: bool, tmp_path: Path) -> None:
    base = tiny_xl.base()
    big = tiny_xl.open_clip(tiny_xl.published(base.texts[1]), "text_encoders.clip_g")
    small = {
        f"text_encoders.clip_l.transformer.{n}": v
        for n, v in tiny_xl.published(base.texts[0]).items()
    }
    files = [big | small] if together else [big, small]
    paths = [str(write(state, tmp_path / f"{i}.safetensors")) for i, state in enumerate(files)]
    model = load(str(base.file), CPU, overrides=ComponentOverrides(texts=tuple(paths)))
    own = load(str(base.file), CPU).text.state_dict()
    assert all(torch.equal(v, own[n]) for n, v in model.text.state_dict().items())
    assert model.checkpoint is not None and set(map(Path, paths)) <= set(model.checkpoint.weights)


def test_a_folders_text_encoder_may_be_open_clips(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny.sd2().folder, copy, copy_function=os.link)
    path = copy / "text_encoder" / "model.safetensors"
    path.unlink()
    state = tiny.open_clip(tiny.bare(tiny.sd2().text))
    write({n.removeprefix("cond_stage_model.model."): v for n, v in state.items()}, path)
    own = load(str(tiny.sd2().folder), CPU).text.state_dict()
    state = load(str(copy), CPU).text.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in own.items())


def test_what_does_not_fit_is_refused_in_one_line(tmp_path: Path) -> None:
    lora = write({"lora_unet_conv_out.alpha": torch.ones(())}, tmp_path / "lora.safetensors")
    short = write(
        {"conv_in.bias": torch.ones(2)} | {"down_blocks.0.x": torch.ones(2)}, tmp_path / "s"
    )
    wide = write({"text_model.embeddings.token_embedding.weight": torch.ones(9, 5)}, tmp_path / "w")
    clip = write(published("text_model."), tmp_path / "clip.safetensors")
    lacking = dict(unet().state_dict())
    del lacking["conv_out.bias"]
    half = write(lacking, tmp_path / "half.safetensors")
    other = write(tiny_xl.base().unet.state_dict(), tmp_path / "xl.safetensors")
    cases: list[tuple[ComponentOverrides, type[Txt2imgError], str]] = [
        (ComponentOverrides("nowhere"), ModelNotFound, "no U-Net"),
        (ComponentOverrides(texts=("nowhere",)), ModelNotFound, "no text encoder"),
        (ComponentOverrides(str(lora)), UnknownLayout, "is no U-Net"),
        (ComponentOverrides(str(tmp_path)), UnknownLayout, "no config.json"),
        (ComponentOverrides(str(short)), UnknownLayout, "conv_in.weight"),
        (ComponentOverrides(str(half)), MissingWeights, "conv_out.bias"),
        (ComponentOverrides(str(other)), MissingWeights, "xl|unet"),
        (ComponentOverrides(texts=(str(lora),)), UnknownLayout, "no CLIP text model"),
        (ComponentOverrides(texts=(str(wide),)), MissingWeights, "5 wide"),
        (ComponentOverrides(texts=(str(clip), str(clip))), BadRequest, "two files"),
    ]
    for others, kind, words in cases:
        with pytest.raises(kind, match=words) as caught:
            load(str(tiny.sd1().file), CPU, overrides=others)
        assert "\n" not in str(caught.value)


def test_the_command_draws_with_overrides(command: Command, tmp_path: Path) -> None:
    made, clip = original(tmp_path), write(published("text_model."), tmp_path / "clip.safetensors")
    small = ("-m", str(tiny.sd1().file), "-W", "64", "-H", "64", "--steps", "1", "--seed", "3")
    drawn = command(
        "x y", *small, "--unet", str(made), "--text-encoder", str(clip), "-o", "a.png", "--json"
    )
    assert drawn.code == 0, drawn.err
    record, found = json.loads(drawn.out), image_file.read(Path("a.png"))
    plain = command("x y", *small, "-o", "b.png", "--json")
    assert record["model"] == found.origin.model == "mine"
    assert record["hash"] == found.origin.hash != json.loads(plain.out)["hash"]
    assert found.pixels_sha256 != image_file.read(Path("b.png")).pixels_sha256
