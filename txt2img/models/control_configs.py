"""Configs of networks that follow a picture beside a model's own."""

from dataclasses import dataclass

from txt2img.models.configs import UNetConfig


@dataclass(frozen=True)
class ControlNetConfig:
    """Config of a ControlNet: the half U-Net that it is, its hint's channels, its kind."""

    unet: UNetConfig
    hint: tuple[int, ...] = (16, 32, 96, 256)  # of the convolutions that embed the hint
    hint_channels: int = 3
    is_bgr: bool = False  # the hint's channels, as OpenCV has them
    global_pool: bool = False  # residuals are averaged over the map: shuffle's
    types: int = 0  # kinds of hints that a Union model tells apart
    type_width: int = 256  # features of each kind
    type_layers: int = 0  # blocks that a hint's mean passes
