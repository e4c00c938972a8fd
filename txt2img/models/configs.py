"""Configs of networks as data, read from a file's header before any tensor."""

from dataclasses import dataclass

Depth = int | tuple[int, ...]  # one for all residual blocks of a level, or one each


@dataclass(frozen=True)
class UNetConfig:
    """Config of a U-Net; the tuples have one entry a level, largest map first."""

    in_channels: int = 4
    out_channels: int = 4
    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers: int = 2  # residual blocks a level on the way down; one more on the way up
    attention: tuple[bool, ...] = (True, True, True, False)
    depth: tuple[Depth, ...] = (1, 1, 1, 1)  # transformer blocks after each residual block
    heads: tuple[int, ...] = (8, 8, 8, 8)
    cross_dim: int = 768
    linear_projection: bool = False
    groups: int = 32
    up_depth: tuple[Depth, ...] | None = None  # on the way up, where it differs
    middle: str = "full"  # "residual" without attention, "none" without anything
    pooled: int = 0  # width of SDXL's pooled text embedding, added to the time's
    sizes: int = 0  # number of SDXL's size ids, each embedded in `size_width` features
    size_width: int = 256
    scale_width: int = 0  # features of the guidance scale that an LCM takes as input

    @property
    def time_width(self) -> int:
        """Width of the time embedding."""
        return 4 * self.channels[0]

    @property
    def extra_channels(self) -> int:
        """Number of input channels besides the noisy latent's."""
        return self.in_channels - self.out_channels

    def depths(self, level: int, count: int, up: bool = False) -> tuple[int, ...]:
        """Depth of each of a level's `count` transformers, on the way down or up."""
        depth = (self.up_depth or self.depth if up else self.depth)[level]
        return (depth,) * count if isinstance(depth, int) else depth


@dataclass(frozen=True)
class VAEConfig:
    """Config of a VAE; `channels` has one entry a level, largest map first."""

    in_channels: int = 3
    latent_channels: int = 4
    channels: tuple[int, ...] = (128, 256, 512, 512)
    layers: int = 2  # residual blocks a level in the encoder; one more in the decoder
    groups: int = 32
    mid_attention: bool = True
    quant_conv: bool = True
    scaling: float = 0.18215  # latents are (mean − shift) · scaling, of variance near 1
    shift: float = 0.0
    patch: int = 1  # cells of a map that make one latent cell, high and wide
    norm_eps: float = 0.0  # of a batch norm's variances, which scale the latents instead, if any

    @property
    def factor(self) -> int:
        """Height and width of a latent cell in pixels."""
        return self.patch << (len(self.channels) - 1)

    @property
    def map_channels(self) -> int:
        """Channels of the encoder's and decoder's maps, before they become patches."""
        return self.latent_channels // self.patch**2


FLUX_VAE = VAEConfig(latent_channels=16, quant_conv=False, scaling=0.3611, shift=0.1159)
SD3_VAE = VAEConfig(latent_channels=16, quant_conv=False, scaling=1.5305, shift=0.0609)
FLUX2_VAE = VAEConfig(latent_channels=128, scaling=1.0, patch=2, norm_eps=1e-4)


@dataclass(frozen=True)
class TextConfig:
    """Config of a CLIP text encoder."""

    vocab: int = 49408
    width: int = 768
    layers: int = 12
    heads: int = 12
    mlp: int = 3072
    length: int = 77  # tokens in one chunk, the first and last included
    act: str = "quick_gelu"
    penultimate: bool = False  # hidden states of the last layer but one, without the final norm
    projection: int = 0  # width of the pooled embedding, where the model has one


@dataclass(frozen=True)
class T5TextConfig:
    """Config of a T5 encoder; the defaults are T5-XXL's."""

    vocab: int = 32128
    width: int = 4096
    layers: int = 24
    heads: int = 64
    head_width: int = 64
    mlp: int = 10240
    buckets: int = 32  # of relative positions
    max_distance: int = 128  # between positions with a bucket of their own
    length: int = 512  # tokens that a prompt is padded and truncated to


@dataclass(frozen=True)
class Qwen3TextConfig:
    """Config of a Qwen3 language model as a text encoder; the defaults are Qwen3-4B's."""

    vocab: int = 151936
    hidden: int = 2560
    layers: int = 36  # in the file: those above the last tap are not needed
    heads: int = 32
    kv_heads: int = 8
    head_width: int = 128
    mlp: int = 9728
    theta: float = 1e6  # base of the rotary frequencies
    taps: tuple[int, ...] = (-2,)  # of the states between layers, 0 before the first: see states
    length: int = 512  # tokens that a prompt is truncated to, its chat template included

    @property
    def states(self) -> tuple[int, ...]:
        """The layers whose output it yields, counted from 1."""
        return tuple(tap if tap >= 0 else self.layers + 1 + tap for tap in self.taps)

    @property
    def width(self) -> int:
        """Width of its text tokens: the tapped states side by side."""
        return self.hidden * len(self.taps)


QWEN3_8B = Qwen3TextConfig(hidden=4096, mlp=12288)


@dataclass(frozen=True)
class TinyConfig:
    """Config of a TAESD: residual blocks a level, in the order of computation."""

    latent_channels: int = 4
    width: int = 64
    encoder: tuple[int, ...] = (1, 3, 3, 3)  # empty: only a decoder
    decoder: tuple[int, ...] = (3, 3, 3, 1)

    @property
    def factor(self) -> int:
        """Height and width of a latent cell in pixels."""
        return 1 << (len(self.decoder) - 1)
