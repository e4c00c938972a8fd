"""FreeU: a U-Net's own features raised, its skip connections' low frequencies lowered.

Si et al. 2023, "FreeU: Free Lunch in Diffusion U-Net". By the channels of a map, as in its authors'
code and ComfyUI; diffusers goes by the number of the block.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from txt2img.models.unet import UNet, UpBlock
from txt2img.request.sampling import parse_freeu


@dataclass(frozen=True)
class FreeU:
    """Factors of two stages: of half of the backbone's channels, and of skips near frequency 0."""

    b: tuple[float, float]
    s: tuple[float, float]
    version: int
    widths: tuple[int, ...]  # the channels of the stages: the U-Net's widest levels

    def __call__(self, x: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
        """Both inputs of a layer on the way up, (B, C, H, W)."""
        stage = self.widths.index(x.shape[1]) if x.shape[1] in self.widths else None
        return self.at(stage, x, skip)

    def at(self, stage: int | None, x: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
        """Both inputs of a layer that belongs to a stage."""
        if stage is None:
            return x, skip
        half, factor = x.shape[1] // 2, self.b[stage]
        scale: Tensor | float = factor
        if self.version == 2:
            mean = x.mean(1, keepdim=True)
            low, high = mean.amin((2, 3), keepdim=True), mean.amax((2, 3), keepdim=True)
            scale = (factor - 1) * (mean - low) / (high - low) + 1
        x = torch.cat([x[:, :half] * scale, x[:, half:]], dim=1)
        return x, low_scaled(skip, self.s[stage])


@dataclass(frozen=True)
class FreeUOfBlock:
    """FreeU of one block, as diffusers has it: version 1, by the block's number."""

    freeu: FreeU
    number: int

    def __call__(self, x: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
        """Both inputs of a layer on the way up, (B, C, H, W)."""
        return self.freeu.at(self.number if self.number < 2 else None, x, skip)


def low_scaled(x: Tensor, factor: float) -> Tensor:
    """A map with its lowest frequencies, -1 and 0 in both axes, times a factor."""
    frequencies = torch.fft.fft2(x.float())
    height, width = x.shape[-2:]
    # What is one step below the middle and the middle itself, once zero is shifted there.
    rows = [(row - height // 2) % height for row in range(height // 2 - 1, height // 2 + 1)]
    columns = [(column - width // 2) % width for column in range(width // 2 - 1, width // 2 + 1)]
    mask = torch.ones(height, width, device=x.device)
    for row in rows:
        for column in columns:
            mask[row, column] = factor
    out: Tensor = torch.fft.ifft2(frequencies * mask).real.to(x.dtype)
    return out


@contextmanager
def freeu(network: nn.Module, text: str, program: str) -> Iterator[None]:
    """Draw with the FreeU that a request's text asks for inside the context, as a program does."""
    assert isinstance(network, UNet)
    b1, b2, s1, s2, version = parse_freeu(text)
    widths, by_block = sorted(set(network.config.channels))[:-3:-1], program == "diffusers"
    setting = FreeU((b1, b2), (s1, s2), 1 if by_block else int(version), tuple(widths))
    network.freeu = setting, by_block
    blocks = [block for block in network.up_blocks if isinstance(block, UpBlock)]
    for number, block in enumerate(blocks):
        block.freeu = FreeUOfBlock(setting, number) if by_block else setting
    try:
        yield
    finally:
        network.freeu = None
        for block in blocks:
            block.freeu = None
