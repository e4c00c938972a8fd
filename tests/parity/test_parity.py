"""Equal to diffusers and transformers, network by network and sampler by sampler."""

import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from inspect import signature
from pathlib import Path

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    LMSDiscreteScheduler,
    SchedulerMixin,
    UniPCMultistepScheduler,
)
from torch import Tensor
from transformers import CLIPTokenizer

from tests.support import tiny
from txt2img.diffusion.conditioning import Cond
from txt2img.diffusion.guidance import Predictor, guided
from txt2img.diffusion.levels import Level
from txt2img.diffusion.predictions import PREDICTIONS
from txt2img.diffusion.samplers import SAMPLERS
from txt2img.diffusion.schedules import SCHEDULES
from txt2img.system.device.device import Device
from txt2img.weights.load import load
from txt2img.weights.model import Model

CPU = Device(torch.device("cpu"), torch.float32)
STEPS, CFG, SHAPE = 8, 7.5, (1, 4, 8, 8)
PROMPTS = ["a red apple, 3d emoji", "", "Zoë's CAFÉ — 42 cats!! 猫 🐈‍⬛", "don't  stop"]
MODELS = {"sd1": tiny.sd1, "sd2": tiny.sd2}
LAYOUTS = [(name, layout) for name in MODELS for layout in ("folder", "file")]


@cache
def ours(name: str, layout: str) -> Model:
    return load(str(getattr(MODELS[name](), layout)), CPU)


def off(got: Tensor, expected: Tensor) -> float:
    """The largest miss, relative to the largest value."""
    assert got.shape == expected.shape
    return float((got - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize(("name", "layout"), LAYOUTS)
def test_text_embeddings_equal_transformers(name: str, layout: str) -> None:
    model = MODELS[name]()
    tokenizer = CLIPTokenizer.from_pretrained(model.folder / "tokenizer")
    # Where "!" pads, transformers also cuts it out of prompts; OpenCLIP, which trained SD 2, and we
    # do not.
    prompts = [prompt.replace("!", "?") for prompt in PROMPTS] if name == "sd2" else PROMPTS
    ids = tokenizer(prompts, padding="max_length", max_length=77, return_tensors="pt").input_ids
    with torch.no_grad():
        expected = model.text(ids).last_hidden_state
        got = ours(name, layout).text.encode(prompts).tokens
    assert off(got, expected) < 1e-5


@pytest.mark.parametrize(("name", "layout"), LAYOUTS)
def test_unet_equals_diffusers(name: str, layout: str) -> None:
    x, tokens = torch.randn(2, 4, 16, 16), torch.randn(2, 77, ours(name, layout).text.config.width)
    time = torch.tensor([981.0, 3.5])
    with torch.no_grad():
        expected = MODELS[name]().unet(x, time, tokens).sample
        got = ours(name, layout).network(x, time, Cond(tokens))
    assert off(got, expected) < 1e-5


def test_unet_equals_diffusers_at_odd_sizes() -> None:
    x, tokens, time = torch.randn(1, 4, 9, 13), torch.randn(1, 77, 32), torch.tensor([500.0])
    with torch.no_grad():
        expected = tiny.sd1().unet(x, time, tokens).sample
        got = ours("sd1", "file").network(x, time, Cond(tokens))
    assert off(got, expected) < 1e-5


@pytest.mark.parametrize(("name", "layout"), LAYOUTS)
def test_vae_equals_diffusers(name: str, layout: str) -> None:
    theirs, vae = MODELS[name]().vae, ours(name, layout).vae
    latents, pixels = torch.randn(1, 4, 8, 8), torch.rand(1, 3, 32, 32) * 2 - 1
    noise = torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        assert off(vae.decode(latents), theirs.decode(latents / 0.18215).sample) < 1e-5
        spread = theirs.encode(pixels).latent_dist
        assert off(vae.encode(pixels), spread.mean * 0.18215) < 1e-5
        assert off(vae.encode(pixels, noise), (spread.mean + spread.std * noise) * 0.18215) < 1e-5


def leading(scheduler: SchedulerMixin, times: list[int], ratios: list[float]) -> None:
    """Its own whole strides of time, which are ours."""
    scheduler.set_timesteps(STEPS)


def chosen(scheduler: SchedulerMixin, times: list[int], ratios: list[float]) -> None:
    """Our times, where it lets us choose."""
    scheduler.set_timesteps(timesteps=times)


def forced(scheduler: SchedulerMixin, times: list[int], ratios: list[float]) -> None:
    """Our levels, where it does not."""
    scheduler.set_timesteps(STEPS)
    scheduler.timesteps = torch.tensor(times)
    scheduler.sigmas = torch.tensor(ratios)


Setting = Callable[[SchedulerMixin, list[int], list[float]], None]
# Settings of all of theirs that have them.
COMMON = tiny.LEADING | {"final_sigmas_type": "zero"}
# Ours, our schedule, theirs, how theirs gets its levels, and whether theirs keeps x at alpha 1.
CASES: list[tuple[str, str, type[SchedulerMixin], Setting, bool]] = [
    ("ddim", "leading", DDIMScheduler, leading, False),
    ("ddpm", "leading", DDPMScheduler, leading, False),
    ("euler", "leading", EulerDiscreteScheduler, leading, True),
    ("euler_a", "leading", EulerAncestralDiscreteScheduler, leading, True),
    ("heun", "leading", HeunDiscreteScheduler, leading, True),
    ("lms", "leading", LMSDiscreteScheduler, leading, True),
    ("dpm++2m", "leading", DPMSolverMultistepScheduler, chosen, False),
    ("dpm++2m", "karras", DPMSolverMultistepScheduler, leading, False),
    ("unipc", "leading", UniPCMultistepScheduler, forced, False),
    ("lcm", "trailing", LCMScheduler, chosen, False),
]


@torch.no_grad()
def final_latent_of_diffusers(
    name: str,
    theirs: type[SchedulerMixin],
    levels: list[Level],
    setting: Setting,
    plain: bool,
    karras: bool,
) -> Tensor:
    """Their U-Net, text encoder and scheduler, guided as their pipeline does it."""
    model = MODELS[name]()
    process = ours(name, "folder").family.process.build()
    options = COMMON | {
        "prediction_type": model.scheduler["prediction_type"],
        "use_karras_sigmas": karras,
    }
    known = signature(theirs.__init__).parameters
    scheduler = theirs(**{key: value for key, value in options.items() if key in known})
    times = [process.time(level) for level in levels[:-1]]
    setting(scheduler, [round(time) for time in times], [level.ratio for level in levels])
    tokens = encoded(name)
    noise = torch.Generator().manual_seed(1)
    x = levels[0].sigma * torch.randn(SHAPE, generator=noise)
    x = x / levels[0].alpha if plain else x
    # Heun looks twice a step: at every level but the first and the last twice.
    looks = (
        [levels[0], *(a for a in levels[1:-1] for _ in "12")]
        if len(scheduler.timesteps) > STEPS
        else levels[:-1]
    )
    for level, step in zip(looks, scheduler.timesteps, strict=True):
        seen = scheduler.scale_model_input(x, step)
        time = process.time(level)
        away, towards = model.unet(torch.cat([seen, seen]), time, tokens).sample.chunk(2)
        out = away + CFG * (towards - away)
        more = {"order": 3} if isinstance(scheduler, LMSDiscreteScheduler) else {}
        if isinstance(scheduler, DDPMScheduler | EulerAncestralDiscreteScheduler | LCMScheduler):
            more = {"generator": noise}
        x = scheduler.step(out, step, x, **more).prev_sample
    return x


@cache
def encoded(name: str) -> Tensor:
    """Negative and positive prompt (2, 77, D)."""
    return ours(name, "folder").text.encode(["blurry", "a red apple"]).tokens


@pytest.mark.parametrize(
    ("name", "sampler", "schedule", "theirs", "setting", "plain"),
    [
        *(("sd1", *case) for case in CASES),
        *(("sd2", *case) for case in CASES if case[0] in ("ddpm", "dpm++2m", "lcm")),
    ],
)
def test_final_latents_equal_diffusers(
    name: str,
    sampler: str,
    schedule: str,
    theirs: type[SchedulerMixin],
    setting: Setting,
    plain: bool,
) -> None:
    if sampler == "lms":
        pytest.importorskip("scipy", reason="diffusers' LMS needs it")
    model = ours(name, "file")
    process = model.family.process.build()
    levels = SCHEDULES[schedule](process, STEPS)
    karras = schedule == "karras"
    expected = final_latent_of_diffusers(name, theirs, levels, setting, plain, karras)
    negative, positive = (Cond(tokens[None]) for tokens in encoded(name))
    predict = Predictor(model.network, process, PREDICTIONS[model.family.prediction])
    denoise = guided(predict, lambda _: positive, lambda _: negative, CFG)
    generator = torch.Generator().manual_seed(1)

    def noise(*levels: object) -> Tensor:
        return torch.randn(SHAPE, generator=generator)

    with torch.no_grad():
        *_, last = SAMPLERS[sampler](denoise, levels[0].sigma * noise(), levels, noise)
    assert off(last.x, expected) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["folder", "file"])
def test_full_size_loads_and_draws(layout: str, full_size: tiny.Tiny) -> None:
    model = load(str(getattr(full_size, layout)), CPU)
    assert model.family.name == "Stable Diffusion 1"
    process = model.family.process.build()
    cond = model.text.encode(["a red apple"])
    empty = model.text.encode([""])
    predict = Predictor(model.network, process, PREDICTIONS[model.family.prediction])
    denoise = guided(predict, lambda _: cond, lambda _: empty, CFG)
    levels = SCHEDULES["leading"](process, 2)
    with torch.no_grad():
        x = torch.randn(1, 4, 32, 32)
        *_, last = SAMPLERS["euler"](denoise, x, levels, lambda: torch.randn_like(x))
        pixels = model.vae.decode(last.x)
    assert pixels.shape == (1, 3, 256, 256)
    assert bool(torch.isfinite(pixels).all())


@pytest.fixture(scope="module")
def full_size() -> Iterator[tiny.Tiny]:
    """SD 1.5's size, random, in float16: 4 GB of files, gone after the tests."""
    with tempfile.TemporaryDirectory() as root:
        yield tiny.model(tiny.FULL_SD1, Path(root), "full-sd1", torch.float16)
