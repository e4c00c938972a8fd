"""Latent consistency models with the guidance scale as input, as diffusers draws them."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import LCMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTokenizer

from tests.support import tiny
from txt2img.diffusion.conditioning import Cond
from txt2img.models.layers import scale_features
from txt2img.pipeline.generate import noise_levels, prepare
from txt2img.request import Request, Sampler, Schedule
from txt2img.request.compat import rules
from txt2img.system.device.device import Device
from txt2img.weights.load import load
from txt2img.weights.model import Model

CPU = Device(torch.device("cpu"), torch.float32)
WIDTH = 18  # features of the scale
REQUEST = Request("a red apple", width=64, height=64, steps=4, cfg=7.5, seed=3)


@pytest.fixture(scope="module")
def unet() -> UNet2DConditionModel:
    """The tiny SD 1 network with the scale as input."""
    torch.manual_seed(4)
    config = {k: v for k, v in tiny.sd1().unet.config.items() if not k.startswith("_")}
    made = UNet2DConditionModel(**config | {"time_cond_proj_dim": WIDTH})
    tiny._scatter(made)
    return made.eval().requires_grad_(False)


def as_folder(unet: UNet2DConditionModel, root: Path) -> Path:
    """A folder as LCM_Dreamshaper_v7 is published."""
    shutil.copytree(tiny.sd1().folder, root / "mine")
    unet.save_pretrained(root / "mine" / "unet")
    scheduler = tiny.SCHEDULER | {"_class_name": "LCMScheduler"}
    (root / "mine" / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    index = {"_class_name": "LatentConsistencyModelPipeline"}
    (root / "mine" / "model_index.json").write_text(json.dumps(index))
    return root / "mine"


def as_file(unet: UNet2DConditionModel, root: Path) -> Path:
    theirs = tiny.original(unet, tiny.sd1().vae, tiny.sd1().text, sd2=False)
    renamed = {n.replace("time_embedding.", "time_embed."): v for n, v in theirs.items()}
    save_file(renamed, root / "LCM_mine.safetensors")
    return root / "LCM_mine.safetensors"


@pytest.fixture(scope="module", params=[as_folder, as_file])
def lcm(
    request: pytest.FixtureRequest,
    unet: UNet2DConditionModel,
    tmp_path_factory: pytest.TempPathFactory,
) -> Model:
    """The model from either layout."""
    return load(str(request.param(unet, tmp_path_factory.mktemp("lcm"))), CPU)


def off(got: Tensor, expected: Tensor) -> float:
    assert got.shape == expected.shape
    return float((got - expected).abs().max() / expected.abs().max())


def pipeline(unet: UNet2DConditionModel) -> StableDiffusionPipeline:
    """diffusers' own, with its scheduler for such models."""
    pipe = StableDiffusionPipeline(
        vae=tiny.sd1().vae,
        text_encoder=tiny.sd1().text,
        tokenizer=CLIPTokenizer.from_pretrained(tiny.sd1().folder / "tokenizer"),
        unet=unet,
        scheduler=LCMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_features_of_the_scale_equal_diffusers(unet: UNet2DConditionModel) -> None:
    scales = torch.tensor([-1.0, 0.0, 0.25, 7.0])
    for width in (16, 256, 257):
        expected = pipeline(unet).get_guidance_scale_embedding(scales, width)
        assert off(scale_features(scales, width), expected) < 1e-6


def test_one_pass_equals_diffusers(lcm: Model, unet: UNet2DConditionModel) -> None:
    x, tokens, time = torch.randn(2, 4, 8, 8), torch.randn(2, 77, 32), torch.tensor([981.0, 3.0])
    scale = torch.tensor([7.5, 0.5])
    embedding = pipeline(unet).get_guidance_scale_embedding(scale, WIDTH)
    with torch.no_grad():
        expected = unet(x, time, tokens, timestep_cond=embedding).sample
        got = lcm.network(x, time, Cond(tokens, guidance=scale))
        unguided = lcm.network(x, time, Cond(tokens, guidance=0 * scale))
    assert off(got, expected) < 1e-5
    assert off(unguided, expected) > 1e-4


def test_final_latents_equal_diffusers(lcm: Model, unet: UNet2DConditionModel) -> None:
    request = REQUEST.filled(lcm.family.defaults)
    levels, process = noise_levels(lcm, request, rules(request)), lcm.family.process.build()
    noise = torch.Generator().manual_seed(3)
    factor = lcm.vae.config.factor
    start = levels[0].sigma * torch.randn(1, 4, 64 // factor, 64 // factor, generator=noise)
    expected = pipeline(unet)(
        prompt_embeds=lcm.text.encode([request.prompt]).tokens,
        latents=start,
        generator=noise,
        timesteps=[round(process.time(level)) for level in levels[:-1]],
        guidance_scale=7.5,
        output_type="latent",
    ).images
    *_, last = prepare(lcm, [request]).states()
    assert off(last.x, expected) < 1e-4


def test_it_draws_few_steps_guided_by_its_scale_input(lcm: Model) -> None:
    drawn = lcm.family.defaults
    expected = (4, 8.0, Sampler.LCM, Schedule.TRAILING)
    assert (drawn.steps, drawn.cfg, drawn.sampler, drawn.schedule) == expected
