"""Pictures of diffusion transformers as diffusers' own pipelines draw them, in every layout."""

import inspect
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, FluxControlPipeline, FluxFillPipeline
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from PIL import Image
from torch import Tensor

from tests.conftest import Command
from tests.support import tiny_transformers
from tests.support.tiny_transformers import TinyTransformer
from txt2img.pipeline.generate import latent_shape, sample
from txt2img.pipeline.init_image import init_image
from txt2img.pipeline.noise import fresh_noise
from txt2img.request import Request
from txt2img.request.compat import rules
from txt2img.request.input_image import ImageRef
from txt2img.system.device.device import Device
from txt2img.weights.apply_adapters import resolve_adapters
from txt2img.weights.load import load
from txt2img.weights.model import Model

CPU = Device(torch.device("cpu"), torch.float32)
PROMPT, NEGATIVE = "a red apple, Zoë's CAFÉ", "blurry"
HEIGHT, WIDTH, STEPS, SEED = 96, 64, 4, 5
LAYOUTS = ("folder", "single", "split")
CASES = [
    ("flux_dev", 1.0),
    ("flux_dev", 3.0),
    ("flux_schnell", 1.0),
    ("sd3", 4.5),
    ("z_image", 1.0),
    ("z_image", 3.5),
    ("flux2_klein", 1.0),
    ("flux2_klein", 4.0),
]


@cache
def tiny(name: str) -> TinyTransformer:
    made: Callable[[], TinyTransformer] = getattr(tiny_transformers, name)
    return made()


def arguments(name: str, layout: str) -> list[str]:
    """Options that name a model's files."""
    files = tiny(name)
    if layout != "split":
        return ["--model", str(getattr(files, layout))]
    texts = [part for path in files.texts for part in ("--text-encoder", str(path))]
    return ["--model", str(files.network), *texts, "--vae", str(files.vae)]


@cache
def loaded(name: str) -> Model:
    return load(str(tiny(name).folder), CPU)


def request(cfg: float) -> Request:
    return Request(PROMPT, NEGATIVE, "m", WIDTH, HEIGHT, STEPS, cfg, seed=SEED)


def noise(model: Model, cfg: float) -> Tensor:
    """The initial noise (1, C, h, w), which diffusers is given."""
    vae = model.vae.config
    shape = vae.latent_channels, HEIGHT // vae.factor, WIDTH // vae.factor
    return fresh_noise([request(cfg)], rules(request(cfg)), shape, CPU.torch_device)()


def picture(width: int, height: int) -> Image.Image:
    """A picture of smooth colours."""
    down, across = np.mgrid[0:height, 0:width]
    channels = [down * 2 % 256, across * 3 % 256, (down + across) % 256]
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))


@cache
@torch.no_grad()
def theirs(name: str, cfg: float, output: str) -> Tensor | Image.Image:
    """What diffusers' pipeline makes of the same noise: latents, or a picture."""
    files = tiny(name)
    start = noise(loaded(name), cfg)
    result = THEIRS[files.family](files.pipeline, start, cfg, output)
    return result


def flux(pipeline: object, start: Tensor, cfg: float, output: str) -> Tensor | Image.Image:
    """FLUX.1's true guidance is beside the embedded scale; its latents are in patches."""
    packed = pipeline._pack_latents(start, *start.shape)
    out = pipeline(
        prompt=PROMPT,
        negative_prompt=NEGATIVE if cfg > 1 else None,
        true_cfg_scale=cfg,
        guidance_scale=3.5,
        height=HEIGHT,
        width=WIDTH,
        num_inference_steps=STEPS,
        latents=packed,
        output_type=output,
        max_sequence_length=512 if pipeline.transformer.config.guidance_embeds else 256,
    ).images
    return pipeline._unpack_latents(out, HEIGHT, WIDTH, 8) if output == "latent" else out[0]


def sd3(pipeline: object, start: Tensor, cfg: float, output: str) -> Tensor | Image.Image:
    """Stable Diffusion 3."""
    out = pipeline(
        prompt=PROMPT,
        negative_prompt=NEGATIVE,
        guidance_scale=cfg,
        height=HEIGHT,
        width=WIDTH,
        num_inference_steps=STEPS,
        latents=start,
        output_type=output,
        max_sequence_length=256,
    ).images
    return out if output == "latent" else out[0]


def z_image(pipeline: object, start: Tensor, cfg: float, output: str) -> Tensor | Image.Image:
    """Z-Image, whose pipeline counts guidance from 0, where there is none, and not from 1."""
    out = pipeline(
        prompt=PROMPT,
        negative_prompt=NEGATIVE,
        guidance_scale=cfg - 1,
        height=HEIGHT,
        width=WIDTH,
        num_inference_steps=STEPS,
        latents=start,
        output_type=output,
    ).images
    return out if output == "latent" else out[0]


def flux2(
    pipeline: object,
    start: Tensor,
    cfg: float,
    output: str,
    references: list[Image.Image] | None = None,
) -> Tensor | Image.Image:
    """FLUX.2 klein; its latents come as the VAE's, without the batch norm's scale."""
    out = pipeline(
        prompt=PROMPT,
        image=references,
        negative_prompt_embeds=pipeline.encode_prompt(NEGATIVE)[0],
        guidance_scale=cfg,
        height=HEIGHT,
        width=WIDTH,
        num_inference_steps=STEPS,
        latents=start,
        output_type=output,
    ).images
    if output != "latent":
        return out[0]
    vae, patches = pipeline.vae, pipeline._patchify_latents(out)
    std = torch.sqrt(vae.bn.running_var + vae.config.batch_norm_eps)[:, None, None]
    return (patches - vae.bn.running_mean[:, None, None]) / std


THEIRS = {"flux": flux, "sd3": sd3, "z-image": z_image, "flux2": flux2}


@pytest.mark.parametrize(("name", "cfg"), CASES)
def test_latents_equal_those_of_diffusers(name: str, cfg: float) -> None:
    model = loaded(name)
    filled = request(cfg).filled(model.family.defaults)
    [last] = deque(sample(model, [filled]), maxlen=1)
    expected = theirs(name, cfg, "latent")
    assert isinstance(expected, Tensor) and last.x.shape == expected.shape
    assert float((last.x - expected).abs().max() / expected.abs().max()) <= 1e-4


@pytest.mark.parametrize(
    ("name", "cfg", "layout"),
    # Guidance is that of all layouts.
    [(*case, layout) for case in CASES for layout in LAYOUTS if layout == "single" or case[1] > 1],
)
def test_pictures_of_the_command_equal_those_of_diffusers(
    command: Command, name: str, cfg: float, layout: str
) -> None:
    expected = theirs(name, cfg, "pil")
    assert isinstance(expected, Image.Image)
    check_drawn(command, expected, cfg, *arguments(name, layout))


def test_references_are_seen_as_by_diffusers(command: Command) -> None:
    sizes = [(80, 64), (100, 64)]  # the second is cut to whole patches
    for index, size in enumerate(sizes):
        picture(*size).save(f"{index}.png")
    files, given = tiny("flux2_klein"), [f"--reference={index}.png" for index in range(len(sizes))]
    start = noise(loaded("flux2_klein"), 4.0)
    with torch.no_grad():
        pictures = [picture(*size) for size in sizes]
        expected = flux2(files.pipeline, start, 4.0, "pil", pictures)
    assert isinstance(expected, Image.Image)
    check_drawn(command, expected, 4.0, "--model", str(files.folder), *given)
    outcome = command("info", "x.png", "--json")
    assert outcome.code == 0 and '"references"' in outcome.out


def encoder_mean(self: DiagonalGaussianDistribution, generator: object = None) -> Tensor:
    """The mean of what an encoder gives; diffusers takes a sample for these pipelines."""
    mean: Tensor = self.mean
    return mean


def sibling(kind: type[DiffusionPipeline], files: TinyTransformer) -> DiffusionPipeline:
    """Another pipeline of the same networks."""
    given = inspect.signature(kind).parameters
    parts = {name: part for name, part in files.pipeline.components.items() if name in given}
    pipeline = kind(**parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_fill_sees_the_picture_and_the_mask_as_in_diffusers(folder: Path) -> None:
    files, model = tiny("flux_fill"), loaded("flux_fill")
    shown = picture(WIDTH, HEIGHT)
    hidden = Image.fromarray((np.asarray(shown)[..., 0] > 90).astype(np.uint8) * 255)
    shown.save("a.png")
    hidden.save("m.png")
    wanted = replace(request(1.0), image=ImageRef("a.png"), mask=ImageRef("m.png"), mask_blur=0.0)
    filled = resolve_adapters(model, wanted).filled(model.family.defaults)
    shape = latent_shape(model, filled)
    extra = init_image(model, [filled], rules(filled), shape, CPU.torch_device).extra
    kind = sibling(FluxFillPipeline, files)
    pixels = kind.image_processor.preprocess(shown, height=HEIGHT, width=WIDTH)
    mask = kind.mask_processor.preprocess(hidden, height=HEIGHT, width=WIDTH)
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(DiagonalGaussianDistribution, "sample", encoder_mean)
        channels = kind.prepare_mask_latents(
            mask, pixels * (1 - mask), 1, 16, 1, HEIGHT, WIDTH, torch.float32, "cpu", None
        )
    seen = kind._unpack_latents(channels[1], HEIGHT, WIDTH, 8)
    places = kind._unpack_latents(channels[0], HEIGHT, WIDTH, 8)
    assert extra is not None
    torch.testing.assert_close(extra[:, 16:], places)
    # Half of the picture is flat: there this encoder's norms make much of the last bits.
    torch.testing.assert_close(extra[:, :16], seen, rtol=0, atol=0.01)


def test_depth_follows_its_picture_as_in_diffusers(command: Command) -> None:
    files, shown = tiny("flux_depth"), picture(WIDTH, HEIGHT)
    shown.save("depth.png")
    start = noise(loaded("flux_depth"), 1.0)
    kind = sibling(FluxControlPipeline, files)
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(DiagonalGaussianDistribution, "sample", encoder_mean)
        expected = kind(
            PROMPT,
            control_image=shown,
            guidance_scale=10.0,
            height=HEIGHT,
            width=WIDTH,
            num_inference_steps=STEPS,
            latents=kind._pack_latents(start, *start.shape),
            max_sequence_length=512,
        ).images[0]
    check_drawn(command, expected, 1.0, "--model", str(files.folder), "--image", "depth.png")
    outcome = command("a", "--model", str(files.folder), "--dry-run")
    assert outcome.code and "follows a picture of depths or edges" in outcome.err


def check_drawn(command: Command, expected: Image.Image, cfg: float, *options: str) -> None:
    """Draw a picture and compare it."""
    size = ("--width", str(WIDTH), "--height", str(HEIGHT), "--steps", str(STEPS))
    guidance = ("--cfg", str(cfg), "--negative", NEGATIVE, "--seed", str(SEED))
    outcome = command(PROMPT, *options, *size, *guidance, "-o", "x.png")
    assert outcome.code == 0, outcome.err
    with Image.open("x.png") as image:
        drawn = np.asarray(image.convert("RGB")).astype(int)
    assert np.abs(drawn - np.asarray(expected).astype(int)).max() <= 2
    assert drawn.std() > 5  # there is something to see
