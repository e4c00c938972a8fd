"""Transformers' pictures that begin from a picture, as diffusers' own pipelines draw them."""

from collections import deque
from pathlib import Path

import pytest
import torch
from diffusers import (
    DiffusionPipeline,
    FluxFillPipeline,
    FluxImg2ImgPipeline,
    FluxInpaintPipeline,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusion3InpaintPipeline,
    ZImageImg2ImgPipeline,
)
from PIL import Image
from torch import Tensor

from tests.parity.test_parity_transformers import (
    HEIGHT,
    NEGATIVE,
    PROMPT,
    SEED,
    STEPS,
    WIDTH,
    loaded,
    picture,
    request,
    sibling,
    tiny,
)
from txt2img.pipeline.generate import sample
from txt2img.request import Compat, Request
from txt2img.weights.apply_adapters import resolve_adapters

SIZE = {"height": HEIGHT, "width": WIDTH}
# Arguments of a call that not all pipelines have; Z-Image's count guidance from 0.
OWN = {
    "flux_dev": {"guidance_scale": 3.5, "max_sequence_length": 512},
    "flux_schnell": {"max_sequence_length": 256},
    "flux_fill": {"guidance_scale": 30.0, "max_sequence_length": 512},
    "sd3": {"guidance_scale": 4.5, "negative_prompt": NEGATIVE, "max_sequence_length": 256},
    "z_image": {"guidance_scale": 2.5, "negative_prompt": NEGATIVE},
}
CFG = {"sd3": 4.5, "z_image": 3.5}


def shown() -> tuple[Image.Image, Image.Image]:
    """A picture, and a mask with a border that no cell of the latent has."""
    mask = Image.new("L", (WIDTH, HEIGHT))
    mask.paste(255, (29, 10, WIDTH, 77))
    return picture(WIDTH, HEIGHT), mask


def ours(name: str, strength: float | None, masked: bool) -> Tensor:
    """Our final latents, under diffusers' rules."""
    image, mask = shown()
    image.save("a.png")
    mask.save("m.png")
    given = {"image": "a.png", "strength": strength, "compat": Compat.DIFFUSERS.value}
    asked: Request = request(CFG.get(name, 1.0)).with_json(given)
    asked = asked.with_json({"mask": "m.png"}) if masked else asked
    model = loaded(name)
    filled = resolve_adapters(model, asked).filled(model.family.defaults)
    [last] = deque(sample(model, [filled]), maxlen=1)
    return last.x


@torch.no_grad()
def theirs(
    kind: type[DiffusionPipeline], name: str, strength: float | None, masked: bool
) -> Tensor:
    """The final latents of a pipeline of diffusers."""
    pipeline = sibling(kind, tiny(name))
    image, mask = shown()
    out = pipeline(
        prompt=PROMPT,
        image=image,
        **({"mask_image": mask} if masked else {}),
        **({} if strength is None else {"strength": strength}),
        **OWN[name],
        **SIZE,
        num_inference_steps=STEPS,
        generator=torch.Generator().manual_seed(SEED),
        output_type="latent",
    ).images
    packed = out.dim() == 3
    return pipeline._unpack_latents(out, HEIGHT, WIDTH, 8) if packed else out


def check(got: Tensor, wanted: Tensor) -> None:
    assert got.shape == wanted.shape
    assert float((got - wanted).abs().max() / wanted.abs().max()) <= 1e-4


@pytest.mark.parametrize("strength", [0.25, 0.75, 1.0])
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (FluxImg2ImgPipeline, "flux_dev"),
        (FluxImg2ImgPipeline, "flux_schnell"),
        (StableDiffusion3Img2ImgPipeline, "sd3"),
        (ZImageImg2ImgPipeline, "z_image"),
    ],
)
def test_img2img_equals_diffusers(
    folder: Path, kind: type[DiffusionPipeline], name: str, strength: float
) -> None:
    check(ours(name, strength, False), theirs(kind, name, strength, False))


@pytest.mark.parametrize("strength", [0.5, 1.0])
@pytest.mark.parametrize(
    ("kind", "name"), [(FluxInpaintPipeline, "flux_dev"), (StableDiffusion3InpaintPipeline, "sd3")]
)
def test_inpainting_equals_diffusers(
    folder: Path, kind: type[DiffusionPipeline], name: str, strength: float
) -> None:
    check(ours(name, strength, True), theirs(kind, name, strength, True))


@pytest.mark.parametrize("strength", [0.3, 0.7])  # of 8 steps: 2.4 and 5.6, rounded up
def test_shares_of_a_step_count_as_one_as_in_diffusers(folder: Path, strength: float) -> None:
    check(
        ours("flux_dev", strength, False),
        theirs(FluxImg2ImgPipeline, "flux_dev", strength, False),
    )


@pytest.mark.parametrize("strength", [None, 0.5])
def test_fill_equals_diffusers(folder: Path, strength: float | None) -> None:
    check(ours("flux_fill", strength, True), theirs(FluxFillPipeline, "flux_fill", strength, True))
