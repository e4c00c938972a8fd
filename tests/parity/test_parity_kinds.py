"""Variants of SD 1 and SDXL: one pass, or a picture, equals diffusers'."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.parity.test_parity_xl import REQUEST, theirs
from tests.support import tiny, tiny_xl
from txt2img.diffusion.conditioning import Cond
from txt2img.pipeline.generate import noise_levels, sample
from txt2img.pipeline.noise import fresh_noise
from txt2img.request import Request, Sampler, Schedule
from txt2img.request.compat import rules
from txt2img.system.device.device import Device
from txt2img.weights.load import load

CPU = Device(torch.device("cpu"), torch.float32)
BOTH = {
    "down_block_types": ("CrossAttnDownBlock2D",) * 2,
    "up_block_types": ("CrossAttnUpBlock2D",) * 2,
}
LAST = {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
KINDS: dict[str, Mapping[str, object]] = {
    "bk-sdm base": {**LAST, "layers_per_block": 1},
    "small-sd": {**LAST, "layers_per_block": 1, "mid_block_type": None},
    "bk-sdm tiny": {**BOTH, "layers_per_block": 1, "mid_block_type": None},
    "inpainting": {**LAST, "in_channels": 9},
    "pix2pix": {**LAST, "in_channels": 8},
}


def off(got: Tensor, expected: Tensor) -> float:
    """The largest miss, relative to the largest value."""
    assert got.shape == expected.shape
    return float((got - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_one_pass_equals_diffusers_in_both_layouts(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    made = {"layers_per_block": 2} | dict(KINDS[kind])
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(32, 64),
        cross_attention_dim=32,
        attention_head_dim=8,
        **made,
    ).eval()
    tiny._scatter(unet)
    whole, folder, file = tiny.sd1(), tmp_path / "kind", tmp_path / "kind.safetensors"
    parts = unet, whole.vae, whole.text
    tiny.write_folder(folder, *parts, whole.tokenizer, whole.scheduler)
    save_file(tiny.original(*parts, sd2=False), file)
    channels = int(str(unet.config["in_channels"]))
    x, tokens, time = torch.randn(2, channels, 8, 8), torch.randn(2, 77, 32), torch.tensor([501.0])
    expected = unet(x, time, tokens).sample
    for path in (folder, file):
        network = load(str(path), CPU).network
        assert off(network(x, time.expand(2), Cond(tokens)), expected) < 1e-5


def test_an_xl_of_velocity_and_zero_snr_draws_like_diffusers(tmp_path: Path) -> None:
    """Told by the two marks that such checkpoints carry; it begins at pure noise."""
    path, marks = tmp_path / "v.safetensors", {n: torch.tensor([]) for n in ("v_pred", "ztsnr")}
    save_file(load_file(tiny_xl.base().file) | marks, path)
    model = load(str(path), CPU)
    assert model.family.prediction == "v" and model.family.process.zero_snr
    values = {"sampler": Sampler.DDIM, "schedule": Schedule.TRAILING, "negative": "blurry"}
    # In four steps, for theirs goes to 333 from 666 in three, and on from 332.
    asked = Request.from_json(REQUEST.to_json() | values | {"steps": 4})
    request = asked.filled(model.family.defaults)
    *_, last = sample(model, [request])
    pipeline = theirs("base")
    pipeline.scheduler = DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
    )
    level = noise_levels(model, request, rules(request))[0]
    assert (level.alpha, level.sigma) == (0.0, 1.0)
    noise = fresh_noise([request], rules(request), (4, 24, 16), torch.device("cpu"))()
    expected = pipeline(
        request.prompt,
        negative_prompt=request.negative,
        height=request.height,
        width=request.width,
        num_inference_steps=request.steps,
        guidance_scale=request.cfg,
        latents=noise,
        output_type="latent",
    ).images
    assert off(last.x, expected) < 1e-4
