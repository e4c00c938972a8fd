"""Each family of models as data."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from txt2img.diffusion.levels import Diffusion, Flow, Process, betas, zero_terminal_snr
from txt2img.errors import BadRequest, UnknownLayout
from txt2img.models.configs import Depth, TextConfig, UNetConfig, VAEConfig
from txt2img.models.tokenizer import EOS
from txt2img.request import Defaults, Request, Sampler, Schedule
from txt2img.request.fields import Tile
from txt2img.request.request import size_problem


@dataclass(frozen=True)
class ProcessConfig:
    """How pictures turn into noise: a table of betas, or the straight line of a flow."""

    kind: str = "diffusion"  # or "flow"
    betas: str = "scaled_linear"
    n: int = 1000
    start: float = 0.00085
    end: float = 0.012
    zero_snr: bool = False

    def build(self) -> Process:
        """The process itself."""
        if self.kind == "flow":
            return Flow(float(self.n), self.n)
        table = betas(self.betas, self.n, self.start, self.end)
        return Diffusion(zero_terminal_snr(table) if self.zero_snr else table)


@dataclass(frozen=True)
class Family:
    """All of a model but its weights."""

    name: str
    network: UNetConfig
    vae: VAEConfig
    text: TextConfig
    process: ProcessConfig
    prediction: str  # a key of PREDICTIONS
    defaults: Defaults
    pads: tuple[str, ...] = (EOS,)  # the token that fills short prompts, for each encoder
    text_2: TextConfig | None = None  # SDXL's second encoder
    silent: bool = False  # whether an empty negative prompt is zeros, not its words

    @property
    def texts(self) -> tuple[TextConfig, ...]:
        """The text encoders."""
        return (self.text,) if self.text_2 is None else (self.text, self.text_2)

    @property
    def needs(self) -> str:
        """What must be drawn from beside words; nothing for most."""
        return NEEDS.get(self.network.extra_channels, "")

    def cells(self, request: Request, factor: int) -> tuple[int, int]:
        """Height and width of a filled request's latents, in cells of `factor` pixels.

        BadRequest names the nearest sizes, or what the model needs beside words.
        """
        if self.needs:
            raise BadRequest(
                f"this model ({self.name}) needs {self.needs} beside the prompt, which is not "
                "supported yet; choose another with --model"
            )
        height, width = request.height or 0, request.width or 0
        for name, pixels, tile in (("height", height, Tile.Y), ("width", width, Tile.X)):
            # Seamless along an axis, all maps down to the smallest must halve evenly.
            seamless = request.tile in (tile, Tile.XY)
            multiple = factor << (len(self.network.channels) - 1) if seamless else factor
            if pixels % multiple:
                raise BadRequest(size_problem(name, pixels, multiple))
        return height // factor, width // factor

    def sizes(self, height: int, width: int, wanted: bool) -> tuple[float, ...]:
        """What an XL network is told in numbers, as diffusers tells it (Podell et al. 2023, §2.2).

        The size and the corner of the picture that was cut, then the size of the cut; to the
        refiner, in its place, how beautiful it is: 6 what is `wanted`, 2.5 what is not.
        """
        cut = (height, width, 0, 0)
        return {0: (), 5: (*cut, 6.0 if wanted else 2.5), 6: (*cut, height, width)}[
            self.network.sizes
        ]


# By the channels that a network sees beside the latent: what for, and what goes there.
MADE_FOR = {5: "inpainting", 4: "pix2pix"}
NEEDS = {5: "a picture and a mask", 4: "a picture"}

_DRAWN = Defaults(512, 512, 30, 7.5, Sampler.DPMPP_2M, Schedule.KARRAS)
SD15 = Family(
    "Stable Diffusion 1",
    UNetConfig(),
    VAEConfig(),
    TextConfig(),
    ProcessConfig(),
    "eps",
    _DRAWN,
)
SD21_BASE = replace(
    SD15,
    name="Stable Diffusion 2",
    network=UNetConfig(heads=(5, 10, 20, 20), cross_dim=1024, linear_projection=True),
    # OpenCLIP's ViT-H has 24 layers; the condition is what comes out of the last but one.
    text=TextConfig(width=1024, layers=23, heads=16, mlp=4096, act="gelu"),
    pads=("!",),
)
SD21 = replace(SD21_BASE, prediction="v", defaults=replace(_DRAWN, width=768, height=768))
XL_BIG_G = TextConfig(
    width=1280, layers=32, heads=20, mlp=5120, act="gelu", penultimate=True, projection=1280
)
SDXL = replace(
    SD15,
    name="Stable Diffusion XL",
    network=UNetConfig(
        channels=(320, 640, 1280),
        attention=(False, True, True),
        depth=(1, 2, 10),
        heads=(5, 10, 20),
        cross_dim=2048,
        linear_projection=True,
        pooled=1280,
        sizes=6,
    ),
    vae=VAEConfig(scaling=0.13025),
    text=TextConfig(penultimate=True),
    text_2=XL_BIG_G,
    pads=(EOS, "!"),
    defaults=replace(_DRAWN, width=1024, height=1024, cfg=5.0),
    silent=True,
)
SDXL_REFINER = replace(
    SDXL,
    name="Stable Diffusion XL refiner",
    network=UNetConfig(
        channels=(384, 768, 1536, 1536),
        attention=(False, True, True, False),
        depth=(1, 4, 4, 4),
        heads=(6, 12, 24, 24),
        cross_dim=1280,
        linear_projection=True,
        pooled=1280,
        sizes=5,
    ),
    text=XL_BIG_G,
    text_2=None,
    pads=("!",),
    silent=False,
)
# The distilled U-Nets of Segmind (SSD-1B, Vega) and of Nota AI (BK-SDM; Segmind's small and tiny
# have its shapes).
_SSD = replace(
    SDXL.network, depth=(1, 2, 4), up_depth=(1, (2, 1, 1), (4, 4, 10)), middle="residual"
)
_SMALL = replace(SD15.network, layers=1, middle="none")
_TINY = replace(
    _SMALL, channels=(320, 640, 1280), attention=(True,) * 3, depth=(1,) * 3, heads=(8,) * 3
)
NETWORKS = {
    "Stable Diffusion 1": SD15.network,
    "Stable Diffusion 2": SD21.network,
    "Stable Diffusion XL": SDXL.network,
    "Stable Diffusion XL refiner": SDXL_REFINER.network,
    "SSD-1B": _SSD,
    "Segmind Vega": replace(_SSD, depth=(1, 1, 2), up_depth=None),
    "distilled Stable Diffusion 1 (base)": replace(SD15.network, layers=1),
    "distilled Stable Diffusion 1 (small)": _SMALL,
    "distilled Stable Diffusion 1 (tiny)": _TINY,
}


def named(network: UNetConfig) -> str:
    """What a network is known as, and what it is made for. Raises UnknownLayout."""
    if network.extra_channels and network.extra_channels not in NEEDS:
        raise UnknownLayout(special(network.in_channels, network.out_channels))
    plain = replace(network, in_channels=network.out_channels, scale_width=0)
    known = [name for name, other in NETWORKS.items() if other == plain]
    return " ".join(
        [*(known or ["latent diffusion"]), *MADE_FOR.get(network.extra_channels, "").split()]
    )


def told_apart(depths: Sequence[Depth], attention: Sequence[bool]) -> tuple[Depth, ...]:
    """Transformer depths by level, as a config says them whatever a file says where there are none.

    The last level's counts even so: the middle has it. Raises UnknownLayout for a missing one.
    """
    last = len(depths) - 1
    pairs = enumerate(zip(depths, attention, strict=True))
    made = tuple(depth if has or level == last else 1 for level, (depth, has) in pairs)
    if any(0 in (depth if isinstance(depth, tuple) else (depth,)) for depth in made):
        raise UnknownLayout(f"unet: transformer depths {list(made)}; each must be at least 1")
    return made


def checked(family: Family) -> Family:
    """The same, if its parts fit each other and can be built. Raises UnknownLayout."""
    network, vae, texts = family.network, family.vae, family.texts
    if network.cross_dim != (width := sum(text.width for text in texts)):
        raise UnknownLayout(
            f"the U-Net reads text of width {network.cross_dim}, the encoder gives {width}"
        )
    if network.pooled != texts[-1].projection or network.sizes not in (0, 5, 6):
        raise UnknownLayout(
            f"the U-Net is told {network.sizes} sizes and a text as a whole of {network.pooled} "
            f"numbers, the encoder gives {texts[-1].projection}"
        )
    if vae.latent_channels != network.out_channels:
        raise UnknownLayout(
            f"the VAE has {vae.latent_channels} channels, the U-Net {network.out_channels}"
        )
    for text in texts:
        if text.width % text.heads:
            raise UnknownLayout(f"text_encoder: width {text.width} cannot have {text.heads} heads")
    if any(width % vae.groups for width in vae.channels):
        raise UnknownLayout(f"vae: channels {vae.channels} cannot be cut into {vae.groups} groups")
    for width, count in zip(network.channels, network.heads, strict=True):
        if width % count or width % network.groups:
            what = f"{count} heads, {network.groups} groups"
            raise UnknownLayout(f"unet: a level of {width} channels cannot have {what}")
    return family


def schedule_for(process: ProcessConfig) -> Schedule:
    """The spread of steps that suits a process: one at zero SNR must begin at its very end."""
    if process.kind == "flow":
        return Schedule.FLOW
    return Schedule.TRAILING if process.zero_snr else Schedule.KARRAS


def special(inputs: int, outputs: int) -> str:
    """What a U-Net that sees more than the latent is made for, as an error's text."""
    kinds = {5: "a depth model", 7: "an upscaler"}
    what = kinds.get(inputs, "a model of an unknown kind")
    return f"this is {what} ({inputs} channels in, {outputs} out), which is not supported yet"
