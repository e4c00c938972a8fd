"""Every family in both layouts, against the pipelines that diffusers itself loads from them.

`from_pretrained` reads the folder, `from_single_file` the file: no name or shape is ours.
"""

import json
import os
import shutil
from functools import cache
from pathlib import Path

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
)
from torch import Tensor

from tests.support import tiny, tiny_xl
from txt2img.diffusion.conditioning import Cond
from txt2img.pipeline.encode_prompts import encode
from txt2img.pipeline.generate import noise_levels, sample
from txt2img.pipeline.noise import fresh_noise
from txt2img.request import Request, Sampler, Schedule
from txt2img.request.compat import rules
from txt2img.system.device.device import Device
from txt2img.weights.load import load
from txt2img.weights.model import Model

CPU = Device(torch.device("cpu"), torch.float32)
FAMILIES = {
    "sd1": (tiny.sd1, StableDiffusionPipeline),
    "sd2": (tiny.sd2, StableDiffusionPipeline),
    "xl": (tiny_xl.base, StableDiffusionXLPipeline),
    "refiner": (tiny_xl.refiner, StableDiffusionXLImg2ImgPipeline),
    "ssd": (tiny_xl.ssd, StableDiffusionXLPipeline),
}
KINDS = {
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "CLIPTokenizer"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "safety_checker": [None, None],
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
}
LAYOUTS = [(name, layout) for name in FAMILIES for layout in ("folder", "file")]
REQUEST = Request("a red apple", "blurry", "m", 64, 64, 3, 7.5, seed=5, schedule=Schedule.LEADING)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("whole")


@cache
def complete(name: str, root: Path) -> Path:
    """The folder with a list of all that is in it, as diffusers wants it."""
    build, kind = FAMILIES[name]
    copy = root / name
    shutil.copytree(build().folder, copy, copy_function=os.link)
    index = copy / "model_index.json"
    said = json.loads(index.read_text())
    index.unlink()
    there = {n: k if (copy / n).is_dir() else [None, None] for n, k in KINDS.items()}
    if kind is not StableDiffusionPipeline:
        del there["safety_checker"]
    elif not (copy / "tokenizer_2").is_dir():
        del there["tokenizer_2"], there["text_encoder_2"]
    more = {"requires_aesthetics_score": True} if name == "refiner" else {}
    index.write_text(
        json.dumps(
            {
                "_class_name": kind.__name__,
                "_diffusers_version": "0.36.0",
                "force_zeros_for_empty_prompt": said.get("force_zeros_for_empty_prompt", False),
                **more,
                **there,
            }
        )
    )
    return copy


@cache
def theirs(name: str, layout: str, root: Path) -> DiffusionPipeline:
    """Their pipeline of a layout, with their own loader."""
    build, kind = FAMILIES[name]
    folder = complete(name, root)
    if layout == "folder":
        made = kind.from_pretrained(folder, local_files_only=True)
    else:
        made = kind.from_single_file(str(build().file), config=str(folder), local_files_only=True)
    made.set_progress_bar_config(disable=True)
    made.scheduler = DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        steps_offset=1,
        timestep_spacing="leading",
        clip_sample=False,
        set_alpha_to_one=True,
        prediction_type="v_prediction" if name == "sd2" else "epsilon",
    )
    return made


@cache
def ours(name: str, layout: str) -> Model:
    return load(str(getattr(FAMILIES[name][0](), layout)), CPU)


def off(got: Tensor, wanted: Tensor) -> float:
    """The largest miss, relative to the largest value."""
    assert got.shape == wanted.shape
    return float((got - wanted).abs().max() / wanted.abs().max().clamp(min=1e-30))


@pytest.mark.parametrize(("name", "layout"), LAYOUTS)
@torch.no_grad()
def test_one_pass_of_the_unet_equals_theirs(name: str, layout: str, root: Path) -> None:
    network = ours(name, layout).network
    config = network.config
    x, tokens = torch.randn(1, 4, 16, 16), torch.randn(1, 77, config.cross_dim)
    time, cond, more = torch.tensor([501.0]), Cond(tokens), {}
    if config.pooled:
        told = torch.randn(1, config.pooled), torch.randn(1, config.sizes) * 50
        cond = Cond(tokens, *told)
        more = {"added_cond_kwargs": {"text_embeds": told[0], "time_ids": told[1]}}
    wanted = theirs(name, layout, root).unet(x, time, tokens, **more).sample
    assert off(network(x, time, cond), wanted) < 1e-5


@pytest.mark.parametrize(("name", "layout"), LAYOUTS)
@torch.no_grad()
def test_conditions_and_pictures_equal_theirs(name: str, layout: str, root: Path) -> None:
    model, pipeline = ours(name, layout), theirs(name, layout, root)
    [(_, positive)], [(_, negative)] = encode(model, REQUEST, rules(REQUEST))
    words = {"negative_prompt": REQUEST.negative, "device": "cpu", "num_images_per_prompt": 1}
    made = pipeline.encode_prompt(REQUEST.prompt, do_classifier_free_guidance=True, **words)
    for got, wanted in zip((positive.tokens, negative.tokens), made, strict=False):
        assert off(got, wanted) < 1e-5
    latents = torch.randn(1, 4, 8, 8)
    decoded = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
    assert off(model.vae.decode(latents), decoded) < 1e-5


@pytest.mark.parametrize(("name", "layout"), [pair for pair in LAYOUTS if pair[0] != "refiner"])
def test_final_latents_equal_theirs(name: str, layout: str, root: Path) -> None:
    model, pipeline = ours(name, layout), theirs(name, layout, root)
    base = Request.from_json(REQUEST.to_json() | {"sampler": Sampler.DDIM})
    request = base.filled(model.family.defaults)
    *_, last = sample(model, [request])
    side = 64 // model.vae.config.factor
    noise = fresh_noise([request], rules(request), (4, side, side), torch.device("cpu"))()
    wanted = pipeline(
        request.prompt,
        negative_prompt=request.negative,
        height=64,
        width=64,
        num_inference_steps=request.steps,
        guidance_scale=request.cfg,
        latents=noise_levels(model, request, rules(request))[0].sigma * noise,
        output_type="latent",
    ).images
    assert off(last.x, wanted) < 1e-4
