"""Each family of models as data."""

from dataclasses import dataclass, replace

from txt2img.diffusion.levels import Diffusion, Flow, Process, betas, zero_terminal_snr
from txt2img.errors import UnknownLayout
from txt2img.models.text import EOS, TextConfig
from txt2img.models.unet import UNetConfig
from txt2img.models.vae import VAEConfig
from txt2img.request import Defaults, Sampler, Schedule


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
    pad: str = EOS  # the token that fills short prompts


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
    pad="!",
)
SD21 = replace(SD21_BASE, prediction="v", defaults=replace(_DRAWN, width=768, height=768))


def checked(family: Family) -> Family:
    """The same, if its parts fit each other and can be built. Raises UnknownLayout."""
    network, vae, text = family.network, family.vae, family.text
    if network.cross_dim != text.width:
        raise UnknownLayout(
            f"the U-Net reads text of width {network.cross_dim}, the encoder gives {text.width}"
        )
    if vae.latent_channels != network.out_channels:
        raise UnknownLayout(
            f"the VAE has {vae.latent_channels} channels, the U-Net {network.out_channels}"
        )
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
    kinds = {9: "an inpainting model", 8: "an instruction model (pix2pix)", 5: "a depth model"}
    what = kinds.get(inputs, "a model of an unknown kind")
    return f"this is {what} ({inputs} channels in, {outputs} out), which is not supported yet"
