"""SDXL, its refiner and distilled models against diffusers, in both layouts."""

from functools import cache

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EulerDiscreteScheduler,
    SchedulerMixin,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
)
from torch import Tensor
from transformers import CLIPTokenizer

from tests.support import tiny_xl
from txt2img.diffusion.conditioning import Cond
from txt2img.pipeline.encode_prompts import encode
from txt2img.pipeline.generate import noise_levels, prepare
from txt2img.pipeline.noise import fresh_noise
from txt2img.request import Request, Sampler, Schedule
from txt2img.request.compat import rules
from txt2img.system.device.device import Device
from txt2img.weights.load import load
from txt2img.weights.model import Model

CPU = Device(torch.device("cpu"), torch.float32)
MODELS = {"base": tiny_xl.base, "refiner": tiny_xl.refiner, "ssd": tiny_xl.ssd}
LAYOUTS = [(name, layout) for name in MODELS for layout in ("folder", "file")]
PROMPTS = [["a red apple, 3d emoji", "blurry"], ["Zoë's CAFÉ", ""]]
REQUEST = Request("a red apple", "", "m", 64, 96, 3, 7.5, seed=5, schedule=Schedule.LEADING)
SCHEDULERS: dict[str, type[SchedulerMixin]] = {
    "ddim": DDIMScheduler,
    "euler": EulerDiscreteScheduler,
}


@cache
def ours(name: str, layout: str) -> Model:
    return load(str(getattr(MODELS[name](), layout)), CPU)


@cache
def theirs(name: str) -> StableDiffusionXLPipeline:
    """Their pipeline of their own networks, with the tokenizers of the folder."""
    model = MODELS[name]()
    first, second = model.texts if len(model.texts) == 2 else (None, model.texts[0])
    words = CLIPTokenizer.from_pretrained(model.folder / "tokenizer") if first else None
    more = {} if first else {"requires_aesthetics_score": True}
    kind = StableDiffusionXLPipeline if first else StableDiffusionXLImg2ImgPipeline
    pipeline = kind(
        vae=model.vae,
        text_encoder=first,
        text_encoder_2=second,
        tokenizer=words,
        tokenizer_2=CLIPTokenizer.from_pretrained(model.folder / "tokenizer_2"),
        unet=model.unet,
        scheduler=DDIMScheduler(),
        force_zeros_for_empty_prompt=first is not None,
        add_watermarker=False,
        **more,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def off(got: Tensor, expected: Tensor) -> float:
    """The largest miss, relative to the largest value."""
    assert got.shape == expected.shape
    return float((got - expected).abs().max() / expected.abs().max().clamp(min=1e-30))


@pytest.mark.parametrize("words", PROMPTS)
@pytest.mark.parametrize(("name", "layout"), LAYOUTS)
def test_text_conditions_equal_diffusers(name: str, layout: str, words: list[str]) -> None:
    model = ours(name, layout)
    request = Request(words[0], words[1], width=64, height=96)
    with torch.no_grad():
        tokens, away, pooled, away_pooled = theirs(name).encode_prompt(
            words[0], negative_prompt=words[1] or None
        )
        [(_, positive)], [(_, negative)] = encode(model, request, rules(request))
    assert off(positive.tokens, tokens) < 1e-5
    assert off(negative.tokens, away) < 1e-5
    assert positive.pooled is not None and negative.pooled is not None
    assert off(positive.pooled, pooled) < 1e-5
    assert off(negative.pooled, away_pooled) < 1e-5


@pytest.mark.parametrize(("name", "layout"), LAYOUTS)
def test_sizes_equal_diffusers(name: str, layout: str) -> None:
    [(_, positive)], [(_, negative)] = encode(ours(name, layout), REQUEST, rules(REQUEST))
    assert positive.size_ids is not None and negative.size_ids is not None
    start = [96, 64, 0, 0]
    expected = ([6.0], [2.5]) if name == "refiner" else ([96, 64], [96, 64])
    assert (positive.size_ids.tolist(), negative.size_ids.tolist()) == (
        [start + expected[0]],
        [start + expected[1]],
    )


@pytest.mark.parametrize(("name", "layout"), LAYOUTS)
def test_unet_equals_diffusers(name: str, layout: str) -> None:
    network = ours(name, layout).network
    config = network.config
    x, tokens = torch.randn(2, 4, 24, 16), torch.randn(2, 77, config.cross_dim)
    time, pooled = torch.tensor([981.0, 3.5]), torch.randn(2, config.pooled)
    sizes = torch.tensor([[1024.0, 768.0, 0.0, 8.0, 512.0, 640.0], [96.0, 64, 0, 0, 96, 64]])
    sizes = sizes[:, : config.sizes]
    told = {"text_embeds": pooled, "time_ids": sizes}
    with torch.no_grad():
        expected = MODELS[name]().unet(x, time, tokens, added_cond_kwargs=told).sample
        got = network(x, time, Cond(tokens, pooled, sizes))
    assert off(got, expected) < 1e-5


@pytest.mark.parametrize(("name", "layout"), [("base", "folder"), ("base", "file")])
def test_vae_equals_diffusers(name: str, layout: str) -> None:
    latents = torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        expected = MODELS[name]().vae.decode(latents / tiny_xl.SCALING).sample
        assert off(ours(name, layout).vae.decode(latents), expected) < 1e-5


@pytest.mark.parametrize("sampler", SCHEDULERS)
@pytest.mark.parametrize("negative", ["", "blurry"])
@pytest.mark.parametrize(
    ("name", "layout"), [("base", "folder"), ("base", "file"), ("ssd", "file")]
)
def test_final_latents_equal_diffusers(name: str, layout: str, negative: str, sampler: str) -> None:
    model = ours(name, layout)
    values = REQUEST.to_json() | {"negative": negative, "sampler": Sampler.parse(sampler)}
    request = Request.from_json(values).filled(model.family.defaults)
    with torch.no_grad():
        *_, last = prepare(model, [request]).states()
    pipeline = theirs(name)
    pipeline.scheduler = scheduler(sampler)
    pipeline.scheduler.set_timesteps(request.steps)
    level = noise_levels(model, request, rules(request))[0]
    x = level.sigma * fresh_noise([request], rules(request), (4, 24, 16), torch.device("cpu"))()
    x = x / level.alpha if sampler == "euler" else x
    expected = pipeline(
        request.prompt,
        negative_prompt=negative or None,
        height=96,
        width=64,
        num_inference_steps=request.steps,
        guidance_scale=request.cfg,
        latents=x / pipeline.scheduler.init_noise_sigma,
        output_type="latent",
    ).images
    assert off(last.x, expected) < 1e-4


def scheduler(sampler: str) -> SchedulerMixin:
    """Theirs with settings that leave no choice of steps open."""
    common = {
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "steps_offset": 1,
        "timestep_spacing": "leading",
    }
    if sampler == "ddim":
        common |= {"clip_sample": False, "set_alpha_to_one": True}
    return SCHEDULERS[sampler](**common)


@torch.no_grad()
def test_refiner_draws_like_diffusers() -> None:
    """Their refiner pipeline starts from a picture, so the loop of its own networks stands here."""
    model = ours("refiner", "file")
    values = REQUEST.to_json() | {"negative": "blurry", "sampler": Sampler.DDIM}
    request = Request.from_json(values).filled(model.family.defaults)
    *_, last = prepare(model, [request]).states()
    pipeline, steps = theirs("refiner"), scheduler("ddim")
    steps.set_timesteps(request.steps)
    tokens, away, pooled, away_pooled = pipeline.encode_prompt(
        "a red apple", negative_prompt="blurry"
    )
    level = noise_levels(model, request, rules(request))[0]
    x = level.sigma * fresh_noise([request], rules(request), (4, 24, 16), torch.device("cpu"))()
    told, untold = pipeline._get_add_time_ids(
        (96, 64), (0, 0), (96, 64), 6.0, 2.5, (96, 64), (0, 0), (96, 64), torch.float32, 96
    )
    for time in steps.timesteps:
        both = {
            "text_embeds": torch.cat([away_pooled, pooled]),
            "time_ids": torch.cat([untold, told]),
        }
        out = pipeline.unet(
            torch.cat([x, x]), time, torch.cat([away, tokens]), added_cond_kwargs=both
        ).sample
        without, expected = out.chunk(2)
        x = steps.step(without + 7.5 * (expected - without), time, x).prev_sample
    assert off(last.x, x) < 1e-4


def test_batch_of_several_chunks_equals_each_alone() -> None:
    model = ours("base", "file")
    long = " ".join(f"word{n}" for n in range(60))
    values = REQUEST.to_json() | {"sampler": Sampler.EULER, "steps": 2}
    requests = [
        Request.from_json(values | {"prompt": prompt, "seed": seed}).filled(model.family.defaults)
        for seed, prompt in enumerate((long, "a cat", long + " more"))
    ]
    assert model.text.chunk_count(long) > 1
    with torch.no_grad():
        *_, together = prepare(model, requests).states()
        for index, request in enumerate(requests):
            *_, alone = prepare(model, [request]).states()
            assert off(together.x[index : index + 1], alone.x) < 1e-5


def test_chunks_are_encoded_independently_and_pooled_is_the_first_ones() -> None:
    model = ours("base", "file")
    words = " ".join(["apple"] * 75)
    with torch.no_grad():
        two = model.text.encode([f"{words} cat"])
        one, rest = model.text.encode([words]), model.text.encode(["cat"])
    assert two.tokens.shape == (1, 154, 192)
    assert off(two.tokens, torch.cat([one.tokens, rest.tokens], dim=1)) < 1e-5
    assert two.pooled is not None and one.pooled is not None
    assert off(two.pooled, one.pooled) < 1e-5
