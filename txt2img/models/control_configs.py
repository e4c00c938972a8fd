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


@dataclass(frozen=True)
class IPAdapterConfig:
    """Config of an IP-Adapter; as it stands, the first one's for SD 1."""

    kind: str = "base"  # of projection: base, plus or full
    features: int = 1024  # of the image encoder: its embedding's width, or for others its states'
    cross_dim: int = 768
    widths: tuple[int, ...] = ()  # of the U-Net's cross-attentions: down, up, middle
    tokens: int = 4  # of a picture; "full" has as many as the encoder has patches
    # Of the resampler, where the kind is "plus":
    width: int = 0
    depth: int = 0
    heads: int = 0
    head_width: int = 64
    mlp: int = 0

    @property
    def reads_states(self) -> bool:
        """Whether it reads the encoder's last states but one, and not its embedding."""
        return self.kind != "base"


@dataclass(frozen=True)
class CLIPVisionConfig:
    """Config of CLIP's image encoder; as it stands, ViT-H/14's."""

    width: int = 1280
    layers: int = 32
    heads: int = 16
    mlp: int = 5120
    patch: int = 14  # pixels of a side
    size: int = 224  # pixels of the picture's side
    projection: int = 1024
    act: str = "gelu"


@dataclass(frozen=True)
class T2IAdapterConfig:
    """Config of a T2I-Adapter; as it stands, a full one's for SD 1."""

    channels: tuple[int, ...] = (320, 640, 1280, 1280)  # of each level
    layers: int = 2  # residual blocks a level
    in_channels: int = 3  # of the picture
    unshuffle: int = 8  # pixels of a cell's side
    downs: tuple[int, ...] = (1, 2, 3)  # levels that begin by halving the map
    light: bool = False
