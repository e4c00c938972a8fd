"""Skip-layer guidance of Stable Diffusion 3 as in diffusers' pipeline."""

from collections import deque
from dataclasses import replace

import pytest
import torch

from tests.conftest import Command
from tests.parity.test_parity_transformers import (
    HEIGHT,
    NEGATIVE,
    PROMPT,
    WIDTH,
    arguments,
    loaded,
    noise,
    request,
    tiny,
)
from txt2img.models.configs import SD3Config
from txt2img.pipeline.generate import sample

SKIP_STEPS = 8  # one of them lies in the interval in which a layer is skipped


@pytest.fixture(autouse=True)
def of_a_tiny_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny model has two blocks."""
    monkeypatch.setattr(SD3Config, "skip_layers", (0,))


@torch.no_grad()
def test_latents_equal_those_of_diffusers() -> None:
    model = loaded("sd3")
    wanted = (
        tiny("sd3")
        .pipeline(
            prompt=PROMPT,
            negative_prompt=NEGATIVE,
            guidance_scale=4.5,
            height=HEIGHT,
            width=WIDTH,
            num_inference_steps=SKIP_STEPS,
            latents=noise(model, 4.5),
            output_type="latent",
            max_sequence_length=256,
            skip_guidance_layers=[0],
        )
        .images
    )
    plain = replace(request(4.5), steps=SKIP_STEPS).filled(model.family.defaults)
    [last] = deque(sample(model, [replace(plain, skip_layer_guidance=2.8)]), maxlen=1)
    [without] = deque(sample(model, [plain]), maxlen=1)
    largest = float(wanted.abs().max())
    assert float((last.x - wanted).abs().max()) / largest <= 1e-4
    assert float((last.x - without.x).abs().max()) / largest > 1e-2


def test_it_is_recorded_and_drawn_without_cfg_and_with_and(command: Command) -> None:
    size = ("--width", "64", "--height", "64", "--steps", "6", "--seed", "1")
    pictures = []
    for name, more in (
        ("a", ("--slg", "2.8", "--cfg", "1")),
        ("b", ("--cfg", "1")),
        ("c", ("--slg", "2.8", "--cfg", "3")),
    ):
        prompt = "a cat AND a dog" if name == "c" else "a cat"
        outcome = command(prompt, *arguments("sd3", "folder"), *size, *more, "-o", f"{name}.png")
        assert outcome.code == 0, outcome.err
        pictures.append(command("info", f"{name}.png").out)
    assert "skip" in pictures[0].lower() and "skip" not in pictures[1].lower()


def test_it_is_refused_by_other_models(command: Command) -> None:
    outcome = command("a cat", *arguments("z_image", "folder"), "--skip-layer-guidance", "2")
    assert outcome.code == 2
    assert "--skip-layer-guidance: it is for Stable Diffusion 3.5, not Z-Image" in outcome.err
