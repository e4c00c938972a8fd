"""A step of a diffusion transformer beside diffusers': Z-Image's depth, a fifth of its width."""

from collections.abc import Callable

import torch
from torch import Tensor

HEADS = 6  # of 30
PIXELS = 256
TOKENS = 40  # of a caption


def step(
    heads: int = HEADS, layers: int = 30, pixels: int = PIXELS, dtype: torch.dtype = torch.float32
) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """One evaluation by ours and by diffusers' network, which share their random weights."""
    from diffusers import ZImageTransformer2DModel

    from txt2img.diffusion.conditioning import Cond
    from txt2img.diffusion.guidance import Predictor
    from txt2img.diffusion.levels import Flow
    from txt2img.diffusion.predictions import PREDICTIONS
    from txt2img.models.configs import ZImageConfig
    from txt2img.models.z_image import ZImageTransformer

    torch.manual_seed(0)
    config = ZImageConfig(heads=heads, layers=layers)
    other = ZImageTransformer2DModel(
        dim=config.width, n_heads=heads, n_kv_heads=heads, n_layers=layers
    )
    other.eval().to(dtype)
    with torch.device("meta"):
        mine = ZImageTransformer(config)
    mine.load_state_dict(other.state_dict(), strict=True, assign=True)
    mine.eval()
    process = Flow()
    level, x = process.level(500.0), torch.randn(1, 16, pixels // 8, pixels // 8)
    tokens = torch.randn(1, TOKENS, config.cross_dim)
    predict, cond = Predictor(mine, process, PREDICTIONS["flow"]), Cond(tokens)

    def ours() -> Tensor:
        return predict(x, level, cond)

    def theirs() -> Tensor:
        latents, time = x.to(dtype)[:, :, None], torch.tensor([(1000 - 500.0) / 1000])
        out = other(list(latents), time, list(tokens.to(dtype))).sample[0]
        return x + level.sigma * out[None, :, 0].float()

    return ours, theirs
