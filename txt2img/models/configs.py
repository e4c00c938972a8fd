"""Configs of networks as data, read from a file's header before any tensor."""

from dataclasses import dataclass
from typing import ClassVar, Protocol

from txt2img.errors import UnknownLayout

Depth = int | tuple[int, ...]  # one for all residual blocks of a level, or one each


class NetworkConfig(Protocol):
    """Config of a network that denoises: what the program knows of every architecture."""

    @property
    def component(self) -> str:
        """Its name among a model's components, which is diffusers': unet or transformer."""

    @property
    def label(self) -> str:
        """Its name in messages."""

    @property
    def in_channels(self) -> int:
        """Channels of the latents that it takes, with pictures beside the noisy one."""

    @property
    def out_channels(self) -> int:
        """Channels of the latents that it denoises."""

    @property
    def extra_channels(self) -> int:
        """Number of input channels besides the noisy latent's."""

    @property
    def cross_dim(self) -> int:
        """Width of the text tokens that it attends to."""

    @property
    def pooled(self) -> int:
        """Width of the pooled text embedding that it takes; 0 for none."""

    @property
    def sizes(self) -> int:
        """Number of SDXL's size ids that it takes."""

    @property
    def multiple(self) -> int:
        """Latent cells that height and width must be a multiple of."""

    @property
    def seamless_multiple(self) -> int:
        """The same for seamless pictures; 0 if it cannot draw any."""

    @property
    def has_maps(self) -> bool:
        """Whether it has maps of several sizes, which DeepCache and token merging build on."""

    @property
    def blocks(self) -> int:
        """Number of transformer blocks."""

    @property
    def embeds_cfg(self) -> bool:
        """Whether it takes the CFG scale as an input and guides itself, as an LCM does."""

    @property
    def embeds_guidance(self) -> bool:
        """Whether it takes a distilled guidance scale as an input, beside true CFG."""

    @property
    def skip_layers(self) -> tuple[int, ...]:
        """Blocks that skip-layer guidance leaves out; empty where nothing is known of it."""

    @property
    def fits_half(self) -> bool:
        """Whether its activations, and those of what encodes its prompts, fit in fp16."""

    @property
    def memory_width(self) -> int:
        """Numbers of an activation for each latent cell."""

    @property
    def block_lists(self) -> tuple[str, ...]:
        """Names of its lists of modules whose items come and go where memory is short."""

    def check(self) -> None:
        """Raise UnknownLayout for widths that cannot be built."""


class TransformerConfig:
    """What diffusion transformers have in common, as defaults."""

    component: ClassVar = "transformer"
    label: ClassVar = "transformer"
    sizes: ClassVar = 0
    seamless_multiple: ClassVar = 0
    has_maps: ClassVar = False
    embeds_cfg: ClassVar = False
    skip_layers: ClassVar[tuple[int, ...]] = ()
    fits_half: ClassVar = False
    block_lists: ClassVar[tuple[str, ...]] = ("transformer_blocks", "single_transformer_blocks")

    heads: int
    head_dim: int
    in_channels: int
    out_channels: int

    def check(self) -> None:
        """Widths are checked where a config is read."""

    @property
    def width(self) -> int:
        """Features of a token."""
        return self.heads * self.head_dim

    @property
    def memory_width(self) -> int:
        """Numbers of an activation for each token."""
        return self.width

    @property
    def extra_channels(self) -> int:
        """Number of input channels besides the noisy latent's."""
        return self.in_channels - self.out_channels


class TextEncoderConfig(Protocol):
    """Config of a text encoder: what the program knows of every one."""

    @property
    def vocab(self) -> int:
        """Number of tokens that it has vectors for."""

    @property
    def width(self) -> int:
        """Width of the states that it gives."""

    @property
    def layers(self) -> int:
        """Number of layers."""

    @property
    def length(self) -> int:
        """Number of tokens that it reads at once."""

    @property
    def block_lists(self) -> tuple[str, ...]:
        """Names of its lists of modules whose items come and go where memory is short."""


@dataclass(frozen=True)
class UNetConfig:
    """Config of a U-Net; the tuples have one entry a level, largest map first."""

    component: ClassVar = "unet"
    label: ClassVar = "U-Net"
    has_maps: ClassVar = True
    multiple: ClassVar = 1
    embeds_guidance: ClassVar = False
    skip_layers: ClassVar = ()
    fits_half: ClassVar = True
    block_lists: ClassVar = ("resnets", "transformer_blocks", "downsamplers", "upsamplers")

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

    @property
    def seamless_multiple(self) -> int:
        """Latent cells of seamless pictures: all maps down to the smallest must halve evenly."""
        return 1 << (len(self.channels) - 1)

    @property
    def embeds_cfg(self) -> bool:
        """Whether it is an LCM that takes the CFG scale as an input."""
        return self.scale_width > 0

    @property
    def memory_width(self) -> int:
        """Width of the largest maps."""
        return self.channels[0]

    @property
    def blocks(self) -> int:
        """Number of transformer blocks on the way down and up."""
        levels = [level for level, has in enumerate(self.attention) if has]
        down = (self.depths(level, self.layers) for level in levels)
        up = (self.depths(level, self.layers + 1, True) for level in levels)
        return sum(map(sum, [*down, *up]))

    def check(self) -> None:
        """Raise UnknownLayout for levels whose widths heads or groups do not divide."""
        for width, count in zip(self.channels, self.heads, strict=True):
            if width % count or width % self.groups:
                counts = f"{count} heads, {self.groups} groups"
                raise UnknownLayout(f"unet: a level of {width} channels cannot have {counts}")

    def depths(self, level: int, count: int, up: bool = False) -> tuple[int, ...]:
        """Depth of each of a level's `count` transformers, on the way down or up."""
        depth = (self.up_depth or self.depth if up else self.depth)[level]
        return (depth,) * count if isinstance(depth, int) else depth


@dataclass(frozen=True)
class VAEConfig:
    """Config of a VAE; `channels` has one entry a level, largest map first."""

    block_lists: ClassVar = ("resnets", "attentions", "downsamplers", "upsamplers")

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
    decoder_channels: tuple[int, ...] | None = None  # where they differ from the encoder's
    alpha: int = 0  # width of the alpha head, where the decoder has one

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

    block_lists: ClassVar = ("layers",)

    vocab: int = 49408
    width: int = 768
    layers: int = 12
    heads: int = 12
    mlp: int = 3072
    length: int = 77  # tokens in one chunk, the first and last included
    act: str = "quick_gelu"
    penultimate: bool = False  # hidden states of the last layer but one, without the final norm
    projection: int = 0  # width of the pooled embedding, where the model projects one
    pooled: bool = False  # pools without a projection too: the state at the text's end


@dataclass(frozen=True)
class T5TextConfig:
    """Config of a T5 encoder; the defaults are T5-XXL's."""

    block_lists: ClassVar = ("block",)

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

    block_lists: ClassVar = ("layers",)

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

    block_lists: ClassVar = ()

    latent_channels: int = 4
    width: int = 64
    encoder: tuple[int, ...] = (1, 3, 3, 3)  # empty: only a decoder
    decoder: tuple[int, ...] = (3, 3, 3, 1)
    patch: ClassVar = 1

    @property
    def factor(self) -> int:
        """Height and width of a latent cell in pixels."""
        return 1 << (len(self.decoder) - 1)


@dataclass(frozen=True)
class FluxConfig(TransformerConfig):
    """Config of FLUX.1's transformer; Fill, Depth and Canny take more channels than they give."""

    multiple: ClassVar = 2  # latent cells of a patch's side

    in_channels: int = 16
    out_channels: int = 16
    double_blocks: int = 19  # with weights of their own for text and picture
    single_blocks: int = 38
    heads: int = 24
    head_dim: int = 128
    cross_dim: int = 4096
    pooled: int = 768
    embeds_guidance: bool = True
    axes: tuple[int, ...] = (16, 56, 56)  # features of a head for picture, row and column
    theta: float = 10000.0

    @property
    def blocks(self) -> int:
        """Number of transformer blocks."""
        return self.double_blocks + self.single_blocks


@dataclass(frozen=True)
class SD3Config(TransformerConfig):
    """Config of Stable Diffusion 3's transformer; as it stands, 3.5 medium's."""

    multiple: ClassVar = 2
    embeds_guidance: ClassVar = False
    skip_layers: ClassVar = (7, 8, 9)  # those that Stability AI recommends

    in_channels: int = 16
    out_channels: int = 16
    layers: int = 24
    heads: int = 24
    head_dim: int = 64
    cross_dim: int = 4096
    pooled: int = 2048
    positions: int = 384  # a side of the table of places, in patches
    dual_layers: tuple[int, ...] = tuple(range(13))  # with a second attention of the picture
    qk_norm: bool = True

    @property
    def blocks(self) -> int:
        """Number of transformer blocks."""
        return self.layers


@dataclass(frozen=True)
class ZImageConfig(TransformerConfig):
    """Config of Z-Image's transformer."""

    multiple: ClassVar = 2
    pooled: ClassVar = 0
    embeds_guidance: ClassVar = False
    block_lists: ClassVar = ("noise_refiner", "context_refiner", "layers")

    in_channels: int = 16
    out_channels: int = 16
    layers: int = 30
    refiner_layers: int = 2  # of picture and of text, each
    heads: int = 30
    head_dim: int = 128
    cross_dim: int = 2560
    axes: tuple[int, ...] = (32, 48, 48)  # features of a head for text, row and column
    theta: float = 256.0

    @property
    def time_width(self) -> int:
        """Width of the time embedding."""
        return min(self.width, 256)

    @property
    def blocks(self) -> int:
        """Number of transformer blocks."""
        return self.layers + 2 * self.refiner_layers


@dataclass(frozen=True)
class Flux2Config(TransformerConfig):
    """Config of FLUX.2's transformer; as it stands, klein 4B's."""

    multiple: ClassVar = 1  # the VAE makes the patches
    pooled: ClassVar = 0

    in_channels: int = 128
    out_channels: int = 128
    double_blocks: int = 5  # with weights of their own for text and picture
    single_blocks: int = 20
    heads: int = 24
    head_dim: int = 128
    cross_dim: int = 7680
    embeds_guidance: bool = False
    axes: tuple[int, ...] = (32, 32, 32, 32)  # features of a head for picture, row, column, text
    theta: float = 2000.0

    @property
    def blocks(self) -> int:
        """Number of transformer blocks."""
        return self.double_blocks + self.single_blocks
