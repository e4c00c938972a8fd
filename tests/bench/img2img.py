"""A picture to another in the benchmark: the encoder, some guided steps, and the decoder."""

from collections.abc import Callable

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionImg2ImgPipeline,
    UNet2DConditionModel,
)
from torch import Tensor, nn

from txt2img.diffusion.conditioning import Cond
from txt2img.diffusion.guidance import Predictor, guided
from txt2img.diffusion.levels import Diffusion, betas
from txt2img.diffusion.predictions import PREDICTIONS
from txt2img.diffusion.samplers import euler
from txt2img.diffusion.schedules import leading
from txt2img.models.configs import UNetConfig, VAEConfig
from txt2img.models.unet import UNet
from txt2img.models.vae import VAE

STEPS = 4  # drawn, of twice as many
DDIM = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "steps_offset": 1,
    "clip_sample": False,
}


def programs(
    channels: tuple[int, ...],
    vae_channels: tuple[int, ...],
    pixels: int,
    cfg: float,
    same_weights: Callable[[nn.Module, nn.Module, torch.dtype], None],
) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """Ours and diffusers' pipeline, on the same random weights, picture and conditions."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=pixels // 8,
        block_out_channels=channels,
        cross_attention_dim=768,
        attention_head_dim=8,
    )
    coder = AutoencoderKL(
        block_out_channels=vae_channels,
        latent_channels=4,
        layers_per_block=2,
        down_block_types=("DownEncoderBlock2D",) * len(vae_channels),
        up_block_types=("UpDecoderBlock2D",) * len(vae_channels),
    )
    mine, my_vae = UNet(UNetConfig(channels=channels)), VAE(VAEConfig(channels=vae_channels))
    same_weights(mine, unet, torch.float32)
    same_weights(my_vae, coder, torch.float32)
    process = Diffusion(betas("scaled_linear", 1000, 0.00085, 0.012))
    levels = leading(process, 2 * STEPS)[STEPS:]
    picture = torch.rand(1, 3, pixels, pixels)
    positive, negative = torch.randn(1, 77, 768), torch.randn(1, 77, 768)
    denoise = guided(
        Predictor(mine, process, PREDICTIONS["eps"]),
        lambda _: Cond(tokens=positive),
        lambda _: Cond(tokens=negative),
        cfg,
    )
    pipe = StableDiffusionImg2ImgPipeline(
        coder, None, None, unet, DDIMScheduler(**DDIM), None, None, requires_safety_checker=False
    )
    pipe.set_progress_bar_config(disable=True)

    def ours() -> Tensor:
        draws = torch.Generator().manual_seed(0)
        shape = (1, 4, pixels // 8, pixels // 8)
        latent = my_vae.encode(2 * picture - 1, torch.randn(shape, generator=draws))
        noise = torch.randn(shape, generator=draws)
        x = levels[0].alpha * latent + levels[0].sigma * noise
        *_, last = euler(denoise, x, levels, lambda a, b: noise)
        return my_vae.decode(last.x)

    def theirs() -> Tensor:
        drawn: Tensor = pipe(
            image=picture,
            prompt_embeds=positive,
            negative_prompt_embeds=negative,
            strength=0.5,
            num_inference_steps=2 * STEPS,
            guidance_scale=cfg,
            generator=torch.Generator().manual_seed(0),
            output_type="pt",
        ).images
        return 2 * drawn - 1

    return ours, theirs
