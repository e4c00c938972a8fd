"""The families of models as data: Stable Diffusion 1, 2, XL, its refiner, and distilled ones."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from txt2img.diffusion.levels import Diffusion, Flow, Process, betas, zero_terminal_snr
from txt2img.diffusion.schedules import SHIFTS
from txt2img.errors import BadRequest, UnknownLayout
from txt2img.models.configs import (
    Depth,
    NetworkConfig,
    TextConfig,
    TextEncoderConfig,
    UNetConfig,
    VAEConfig,
)
from txt2img.models.tokenizer import EOS
from txt2img.request import Defaults, Request, Sampler, Schedule
from txt2img.request.fields import Tile, Transparent
from txt2img.request.request import size_problem


@dataclass(frozen=True)
class ProcessConfig:
    """The noising process: diffusion with a table of betas, or a rectified flow."""

    kind: str = "diffusion"  # or "flow"
    betas: str = "scaled_linear"
    n: int = 1000
    start: float = 0.00085
    end: float = 0.012
    zero_snr: bool = False
    shift: float | str | None = (
        None  # of a flow: a number, or a key of SHIFTS; None: the schedule's
    )

    def build(self, tokens: int = 0, steps: int = 0) -> Process:
        """Build the process; its entries are shifted for a picture of so many tokens and steps."""
        if self.kind == "flow":
            shift = SHIFTS[self.shift](tokens, steps) if isinstance(self.shift, str) else self.shift
            return Flow(float(self.n), self.n, shift)
        table = betas(self.betas, self.n, self.start, self.end)
        return Diffusion(zero_terminal_snr(table) if self.zero_snr else table)


@dataclass(frozen=True)
class Family:
    """Everything of a model but its weights."""

    name: str
    network: NetworkConfig
    vae: VAEConfig
    texts: tuple[TextEncoderConfig, ...]
    process: ProcessConfig
    prediction: str  # a key of PREDICTIONS
    defaults: Defaults
    pad_tokens: tuple[str, ...] = (EOS,)  # the padding token of each text encoder
    zero_empty_negative: bool = False  # an empty negative prompt is zeros
    prompt_encoder: str = "clip"  # how the encoders work together: a key of TEXT_WIDTHS
    takes_references: bool = False  # whether it was trained to look at other pictures
    # Sizes, width and height, that references are brought to; without any, at most a megapixel.
    reference_sizes: tuple[tuple[int, int], ...] = ()
    vae_file: str = ""  # where its VAE comes from, for models that are published without

    @property
    def clip_texts(self) -> tuple[TextConfig, ...]:
        """The configs of those text encoders that are CLIP's."""
        return tuple(text for text in self.texts if isinstance(text, TextConfig))

    @property
    def unet(self) -> UNetConfig:
        """The U-Net's config. Raises UnknownLayout for a model with another network."""
        if not isinstance(self.network, UNetConfig):
            raise UnknownLayout(f"{self.name} has a {self.network.label}, not a U-Net")
        return self.network

    @property
    def is_xl(self) -> bool:
        """Whether it is Stable Diffusion XL, its refiner or made of it, by their size inputs."""
        return isinstance(self.network, UNetConfig) and bool(self.network.sizes)

    @property
    def extra_inputs(self) -> str:
        """The inputs that it needs besides the prompt, as a text; empty for most."""
        return EXTRA_INPUTS.get(self.network.extra_channels, "")

    @property
    def inpaints(self) -> bool:
        """Whether it sees a mask and a picture without what that hides."""
        return self.network.extra_channels == self.vae.latent_channels + 1 or self.sees_mask_pixels

    @property
    def sees_mask_pixels(self) -> bool:
        """Whether it sees every pixel of a mask as a channel, as FLUX.1 Fill does."""
        return self.network.extra_channels == self.vae.latent_channels + self.vae.factor**2

    @property
    def edits(self) -> bool:
        """Whether its U-Net sees a picture that the prompt says how to change."""
        return self.network.has_maps and self._sees_picture

    @property
    def follows_picture(self) -> bool:
        """Whether it follows a picture of depths or edges from noise on, as FLUX.1 Depth does."""
        return self._sees_picture and not self.network.has_maps

    @property
    def _sees_picture(self) -> bool:
        return self.network.extra_channels == self.vae.latent_channels

    @property
    def size_multiple(self) -> int:
        """Pixels that width and height are a multiple of."""
        return self.vae.factor * self.network.multiple

    def latent_size(self, request: Request, factor: int) -> tuple[int, int]:
        """Height and width of a filled request's latents, in cells of `factor` pixels.

        Raises BadRequest, which names the nearest sizes or the missing picture.
        """
        if self.edits and request.image is None:
            raise BadRequest(
                f"this model ({self.name}) changes a picture as the prompt says: give one with "
                "--image, or choose another with --model"
            )
        if self.follows_picture and request.image is None:
            raise BadRequest(
                f"this model ({self.name}) follows a picture of depths or edges: give one with "
                "--image, or choose another with --model"
            )
        self._check_options(request)
        height, width = request.height or 0, request.width or 0
        for name, pixels, tile in (("height", height, Tile.Y), ("width", width, Tile.X)):
            seamless, network = request.tile in (tile, Tile.XY), self.network
            cells = network.seamless_multiple if seamless else network.multiple
            if not cells:
                raise BadRequest(f"--tile: {self.name} cannot draw seamless pictures")
            if pixels % (factor * cells):
                raise BadRequest(size_problem(name, pixels, factor * cells))
        return height // factor, width // factor

    def _check_options(self, request: Request) -> None:
        """Raise BadRequest for options that are not for this architecture."""
        if request.guidance is not None and not self.network.embeds_guidance:
            raise BadRequest(f"--guidance: {self.name} takes no such scale as an input; use --cfg")
        if request.skip_layer_guidance and not self.network.skip_layers:
            raise BadRequest(
                f"--skip-layer-guidance: it is for Stable Diffusion 3.5, not {self.name}"
            )
        if request.references and not self.takes_references:
            raise BadRequest(
                f"--reference: {self.name} looks at no other pictures; FLUX.2 klein and FLUX.1 "
                "Kontext do"
            )
        if request.ip_adapters and not self.network.has_maps:
            raise BadRequest(f"--ip-adapter: it is for U-Nets, and {self.name} has none")
        for option, asked in (
            ("--deepcache", request.reuse > 1),
            ("--token-merging", request.token_merging),
            ("--pag", request.pag),
            ("--seg", request.seg),
            ("--freeu", request.freeu),
        ):
            if asked and not self.network.has_maps:
                raise BadRequest(f"{option}: {self.name} has a {self.network.label}, not a U-Net")

        _check_guidance(request, self.edits)

    def size_ids(self, height: int, width: int, positive: bool) -> tuple[float, ...]:
        """SDXL's size conditioning, as in diffusers (Podell et al. 2023, §2.2).

        Original size, crop corner and target size; the refiner has an aesthetic score instead of
        the last: 6 for the prompt, 2.5 for the negative prompt.
        """
        crop = (height, width, 0, 0)
        return {0: (), 5: (*crop, 6.0 if positive else 2.5), 6: (*crop, height, width)}[
            self.network.sizes
        ]


def _check_guidance(request: Request, edits: bool) -> None:
    """Raise BadRequest for methods of guidance that do not go together."""
    away = [name for name in ("pag", "seg") if getattr(request, name)]
    mixed = [name for name in ("apg", "dynamic_thresholding") if getattr(request, name)]
    options = ["--" + name.replace("_", "-") for name in (*away, *mixed)]
    if edits and options:
        raise BadRequest(
            f"{options[0]}: a model that edits pictures is guided by its own two scales"
        )
    if len(away) > 1 or len(mixed) > 1:
        raise BadRequest(f"{' and '.join(options[-2:])} do the same in two ways; leave out one")
    if mixed and request.cfg_rescale:
        raise BadRequest(f"{options[-1]} takes the place of --cfg-rescale; give --cfg-rescale 0")


# By the input channels besides the latent: the model's purpose, and what goes there.
EXTRA_PURPOSE = {5: "inpainting", 4: "pix2pix"}
EXTRA_INPUTS = {
    5: "a picture and a mask",
    80: "a picture and a mask",
    4: "a picture",
    16: "a picture of depths or edges",
}

_DRAWN = Defaults(512, 512, 30, 7.5, Sampler.DPMPP_2M, Schedule.KARRAS)
SD1_UNET = UNetConfig()
SD2_UNET = UNetConfig(heads=(5, 10, 20, 20), cross_dim=1024, linear_projection=True)
XL_UNET = UNetConfig(
    channels=(320, 640, 1280),
    attention=(False, True, True),
    depth=(1, 2, 10),
    heads=(5, 10, 20),
    cross_dim=2048,
    linear_projection=True,
    pooled=1280,
    sizes=6,
)
REFINER_UNET = UNetConfig(
    channels=(384, 768, 1536, 1536),
    attention=(False, True, True, False),
    depth=(1, 4, 4, 4),
    heads=(6, 12, 24, 24),
    cross_dim=1280,
    linear_projection=True,
    pooled=1280,
    sizes=5,
)
SD15 = Family(
    "Stable Diffusion 1",
    SD1_UNET,
    VAEConfig(),
    (TextConfig(),),
    ProcessConfig(),
    "eps",
    _DRAWN,
)
SD21_BASE = replace(
    SD15,
    name="Stable Diffusion 2",
    network=SD2_UNET,
    # OpenCLIP's ViT-H has 24 layers; the condition is the penultimate one's output.
    texts=(TextConfig(width=1024, layers=23, heads=16, mlp=4096, act="gelu"),),
    pad_tokens=("!",),
)
SD21 = replace(SD21_BASE, prediction="v", defaults=replace(_DRAWN, width=768, height=768))
XL_BIG_G = TextConfig(
    width=1280, layers=32, heads=20, mlp=5120, act="gelu", penultimate=True, projection=1280
)
SDXL = replace(
    SD15,
    name="Stable Diffusion XL",
    network=XL_UNET,
    vae=VAEConfig(scaling=0.13025),
    texts=(TextConfig(penultimate=True), XL_BIG_G),
    pad_tokens=(EOS, "!"),
    defaults=replace(_DRAWN, width=1024, height=1024, cfg=5.0),
    zero_empty_negative=True,
)
SDXL_REFINER = replace(
    SDXL,
    name="Stable Diffusion XL refiner",
    network=REFINER_UNET,
    texts=(XL_BIG_G,),
    pad_tokens=("!",),
    zero_empty_negative=False,
)
# The distilled U-Nets of Segmind (SSD-1B, Vega) and of Nota AI (BK-SDM; Segmind's small and tiny
# have its shapes).
_SSD = replace(XL_UNET, depth=(1, 2, 4), up_depth=(1, (2, 1, 1), (4, 4, 10)), middle="residual")
_SMALL = replace(SD1_UNET, layers=1, middle="none")
_TINY = replace(
    _SMALL, channels=(320, 640, 1280), attention=(True,) * 3, depth=(1,) * 3, heads=(8,) * 3
)
NETWORKS = {
    "Stable Diffusion 1": SD1_UNET,
    "Stable Diffusion 2": SD2_UNET,
    "Stable Diffusion XL": XL_UNET,
    "Stable Diffusion XL refiner": REFINER_UNET,
    "SSD-1B": _SSD,
    "Segmind Vega": replace(_SSD, depth=(1, 1, 2), up_depth=None),
    "distilled Stable Diffusion 1 (base)": replace(SD1_UNET, layers=1),
    "distilled Stable Diffusion 1 (small)": _SMALL,
    "distilled Stable Diffusion 1 (tiny)": _TINY,
}


def family_name(network: UNetConfig) -> str:
    """The name of the family that has a network, with its purpose. Raises UnknownLayout."""
    if network.extra_channels and network.extra_channels not in EXTRA_PURPOSE:
        inputs, outputs = network.in_channels, network.out_channels
        kind = {5: "a depth model", 7: "an upscaler"}.get(inputs, "a model of an unknown kind")
        raise UnknownLayout(
            f"this is {kind} ({inputs} channels in, {outputs} out), which is not supported yet"
        )
    usual = replace(network, in_channels=network.out_channels, scale_width=0)
    known = [name for name, other in NETWORKS.items() if other == usual]
    return " ".join(
        [*(known or ["latent diffusion"]), *EXTRA_PURPOSE.get(network.extra_channels, "").split()]
    )


def normalise_depths(depths: Sequence[Depth], attention: Sequence[bool]) -> tuple[Depth, ...]:
    """Transformer depths by level, with 1 for levels without attention, so that configs compare.

    The last level keeps its depth, which the middle block has. Raises UnknownLayout for a depth 0.
    """
    last = len(depths) - 1
    pairs = enumerate(zip(depths, attention, strict=True))
    result = tuple(depth if has or level == last else 1 for level, (depth, has) in pairs)
    if any(0 in (depth if isinstance(depth, tuple) else (depth,)) for depth in result):
        raise UnknownLayout(f"unet: transformer depths {list(result)}; each must be at least 1")
    return result


def _language_width(family: Family) -> int:
    """Width of the language model's tokens; what the network reads, where it is missing."""
    widths = [text.width for text in family.texts if not isinstance(text, TextConfig)]
    return widths[0] if widths else family.network.cross_dim


def _pooled_width(family: Family, count: int) -> int:
    """Width that CLIP's encoders pool together; what the network takes, where any is missing."""
    widths = [text.projection or text.width for text in family.clip_texts]
    return sum(widths) if len(widths) == count else family.network.pooled


# Widths of the tokens and of the pooled embedding that a family's encoders give together.
TEXT_WIDTHS: dict[str, Callable[[Family], tuple[int, int]]] = {
    "clip": lambda family: (
        sum(text.width for text in family.texts),
        family.clip_texts[-1].projection,
    ),
    "flux": lambda family: (_language_width(family), _pooled_width(family, 1)),
    "sd3": lambda family: (_language_width(family), _pooled_width(family, 2)),
    "z-image": lambda family: (_language_width(family), 0),
    "flux2": lambda family: (_language_width(family), 0),
}


def check_family(family: Family) -> Family:
    """The family, if its networks fit each other and can be built. Raises UnknownLayout."""
    network, vae, label = family.network, family.vae, family.network.label
    tokens, pooled = TEXT_WIDTHS[family.prompt_encoder](family)
    if network.cross_dim != tokens:
        raise UnknownLayout(
            f"the {label} reads text of width {network.cross_dim}, the encoder gives {tokens}"
        )
    if network.pooled != pooled or network.sizes not in (0, 5, 6):
        raise UnknownLayout(
            f"the {label} takes {network.sizes} sizes and pooled text of width {network.pooled}, "
            f"the encoder gives width {pooled}"
        )
    if vae.latent_channels != network.out_channels:
        raise UnknownLayout(
            f"the VAE has {vae.latent_channels} channels, the {label} {network.out_channels}"
        )
    for text in family.clip_texts:
        if text.width % text.heads:
            raise UnknownLayout(f"text_encoder: width {text.width} cannot have {text.heads} heads")
    if any(width % vae.groups for width in vae.channels):
        raise UnknownLayout(f"vae: channels {vae.channels} cannot be cut into {vae.groups} groups")
    network.check()
    if family.edits or family.inpaints:  # they see the picture, and need not begin from it
        return replace(family, defaults=replace(family.defaults, strength=1.0))
    return family


def check_transparent(has_alpha: bool, name: str, request: Request) -> None:
    """Raise BadRequest for transparency that a model of that name cannot give.

    `has_alpha` tells whether its decoder has an alpha head.
    """
    if has_alpha or request.transparent is Transparent.BORDER:
        return
    if request.transparent is Transparent.MODEL:
        raise BadRequest(
            f"{name} draws no transparent pictures; --transparent border makes the even ground "
            "around the thing transparent"
        )
    if request.background is not None:
        raise BadRequest(
            f"{name} cannot tell the ground from the thing, so --background needs "
            "--transparent border with it"
        )


def keeps_float8(family: Family) -> bool:
    """Whether weights in 8-bit floats stay so in memory: those of diffusion transformers do.

    A U-Net is small, and faster with wide ones; --low-memory keeps its narrow, too.
    """
    return family.network.component == "transformer"


def default_schedule(process: ProcessConfig) -> Schedule:
    """A process's default schedule: zero terminal SNR needs one that starts at the last step."""
    if process.kind == "flow":
        return Schedule.FLOW
    return Schedule.TRAILING if process.zero_snr else Schedule.KARRAS
