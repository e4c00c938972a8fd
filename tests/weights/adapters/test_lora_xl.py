"""LoRAs of SDXL, SD 2 and the refiner draw as diffusers draws with them, in every naming."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from tests.support import tiny, tiny_xl
from tests.support.adapters import LCM, TEXT, Pairs, State, kohya, pairs, peft, write
from tests.weights.adapters.test_lora import put_on, states
from txt2img.diffusion.conditioning import Cond
from txt2img.pipeline.generate import noise_levels, sample
from txt2img.pipeline.noise import fresh_noise
from txt2img.request import Request, Sampler, Schedule
from txt2img.request.adapters import Lora
from txt2img.request.compat import rules
from txt2img.system.device.device import Device
from txt2img.weights.apply_adapters import remove_adapters, resolve_adapters
from txt2img.weights.load import load
from txt2img.weights.model import Model

CPU = Device(torch.device("cpu"), torch.float32)


def off(got: Tensor, wanted: Tensor) -> float:
    """The largest miss, relative to the largest value."""
    assert got.shape == wanted.shape
    return float((got - wanted).abs().max() / wanted.abs().max())


@cache
def found(family: str) -> dict[str, Pairs]:
    """Random pairs for all that LoRAs of a family touch, by network."""
    torch.manual_seed(len(family))
    if family == "sd2":
        networks = {"unet": tiny.sd2().unet, "text": tiny.sd2().text}
    else:
        model = tiny_xl.refiner() if family == "refiner" else tiny_xl.base()
        names = ("text_2",) if family == "refiner" else ("text", "text_2")
        networks = {"unet": model.unet, **dict(zip(names, model.texts, strict=True))}
    return {n: pairs(network, LCM if n == "unet" else TEXT) for n, network in networks.items()}


def original(unet: Pairs) -> Pairs:
    """The U-Net's pairs under the names of the original layout, as most XL files have them."""
    named = tiny.ldm_unet(dict.fromkeys(tiny_xl.base().unet.state_dict()), 3, 2)
    stems = {
        ours.rsplit(".", 1)[0]: theirs.rsplit(".", 1)[0].removeprefix("model.diffusion_model.")
        for ours, theirs in zip(tiny_xl.base().unet.state_dict(), named, strict=True)
    }
    return {stems[name]: pair for name, pair in unet.items()}


def as_kohya(family: str, unet: Callable[[Pairs], Pairs] = dict) -> State:
    both = found(family)
    prefixes = {"text": "lora_te_" if family == "sd2" else "lora_te1_", "text_2": "lora_te2_"}
    made = kohya(unet(both["unet"]))
    for part in both.keys() - {"unet"}:
        named = {f"text_model.{name}": pair for name, pair in both[part].items()}
        made |= kohya(named, prefixes[part], alpha=3.0)
    return made


def as_blocks(family: str) -> State:
    return as_kohya(family, original)


def as_peft(family: str) -> State:
    both = found(family)
    prefixes = {"text": "text_encoder.text_model.", "text_2": "text_encoder_2.text_model."}
    made = peft(both["unet"])
    for part in both.keys() - {"unet"}:
        made |= peft(both[part], prefixes[part])
    return made


def pipeline(family: str) -> DiffusionPipeline:
    """Their pipeline of copies, which may be changed."""
    if family == "sd2":
        whole = tiny.sd2()
        text = CLIPTextModel.from_pretrained(whole.folder / "text_encoder")
        words = CLIPTokenizer.from_pretrained(whole.folder / "tokenizer")
        made: DiffusionPipeline = StableDiffusionPipeline(
            deepcopy(whole.vae),
            text,
            words,
            deepcopy(whole.unet),
            DDIMScheduler(prediction_type="v_prediction", **tiny.LEADING),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    else:
        xl = tiny_xl.base()
        made = StableDiffusionXLPipeline(
            deepcopy(xl.vae),
            CLIPTextModel.from_pretrained(xl.folder / "text_encoder"),
            CLIPTextModelWithProjection.from_pretrained(xl.folder / "text_encoder_2"),
            CLIPTokenizer.from_pretrained(xl.folder / "tokenizer"),
            CLIPTokenizer.from_pretrained(xl.folder / "tokenizer_2"),
            deepcopy(xl.unet),
            DDIMScheduler(**tiny.LEADING),
            add_watermarker=False,
        )
    made.set_progress_bar_config(disable=True)
    return made


@cache
def ours(family: str, layout: str) -> Model:
    models = {"sd2": tiny.sd2, "xl": tiny_xl.base, "refiner": tiny_xl.refiner}
    return load(str(getattr(models[family](), layout)), CPU)


def request(model: Model) -> Request:
    asked = Request(
        "a red apple",
        "blurry",
        width=64,
        height=64,
        steps=2,
        cfg=6.0,
        sampler=Sampler.DDIM,
        schedule=Schedule.LEADING,
        seed=5,
    )
    return asked.filled(model.family.defaults)


def of_diffusers(family: str, file: Path, scale: float, model: Model) -> Tensor:
    """Their final latents of the request, from the same noise, with the file fused."""
    theirs = pipeline(family)
    theirs.load_lora_weights(file.parent, weight_name=file.name)
    parts = ["unet", "text_encoder"] + ["text_encoder_2"] * (family == "xl")
    theirs.fuse_lora(components=parts, lora_scale=scale)
    asked = request(model)
    side = 64 // model.vae.config.factor
    noise = fresh_noise([asked], rules(asked), (4, side, side), torch.device("cpu"))()
    latents: Tensor = theirs(
        asked.prompt,
        negative_prompt=asked.negative,
        height=64,
        width=64,
        num_inference_steps=asked.steps,
        guidance_scale=asked.cfg,
        latents=noise_levels(model, asked, rules(asked))[0].sigma * noise,
        output_type="latent",
    ).images
    return latents


def drawn(model: Model, *loras: Lora) -> Tensor:
    *_, last = sample(model, [resolve_adapters(model, replace(request(model), loras=loras))])
    return last.x


@pytest.mark.parametrize(
    ("family", "layout", "naming", "scale"),
    [
        ("xl", "file", as_blocks, 0.7),
        ("xl", "folder", as_peft, -0.4),
        ("sd2", "file", as_kohya, 0.7),
    ],
)
def test_final_latents_equal_diffusers(
    family: str, layout: str, naming: Callable[[str], State], scale: float, tmp_path: Path
) -> None:
    model = ours(family, layout)
    plain, before = drawn(model), states(model)
    file = write(tmp_path / "style.safetensors", naming(family))
    notes = put_on(model, file, unet=scale, text=scale)
    count = sum(map(len, found(family).values()))
    assert notes[-1] == f"LoRA style: applied {count} of {count}"
    wanted = of_diffusers(family, file, scale, model)
    assert off(drawn(model, Lora("style", scale, scale)), wanted) < 1e-4
    assert off(plain, wanted) > 1e-2
    remove_adapters(model)
    assert all(torch.equal(value, before[name]) for name, value in states(model).items())


def test_each_network_is_changed_by_its_own_part_of_a_file(tmp_path: Path) -> None:
    """No pair of one encoder is taken for the other's, though their layers are called alike."""
    model, both = ours("xl", "file"), found("xl")
    for part, prefix in (("text", "lora_te1_"), ("text_2", "lora_te2_")):
        named = {f"text_model.{name}": pair for name, pair in both[part].items()}
        before = [dict(encoder.named_parameters()) for encoder in model.text.encoders]
        before = [{n: v.clone() for n, v in state.items()} for state in before]
        put_on(model, write(tmp_path / f"{part}.safetensors", kohya(named, prefix, alpha=None)))
        for index, encoder in enumerate(model.text.encoders):
            mine = part == ("text", "text_2")[index]
            for name, weight in encoder.named_parameters():
                stem = name.removeprefix("model.").removesuffix(".weight")
                change = weight - before[index][name]
                if not mine or stem not in both[part]:
                    assert not change.any()
                else:
                    down, up = both[part][stem]
                    assert off(change, up @ down) < 1e-4
        remove_adapters(model)


@pytest.mark.parametrize("naming", [as_kohya, as_peft])
@torch.no_grad()
def test_a_refiners_only_encoder_is_the_second(
    naming: Callable[[str], State], tmp_path: Path
) -> None:
    model, both = ours("refiner", "file"), found("refiner")
    count = sum(map(len, both.values()))
    notes = put_on(model, write(tmp_path / "a.safetensors", naming("refiner")))
    assert notes[-1] == f"LoRA a: applied {count} of {count}"
    wanted: UNet2DConditionModel = deepcopy(tiny_xl.refiner().unet)
    text = deepcopy(tiny_xl.refiner().texts[0])
    halves = {"unet": (wanted, 0.5), "text_2": (text, 0.75)}  # kohya's alpha / rank
    for part, (network, share) in halves.items():
        weights = {n.removeprefix("text_model."): w for n, w in network.named_parameters()}
        for name, (down, up) in both[part].items():
            change = (up.flatten(1) @ down.flatten(1)).view_as(weights[f"{name}.weight"])
            weights[f"{name}.weight"].add_(change * (share if naming is as_kohya else 1.0))
    x, tokens, pooled = torch.randn(1, 4, 16, 16), torch.randn(1, 77, 128), torch.randn(1, 96)
    sizes, time = torch.tensor([[64.0, 64, 0, 0, 6]]), torch.tensor([500.0])
    told = {"text_embeds": pooled, "time_ids": sizes}
    theirs = wanted(x, time, tokens, added_cond_kwargs=told).sample
    assert off(model.network(x, time, Cond(tokens, pooled, sizes)), theirs) < 1e-5
    ids = torch.tensor([model.text.encoders[0].tokenizer.chunks("a cat")[0]])
    hidden = text(ids, output_hidden_states=True).hidden_states[-2]
    assert off(model.text.encode(["a cat"]).tokens, hidden) < 1e-5
    remove_adapters(model)
