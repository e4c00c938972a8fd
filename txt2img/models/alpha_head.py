"""Alpha head of a VAE's decoder: which pixels belong to the thing, which to the ground."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from txt2img.models.configs import VAEConfig

DILATIONS = (1, 2, 4, 8)  # of the coarse map: together they see 31 cells, a whole small picture


class AlphaHead(nn.Module):
    """Opacity's logits (B, 1, H, W) from three maps of a decoder, the coarse one first.

    What is inside a white thing on white ground only its surroundings tell: that is decided on the
    coarse map, the edge on the finer ones.
    """

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        wide, width, channels = 2 * config.alpha, config.alpha, config.channels
        self.coarse_in = nn.Conv2d(channels[-1], wide, 1)
        self.context = nn.ModuleList(
            nn.Conv2d(wide, wide, 3, padding=dilation, dilation=dilation) for dilation in DILATIONS
        )
        self.half_in = nn.Conv2d(channels[min(2, len(channels) - 1)], width, 1)
        self.join_half = nn.Conv2d(wide + width, width, 3, padding=1)
        self.full_in = nn.Conv2d(channels[0], width, 1)
        self.join_full = nn.Conv2d(2 * width, width, 3, padding=1)
        self.out = nn.Conv2d(width, 1, 3, padding=1)

    def forward(self, coarse: Tensor, half: Tensor, full: Tensor) -> Tensor:
        x = self.coarse_in(coarse)
        for layer in self.context:
            x = x + layer(functional.silu(x))
        x = self.join_half(functional.silu(_side_by_side(x, self.half_in(half))))
        x = self.join_full(functional.silu(_side_by_side(x, self.full_in(full))))
        out: Tensor = self.out(functional.silu(x))
        return out


def _side_by_side(small: Tensor, large: Tensor) -> Tensor:
    """Channels of both maps, the small one enlarged to the other's size."""
    small = functional.interpolate(small, size=large.shape[-2:], mode="bilinear")
    return torch.cat([small, large], dim=1)
