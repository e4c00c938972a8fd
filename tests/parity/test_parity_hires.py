"""A second pass at a larger size: diffusers' two pipelines, with torch's interpolation between."""

from dataclasses import replace

import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionPipeline

from tests.parity.test_parity_images_in import components, conditions, off, ours, scheduler
from txt2img.pipeline.generate import sample
from txt2img.request import Compat, Request, Sampler, Schedule
from txt2img.request.upscalers import parse_upscaler


@pytest.mark.parametrize(
    ("sampler", "schedule", "upscaler", "mode"),
    [
        ("ddim", Schedule.LEADING, "latent", "bilinear"),
        ("euler_a", Schedule.LEADING, "latent-nearest-exact", "nearest-exact"),
        ("dpm++2m", Schedule.KARRAS, "latent-bicubic", "bicubic"),
    ],
)
def test_both_passes_equal_diffusers(
    sampler: str, schedule: Schedule, upscaler: str, mode: str
) -> None:
    model = ours("sd1", "folder")
    request = Request(
        "a red apple",
        "blurry",
        width=128,
        height=64,
        steps=8,
        cfg=7.5,
        sampler=Sampler(sampler),
        schedule=schedule,
        seed=5,
        compat=Compat.DIFFUSERS,
        hires=1.5,
        hires_upscaler=parse_upscaler(upscaler),
        hires_strength=0.6,
    ).filled(model.family.defaults)
    *_, last = sample(model, [request])

    parts, call = components("sd1", sampler), {"guidance_scale": 7.5, "output_type": "latent"}
    call |= conditions(model, request)
    first, second = StableDiffusionPipeline(**parts), StableDiffusionImg2ImgPipeline(**parts)
    for pipeline in (first, second):
        pipeline.set_progress_bar_config(disable=True)
    x = first(
        **call, num_inference_steps=8, height=64, width=128,
        generator=torch.Generator().manual_seed(5),
    ).images  # fmt: skip
    larger = torch.nn.functional.interpolate(x, (24, 48), mode=mode)
    second.scheduler = scheduler("sd1", sampler)
    wanted = second(
        **call, image=larger, num_inference_steps=8, strength=0.6,
        generator=torch.Generator().manual_seed(5),
    ).images  # fmt: skip
    assert (last.step, last.steps) == (8 + 4, 8 + 4)
    assert off(last.x, wanted) < 1e-4


def test_a_batch_is_enlarged_as_each_alone() -> None:
    model = ours("sd1", "folder")
    request = Request(
        "a", width=64, height=64, steps=2, seed=5, hires=1.5,
        hires_upscaler=parse_upscaler("lanczos"),
    ).filled(model.family.defaults)  # fmt: skip
    *_, both = sample(model, [request, replace(request, seed=6)])
    for x, seed in zip(both.x, (5, 6), strict=True):
        *_, alone = sample(model, [replace(request, seed=seed)])
        assert torch.equal(alone.x[0], x)
