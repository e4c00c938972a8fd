"""Previews of latents without a decoder: a latent cell's colour is nearly linear in it.

For VAEs without published factors, these are fitted to what the decoder makes of noise.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from txt2img.models.configs import VAEConfig
from txt2img.models.taesd import AnyVAE
from txt2img.models.vae import VAE, unpatchify

Row = tuple[float, float, float]
FIT_CELLS = 8  # height and width of the noise that factors are fitted to
FIT_SAMPLES = 3
FIT_STD = 1.5  # of the noise: pictures' latents exceed 1 where they have contrast
RIDGE = 0.1  # shrinks the factors: fitted to noise they are a little too large
SEED = 0


@dataclass(frozen=True)
class Colours:
    """Linear map from a cell's latent channels to red, green and blue in −1…1."""

    factors: Tensor  # (C, 3)
    bias: Tensor  # (3,)
    patch: int = 1  # a latent's cells are patches of so many cells, high and wide

    def of(self, x0: Tensor) -> Tensor:
        """Pixels (B, 3, p·h, p·w), one a cell, of latents (B, p²·C, h, w), float32."""
        factors, bias = self.factors.to(x0.device), self.bias.to(x0.device)
        cells = unpatchify(x0.float(), self.patch)
        return torch.einsum("bchw,cr->brhw", cells, factors) + bias[:, None, None]


# Published factors, from ComfyUI, by their VAE's scaling: SD 1 and 2, SDXL.
PUBLISHED: dict[float, tuple[tuple[Row, ...], Row]] = {
    0.18215: (
        (
            (0.3512, 0.2297, 0.3227),
            (0.3250, 0.4974, 0.2350),
            (-0.2829, 0.1762, 0.2721),
            (-0.2120, -0.2616, -0.7177),
        ),
        (0.0, 0.0, 0.0),
    ),
    0.13025: (
        (
            (0.3651, 0.4232, 0.4341),
            (-0.2533, -0.0042, 0.1068),
            (0.1076, 0.1111, -0.0362),
            (-0.3165, -0.2492, -0.2188),
        ),
        (0.1084, -0.0175, -0.0011),
    ),
}

# The default model's factors, by tests/bench/fit_colours.py, and the first biases of its
# `quant_conv`, which identify its latents.
DEFAULT_BIAS = (-0.1819, -0.2485, -0.0418)
DEFAULT: tuple[tuple[Row, ...], Row] = (
    (
        (0.2252, 0.3116, 0.3376),
        (0.5443, 0.6971, 0.7569),
        (0.0809, -0.1604, 0.2243),
        (-0.0021, 0.0244, 0.1679),
        (-0.0820, -0.3943, -0.2687),
        (0.0807, 0.2508, 0.2304),
        (0.1060, 0.0394, 0.2386),
        (-0.2573, 0.0655, 0.5912),
    ),
    (0.5447, 0.4389, 0.3063),
)


def colours(vae: AnyVAE, own: VAEConfig) -> Colours:
    """Colours of a model's latents: published ones for its `own` VAE, else fitted to `vae`."""
    if own == VAEConfig(scaling=own.scaling) and own.scaling in PUBLISHED:
        factors, bias = PUBLISHED[own.scaling]
        return Colours(torch.tensor(factors), torch.tensor(bias))
    if is_default(vae):
        factors, bias = DEFAULT
        return Colours(torch.tensor(factors), torch.tensor(bias))
    return fitted(vae)


def is_default(vae: AnyVAE) -> bool:
    """Whether a VAE makes the default model's latents, in any dtype."""
    last = vae.quant_conv if isinstance(vae, VAE) else None
    if not isinstance(last, nn.Conv2d) or last.bias is None:
        return False
    if vae.config.latent_channels != len(DEFAULT[0]):
        return False
    bias = last.bias[: len(DEFAULT_BIAS)].float().cpu()
    return torch.allclose(bias, torch.tensor(DEFAULT_BIAS), rtol=0.01, atol=0.001)


@torch.inference_mode()
def fitted(vae: AnyVAE) -> Colours:
    """Fit colours by least squares to a decoder's output for noise."""
    channels, patch = vae.config.latent_channels, vae.config.patch
    generator = torch.Generator().manual_seed(SEED)
    noise = FIT_STD * torch.randn(FIT_SAMPLES, channels, FIT_CELLS, FIT_CELLS, generator=generator)
    device = next(vae.parameters()).device
    pixels = torch.cat([vae.decode(one[None].to(device)).cpu() for one in noise])
    colours = functional.avg_pool2d(pixels.clamp(-1, 1), vae.config.factor // patch)  # (N, 3, h, w)
    x = unpatchify(noise, patch).movedim(1, -1).flatten(0, 2)  # (cells, C)
    y = colours.movedim(1, -1).flatten(0, 2)  # (cells, 3)
    x = torch.cat([x, torch.ones(len(x), 1)], 1).double()
    square = x.T @ x + RIDGE * len(x) * torch.eye(x.shape[1], dtype=torch.float64)
    solved = torch.linalg.solve(square, x.T @ y.double()).float()
    return Colours(solved[:-1], solved[-1], patch)
