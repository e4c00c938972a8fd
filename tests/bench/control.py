"""A guided step with a ControlNet in the benchmark, beside diffusers'."""

from collections.abc import Callable

import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from torch import Tensor, nn

from txt2img.diffusion.conditioning import Cond
from txt2img.diffusion.guidance import Predictor, guided
from txt2img.diffusion.levels import Diffusion, betas
from txt2img.diffusion.predictions import PREDICTIONS
from txt2img.models.configs import UNetConfig
from txt2img.models.control_configs import ControlNetConfig
from txt2img.models.controlnet import ControlNet
from txt2img.models.unet import UNet
from txt2img.pipeline.control import ControlNets, ControlUse
from txt2img.request.control import ControlMode, parse_control

SameWeights = Callable[[nn.Module, nn.Module, torch.dtype], None]


def step(
    channels: tuple[int, ...], pixels: int, cfg: float, same_weights: SameWeights
) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """One step under guidance, of a U-Net with its ControlNet: ours and diffusers'."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        block_out_channels=channels, cross_attention_dim=768, attention_head_dim=8
    )
    net = ControlNetModel.from_unet(unet)
    for zero in (*net.controlnet_down_blocks, net.controlnet_mid_block):
        nn.init.normal_(zero.weight, std=0.02)
    nn.init.normal_(net.controlnet_cond_embedding.conv_out.weight, std=0.02)
    config = UNetConfig(channels=channels)
    mine, control = UNet(config), ControlNet(ControlNetConfig(config))
    same_weights(mine, unet, torch.float32)
    same_weights(control, net, torch.float32)
    process = Diffusion(betas("scaled_linear", 1000, 0.00085, 0.012))
    level, x = process.level(500.0), torch.randn(1, 4, pixels // 8, pixels // 8)
    hint, positive, negative = torch.rand(1, 3, pixels, pixels), *torch.randn(2, 1, 77, 768)
    use = ControlUse(control, hint, parse_control("a:b"), ControlMode.BALANCED, None)
    nets = ControlNets([use], [level, process.level(0.0)])
    own = Predictor(mine, process, PREDICTIONS["eps"], control=nets)
    denoise = guided(own, lambda _: Cond(tokens=positive), lambda _: Cond(tokens=negative), cfg)

    def ours() -> Tensor:
        return denoise(x, level)

    def theirs() -> Tensor:
        both, tokens, time = torch.cat([x, x]), torch.cat([negative, positive]), torch.tensor(500)
        down, middle = net(both, time, tokens, torch.cat([hint] * 2), 1.0, return_dict=False)
        out = unet(
            both,
            time,
            tokens,
            down_block_additional_residuals=down,
            mid_block_additional_residual=middle,
        ).sample
        away, towards = out.chunk(2)
        return own.prediction.x0(x, away + cfg * (towards - away), level)

    return ours, theirs
