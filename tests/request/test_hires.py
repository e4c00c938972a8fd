"""The second pass: its size, its steps by whosever rules, and its words in A1111's text."""

from dataclasses import replace

import pytest

from txt2img.errors import BadRequest
from txt2img.images.metadata import a1111
from txt2img.images.record import Origin, metadata
from txt2img.request import Compat, Request, Sampler
from txt2img.request.compat import rules, steps_of
from txt2img.request.hires import (
    all_steps,
    check_hires,
    hires_sizes,
    second_pass,
    second_rules,
    without_hires,
)
from txt2img.request.upscalers import UpscalerRef, parse_upscaler

BASE = Request("a cat", width=512, height=640, steps=20, cfg=7.0, sampler=Sampler.EULER, seed=1)


@pytest.mark.parametrize(
    ("by", "width", "height", "scaled", "final"),
    [  # of A1111's calculate_target_resolution, in whole cells
        (2.0, None, None, (1024, 1280), (1024, 1280)),
        (1.7, None, None, (864, 1088), (864, 1088)),
        (None, 1000, None, (1000, 1248), (1000, 1248)),
        (None, None, 1280, (1024, 1280), (1024, 1280)),
        (None, 1024, 1024, (1024, 1280), (1024, 1024)),
        (None, 768, 1280, (1024, 1280), (768, 1280)),
    ],
)
def test_sizes_are_a1111s(
    by: float | None,
    width: int | None,
    height: int | None,
    scaled: tuple[int, int],
    final: tuple[int, int],
) -> None:
    request = replace(BASE, hires=by, hires_width=width, hires_height=height)
    assert hires_sizes(request) == (scaled, final)
    second = second_pass(request)
    assert (second.width, second.height) == final and not second.has_hires


@pytest.mark.parametrize(
    ("compat", "sampler", "strength", "steps", "total", "drawn"),
    [  # reForge's setup_img2img_steps(p, steps), ComfyUI's KSampler.set_steps, diffusers' pipelines
        (Compat.A1111, Sampler.EULER, 0.7, None, 28, 20),
        (Compat.A1111, Sampler.EULER, 0.5, 12, 24, 12),
        (Compat.A1111, Sampler.EULER, 1.0, 12, 12, 12),
        (Compat.A1111, Sampler.DDIM, 0.5, 12, 24, 10),
        (Compat.FORGE, Sampler.EULER, 0.3, 10, 33, 10),
        (Compat.COMFYUI, Sampler.EULER, 0.7, None, 28, 20),
        (Compat.COMFYUI, Sampler.EULER, 0.5, 12, 24, 12),
        (Compat.DIFFUSERS, Sampler.EULER, 0.7, None, 20, 14),
        (Compat.DIFFUSERS, Sampler.EULER, 0.5, 12, 12, 6),
        (None, Sampler.EULER, 0.7, None, 20, 14),
        (None, Sampler.EULER, 0.5, 12, 24, 12),
        (None, Sampler.EULER, 0.0, None, 20, 0),
    ],
)
def test_steps_are_counted_by_the_rules(
    compat: Compat | None,
    sampler: Sampler,
    strength: float,
    steps: int | None,
    total: int,
    drawn: int,
) -> None:
    request = replace(
        BASE, compat=compat, sampler=sampler, hires=2.0, hires_strength=strength, hires_steps=steps
    )
    counted = steps_of(second_pass(request), second_rules(request))
    assert (counted.total, counted.drawn) == (total, drawn)
    assert all_steps(request) == 20 + drawn
    assert steps_of(without_hires(request), rules(request)).drawn == 20


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"hires_strength": 0.5}, "hires-strength is of a second pass: say with hires how many"),
        ({"hires": 20.0}, "hires must be 0 … 8, got 20"),
        ({"hires": 0.1}, "hires: width must be 64 … 8,192, got 48"),
        ({"hires": 2.0, "only_masked": 8}, "hires enlarges a whole picture; leave out only_masked"),
    ],
)
def test_what_cannot_be_is_said(fields: dict[str, object], line: str) -> None:
    with pytest.raises(BadRequest) as caught:
        request = BASE.with_json(fields)
        check_hires(request)
        hires_sizes(request)
    assert str(caught.value).startswith(line)


@pytest.mark.parametrize(
    "request_",
    [
        replace(BASE, compat=Compat.A1111, hires=2.0),
        replace(BASE, compat=Compat.A1111, hires=1.5, hires_steps=9, hires_strength=0.35),
        replace(BASE, compat=Compat.A1111, hires_width=1024, hires_height=768),
        replace(BASE, compat=Compat.A1111, hires_height=1024),
        replace(BASE, hires=2.0, hires_upscaler=UpscalerRef("4x-UltraSharp", "0123456789")),
        replace(BASE, hires=2.0, hires_upscaler=parse_upscaler("Latent (bicubic antialiased)")),
    ],
)
def test_records_come_back(request_: Request) -> None:
    texts = metadata(request_, Origin("default"), "0" * 64)
    again, notes = a1111.to_request(a1111.parse(texts["parameters"]))
    assert not notes
    assert hires_sizes(again) == hires_sizes(request_)
    assert second_pass(again).strength == second_pass(request_).strength
    steps = [steps_of(second_pass(one), second_rules(one)) for one in (request_, again)]
    assert steps[0] == steps[1], texts["parameters"]
    labels = [one.hires_upscaler and one.hires_upscaler.label for one in (request_, again)]
    assert labels[0] in (None, labels[1])
    assert Request.from_json(request_.to_json()) == request_


def test_a_picture_of_a1111_is_read_with_its_words() -> None:
    text = (
        "a cat\nSteps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 1, "
        "Size: 512x512, Model hash: 0123456789, Model: m, Denoising strength: 0.45, RNG: CPU, "
        "Hires upscale: 1.7, Hires steps: 12, Hires upscaler: {}, {}Version: v1.10.1"
    )
    request, notes = a1111.to_request(a1111.parse(text.format("Latent (nearest-exact)", "")))
    assert (request.hires, request.hires_steps, request.hires_strength) == (1.7, 12, 0.45)
    assert str(request.hires_upscaler) == "latent-nearest-exact" and not notes
    assert request.strength is None
    same = "Hires sampler: DPM++ 2M, Hires CFG Scale: 7, Hires Module 1: Use same choices, "
    request, notes = a1111.to_request(a1111.parse(text.format("None", same)))
    assert str(request.hires_upscaler) == "lanczos" and not notes
    other = 'Hires sampler: Euler, Hires prompt: "a dog, there", Hires steps: 0, '
    request, notes = a1111.to_request(a1111.parse(text.format("R-ESRGAN 4x+", other)))
    assert request.hires_steps is None and str(request.hires_upscaler) == "R-ESRGAN 4x+"
    assert notes == [
        'Hires sampler: "Euler" is not carried over',
        'Hires prompt: "a dog, there" is not carried over',
    ]
