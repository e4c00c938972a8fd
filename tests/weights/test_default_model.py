"""The model in the package: it is there, small, ordinary, and draws what it is asked for."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from PIL import Image

from tests.conftest import Command
from txt2img.pipeline.generate import generate
from txt2img.pipeline.noise import fresh_noise
from txt2img.request import Request, Sampler, Schedule
from txt2img.request.adapters import Lora
from txt2img.request.compat import rules
from txt2img.system.device.device import choose
from txt2img.weights.apply_adapters import resolve_adapters
from txt2img.weights.checkpoint import DEFAULT
from txt2img.weights.load import load
from txt2img.weights.model import Model
from txt2img.weights.registry.find import SHIPPED

LIMIT = 64 * 2**20  # bytes: what a wheel may well carry
GOLDEN = Path(__file__).parent.parent / "pictures" / "golden.png"
APPLE = ("red apple, 3d emoji", "--steps", "30", "--cfg", "7.5", "--seed")


@cache
def model() -> Model:
    return load("default", choose("cpu"))


def drawn(prompt: str, **options: object) -> np.ndarray:
    """The pixels (H, W, 3), 0 to 255, of a prompt."""
    [image] = generate(Request.from_json({"prompt": prompt, "seed": 42, **options}), model())
    return np.asarray(image, dtype=np.float64)


def middle(pixels: np.ndarray) -> np.ndarray:
    """The inner quarter of pixels (H, W, 3)."""
    height, width = (side // 4 for side in pixels.shape[:2])
    return pixels[height:-height, width:-width]


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / max(((a - b) ** 2).mean(), 1e-9)))


def test_it_fits_the_package() -> None:
    assert sum(path.stat().st_size for path in DEFAULT.rglob("*") if path.is_file()) <= LIMIT


def test_twice_the_same_line_gives_the_same_bytes(command: Command) -> None:
    for name in ("a.png", "b.png"):
        assert command(*APPLE, "42", "-o", name).code == 0
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()


def test_the_second_of_four_is_the_next_seed_alone_at_any_batch_size(command: Command) -> None:
    line = ("yellow star, flat emoji", "--steps", "6", "--seed")
    command(*line, "43", "-o", "alone.png")
    for size in ("1", "3", "4"):
        folder = f"by{size}"
        command(*line, "42", "--count", "4", "--batch-size", size, "-o", f"{folder}/{{index}}.png")
        with Image.open("alone.png") as alone, Image.open(f"{folder}/0002.png") as second:
            assert alone.tobytes() == second.tobytes()
    with Image.open("by1/0001.png") as first, Image.open("by1/0002.png") as second:
        assert first.tobytes() != second.tobytes()


def test_guidance_makes_a_visible_difference() -> None:
    free, guided = (drawn("red apple, 3d emoji", cfg=cfg) for cfg in (1.0, 7.5))
    assert psnr(free, guided) < 25


def test_a_colour_in_the_prompt_is_a_colour_in_the_picture() -> None:
    red, green = (
        np.stack([middle(drawn(f"{colour} apple, 3d emoji", seed=seed)) for seed in (42, 43, 44)])
        for colour in ("red", "green")
    )
    assert red[..., 0].mean() > green[..., 0].mean() + 30  # a green apple's is a yellow green
    assert green[..., 1].mean() > red[..., 1].mean() + 30
    assert red[..., 0].mean() > red[..., 1].mean() + 30
    assert green[..., 1].mean() > green[..., 0].mean() + 30


def test_a_background_in_the_prompt_is_the_background_of_the_picture() -> None:
    corners = drawn("penguin, flat emoji, on a blue background")[[4, 4, -5, -5], [4, -5, 4, -5]]
    red, green, blue = corners.mean(axis=0)
    assert blue > green + 40 > red + 80


def test_a_plain_background_is_plain() -> None:
    corners = drawn("red apple, 3d emoji")[[2, 2, -3, -3], [2, -3, 2, -3]]
    assert corners.min() > 225


def test_it_draws_what_it_drew_when_it_was_shipped() -> None:
    """Not to the bit: other versions of torch may round otherwise."""
    with Image.open(GOLDEN) as golden:
        expected = np.asarray(golden.convert("RGB"), dtype=np.float64)
    assert psnr(drawn("red apple, 3d emoji", steps=30, cfg=7.5), expected) > 35


def test_four_steps_with_its_lora_draw_what_thirty_do() -> None:
    """As near as another solver of as many guided steps comes, for half of the passes."""
    prompt = "lion, twemoji <lora:few-steps:1>"
    asked = resolve_adapters(model(), Request(prompt))
    assert (asked.steps, asked.cfg, asked.sampler) == (4, 1.0, Sampler.EULER)
    many = drawn("lion, twemoji")
    assert psnr(drawn(prompt), many) > 23
    assert psnr(drawn("lion, twemoji", steps=4, cfg=1.0, sampler="euler"), many) < 20


@pytest.mark.parametrize(("steps", "cfg", "loras"), [(10, 5.0, ()), (4, 1.0, (Lora("few-steps"),))])
def test_diffusers_draws_the_same_picture_from_the_same_files(
    steps: int, cfg: float, loras: tuple[Lora, ...]
) -> None:
    request = Request(
        "octopus, flat emoji",
        steps=steps,
        cfg=cfg,
        seed=7,
        sampler=Sampler.DDIM,
        schedule=Schedule.TRAILING,
        loras=loras,
    )
    [ours] = generate(request, model())
    pipe = StableDiffusionPipeline.from_pretrained(DEFAULT, torch_dtype=torch.float32)
    for lora in loras:
        pipe.load_lora_weights(SHIPPED, weight_name=f"{lora.name}.safetensors")
    assert isinstance(pipe.scheduler, DDIMScheduler)
    pipe.set_progress_bar_config(disable=True)
    side = ours.height // model().vae.config.factor
    latent = (model().vae.config.latent_channels, side, side)
    start = fresh_noise([request], rules(request), latent, torch.device("cpu"))()
    theirs = pipe(
        request.prompt,
        num_inference_steps=steps,
        guidance_scale=cfg,
        latents=start,
        width=ours.width,
        height=ours.height,
    ).images[0]
    difference = psnr(np.asarray(ours, dtype=np.float64), np.asarray(theirs, dtype=np.float64))
    assert difference > 45
