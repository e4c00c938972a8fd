"""Pictures that begin from a picture: final latents and pixels of diffusers' own pipelines.

Under --compat diffusers. Theirs get our conditions, which test_whole.py proves equal; the draws of
their generator decide the rest: first the VAE's, then the start's, then the steps'.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from inspect import signature
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    SchedulerMixin,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLInstructPix2PixPipeline,
    UniPCMultistepScheduler,
)
from PIL import Image
from torch import Tensor

from tests.support import tiny, tiny_xl
from txt2img.pipeline.encode_prompts import encode
from txt2img.pipeline.generate import decode, noise_levels, sample
from txt2img.request import Compat, Request, Sampler, Schedule
from txt2img.request.compat import rules
from txt2img.request.input_image import ImageRef
from txt2img.system.device.device import Device
from txt2img.weights.apply_adapters import resolve_adapters
from txt2img.weights.load import load
from txt2img.weights.model import Model

CPU = Device(torch.device("cpu"), torch.float32)
MODELS = {
    "sd1": tiny.sd1,
    "sd2": tiny.sd2,
    "xl": tiny_xl.base,
    "inpaint": tiny.inpaint,
    "xl-inpaint": tiny_xl.inpaint,
    "pix2pix": tiny.pix2pix,
    "xl-pix2pix": tiny_xl.pix2pix,
}
PLAIN = ("sd1", "sd2", "xl")
# Ours, our schedule, theirs.
SCHEDULERS: dict[str, tuple[Schedule, type[SchedulerMixin]]] = {
    "ddim": (Schedule.LEADING, DDIMScheduler),
    "euler": (Schedule.LEADING, EulerDiscreteScheduler),
    "euler_a": (Schedule.LEADING, EulerAncestralDiscreteScheduler),
    "dpm++2m": (Schedule.KARRAS, DPMSolverMultistepScheduler),
    "unipc": (Schedule.KARRAS, UniPCMultistepScheduler),
    "heun": (Schedule.LEADING, HeunDiscreteScheduler),
    "lcm": (Schedule.TRAILING, LCMScheduler),
}
STRENGTHS = (0.1, 0.5, 0.75, 1.0)
# Each sampler and each strength, on each model and layout, once or twice.
FEW = [
    *(("sd1", "folder", "ddim", 0.1), ("sd1", "file", "euler", 0.5)),
    *(("sd2", "folder", "euler_a", 0.75), ("sd2", "file", "dpm++2m", 1.0)),
    *(("xl", "folder", "unipc", 0.5), ("xl", "file", "heun", 0.75)),
    *(("sd1", "folder", "lcm", 0.5), ("xl", "file", "euler_a", 1.0)),
]
ALL = [
    (name, layout, sampler, strength)
    for name in PLAIN
    for layout in ("folder", "file")
    for sampler in SCHEDULERS
    for strength in STRENGTHS
]
# Masked ones, by models of four channels and of nine.
FEW_MASKED = [
    *(("sd1", "folder", "ddim", 0.5), ("sd1", "file", "euler_a", 1.0)),
    *(("sd2", "folder", "heun", 0.75), ("xl", "file", "unipc", 0.75)),
    *(("inpaint", "folder", "euler_a", 1.0), ("inpaint", "file", "dpm++2m", 0.5)),
    *(("xl-inpaint", "folder", "euler", 0.75), ("xl-inpaint", "file", "lcm", 1.0)),
]
ALL_MASKED = [
    (name, layout, sampler, strength)
    for name in (*PLAIN, "inpaint", "xl-inpaint")
    for layout in ("folder", "file")
    for sampler in SCHEDULERS
    for strength in STRENGTHS
]
FEW_EDITED = [
    *(("pix2pix", "folder", "euler_a"), ("pix2pix", "file", "dpm++2m")),
    *(("xl-pix2pix", "folder", "euler"), ("xl-pix2pix", "file", "dpm++2m")),
]
ALL_EDITED = [
    (name, layout, sampler)
    for name in ("pix2pix", "xl-pix2pix")
    for layout in ("folder", "file")
    for sampler in SCHEDULERS
]
Case = tuple[object, ...]


def cases(few: Sequence[Case], all: Sequence[Case]) -> list[object]:
    """The few, and all others behind the marker of slow tests."""
    return [*few, *(pytest.param(*c, marks=pytest.mark.slow) for c in all if c not in few)]


@cache
def ours(name: str, layout: str) -> Model:
    return load(str(getattr(MODELS[name](), layout)), CPU)


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("picture") / "start.png"
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((64, 64), Image.Resampling.BICUBIC).save(path)
    return path


@pytest.fixture(scope="module")
def mask(picture: Path) -> Path:
    """White on the right, with a border that no cell of the latent has."""
    image = Image.new("L", (64, 64))
    image.paste(255, (29, 10, 64, 50))
    image.save(picture.with_name("mask.png"))
    return picture.with_name("mask.png")


def off(got: Tensor, wanted: Tensor) -> float:
    """The largest miss, relative to the largest value."""
    assert got.shape == wanted.shape
    return float((got - wanted).abs().max() / wanted.abs().max())


def filled(model: Model, sampler: str, picture: Path, **more: object) -> Request:
    """A request under diffusers' rules, as the command makes it."""
    request = Request(
        "a red apple",
        "blurry",
        "m",
        steps=10,
        cfg=7.5,
        sampler=Sampler(sampler),
        schedule=SCHEDULERS[sampler][0],
        seed=5,
        image=ImageRef(str(picture)),
        compat=Compat.DIFFUSERS,
    )
    resolved = resolve_adapters(model, request.with_json(more))
    return resolved.filled(model.family.defaults)


def scheduler(name: str, sampler: str) -> SchedulerMixin:
    """Their scheduler, to step as ours does: to where alpha is 1."""
    schedule, theirs = SCHEDULERS[sampler]
    prediction = "v_prediction" if name == "sd2" else "epsilon"
    options = tiny.LEADING | {
        "prediction_type": prediction,
        "use_karras_sigmas": schedule is Schedule.KARRAS,
        "final_sigmas_type": "zero",
    }
    known = signature(theirs.__init__).parameters
    return theirs(**{key: value for key, value in options.items() if key in known})


def components(name: str, sampler: str) -> dict[str, object]:
    """What a pipeline of theirs is made of; ours encodes the texts."""
    model = MODELS[name]()
    parts = {"vae": model.vae, "unet": model.unet, "scheduler": scheduler(name, sampler)}
    parts |= {"text_encoder": None, "tokenizer": None}
    if name.startswith("xl"):
        return parts | {"text_encoder_2": None, "tokenizer_2": None}
    more = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return parts | more


def conditions(model: Model, request: Request) -> dict[str, Tensor | None]:
    """Our conditions by their names."""
    [(_, positive)], [(_, negative)] = encode(model, request, rules(request))
    named = {"prompt_embeds": positive.tokens, "negative_prompt_embeds": negative.tokens}
    if positive.pooled is not None:
        named |= {"pooled_prompt_embeds": positive.pooled}
        named |= {"negative_pooled_prompt_embeds": negative.pooled}
    return named


def opened(path: Path) -> Image.Image:
    """A picture, its file closed."""
    with Image.open(path) as image:
        return image.copy()


def arguments(model: Model, request: Request, picture: Path) -> dict[str, object]:
    """What a call of a pipeline of theirs is given."""
    levels = noise_levels(model, request, rules(request))
    process = model.family.process.build()
    times = [round(process.time(level)) for level in levels[:-1]]
    return {
        **conditions(model, request),
        **({"timesteps": times} if request.sampler is Sampler.LCM else {}),
        "image": opened(picture),
        "num_inference_steps": request.steps,
        "strength": request.strength,
        "guidance_scale": request.cfg,
        "generator": torch.Generator().manual_seed(request.seed or 0),
        "eta": 0.0,
    }


def check(model: Model, request: Request, pipeline: object, call: dict[str, object]) -> None:
    """Compare the final latents, then the pixels that they become."""
    pipeline.set_progress_bar_config(disable=True)  # type: ignore[attr-defined]
    *_, last = sample(model, [request])
    wanted = pipeline(**call, output_type="latent").images  # type: ignore[operator]
    assert off(last.x, wanted) < 1e-4
    vae = pipeline.vae  # type: ignore[attr-defined]
    with torch.no_grad():
        pixels = vae.decode(wanted / vae.config.scaling_factor).sample
    drawn = (pixels[0].permute(1, 2, 0).clamp(-1, 1) + 1) * 127.5
    [image] = decode(model, last.x, request)
    assert float((drawn - torch.from_numpy(np.array(image)).float()).abs().max()) <= 2


@pytest.mark.parametrize(("name", "layout", "sampler", "strength"), cases(FEW, ALL))
def test_img2img_equals_diffusers(
    name: str, layout: str, sampler: str, strength: float, picture: Path
) -> None:
    model = ours(name, layout)
    request = filled(model, sampler, picture, strength=strength)
    kind = StableDiffusionXLImg2ImgPipeline if name == "xl" else StableDiffusionImg2ImgPipeline
    check(model, request, kind(**components(name, sampler)), arguments(model, request, picture))


@pytest.mark.parametrize(("name", "layout", "sampler", "strength"), cases(FEW_MASKED, ALL_MASKED))
def test_inpainting_equals_diffusers(
    name: str, layout: str, sampler: str, strength: float, picture: Path, mask: Path
) -> None:
    model = ours(name, layout)
    request = filled(model, sampler, picture, strength=strength, mask=str(mask))
    xl = name.startswith("xl")
    kind = StableDiffusionXLInpaintPipeline if xl else StableDiffusionInpaintPipeline
    call = arguments(model, request, picture) | {"mask_image": opened(mask)}
    check(model, request, kind(**components(name, sampler)), call | {"height": 64, "width": 64})


@pytest.mark.parametrize(("name", "layout", "sampler"), cases(FEW_EDITED, ALL_EDITED))
def test_instructions_equal_diffusers(name: str, layout: str, sampler: str, picture: Path) -> None:
    model, xl = ours(name, layout), name.startswith("xl")
    request = filled(model, sampler, picture, image_cfg=1.7)
    assert request.strength == 1
    kinds = StableDiffusionInstructPix2PixPipeline, StableDiffusionXLInstructPix2PixPipeline
    pipeline = kinds[xl](**components(name, sampler))
    if sampler == "lcm":  # it takes no times of the caller's
        own = pipeline.scheduler.set_timesteps
        times = arguments(model, request, picture)["timesteps"]
        pipeline.scheduler.set_timesteps = lambda *_, **__: own(timesteps=times)
    call = arguments(model, request, picture) | {"image_guidance_scale": 1.7}
    call |= {"height": 64, "width": 64} if xl else {}
    for name in ("strength", "timesteps"):
        call.pop(name, None)
    check(model, request, pipeline, call)


def test_a_batch_is_noised_by_each_seed_as_alone(picture: Path) -> None:
    model = ours("sd1", "folder")
    request = filled(model, "euler_a", picture, strength=0.5)
    *_, both = sample(model, [request, replace(request, seed=6)])
    for x, seed in zip(both.x, (5, 6), strict=True):
        *_, alone = sample(model, [replace(request, seed=seed)])
        assert torch.equal(alone.x[0], x)
