"""The families of diffusion transformers as data: FLUX.1, Stable Diffusion 3, Z-Image, FLUX.2.

Their rows are read for such models only: what is common to all families is in families.py.
"""

from dataclasses import dataclass, replace

from txt2img.errors import UnknownLayout
from txt2img.models.configs import (
    FLUX2_VAE,
    FLUX_VAE,
    SD3_VAE,
    Flux2Config,
    FluxConfig,
    Qwen3TextConfig,
    SD3Config,
    T5TextConfig,
    TextConfig,
    TextEncoderConfig,
    ZImageConfig,
)
from txt2img.request import Defaults, Sampler, Schedule
from txt2img.weights.families import XL_BIG_G, Family, ProcessConfig


@dataclass(frozen=True)
class TextRole:
    """A text encoder that a family has: its kind and what the family takes of it."""

    component: str  # diffusers' name
    kind: str  # clip, t5 or qwen3
    config: TextEncoderConfig  # the published one; a file's own sizes take its place
    file: str  # where it comes from, for messages
    optional: bool = False


CLIP_L = "clip_l.safetensors, from comfyanonymous/flux_text_encoders"
CLIP_G = "clip_g.safetensors, from Comfy-Org/stable-diffusion-3.5-fp8 (text_encoders/)"
T5_XXL = "t5xxl_fp16.safetensors, from comfyanonymous/flux_text_encoders"
_PROJECTED = TextConfig(penultimate=True, projection=768)
_FLOW = Defaults(1024, 1024, 28, 1.0, Sampler.EULER, Schedule.FLOW)

# Of Kontext's training, each also turned by a quarter (diffusers, PREFERRED_KONTEXT_RESOLUTIONS).
_KONTEXT = (
    *((672, 1568), (688, 1504), (720, 1456), (752, 1392), (800, 1328), (832, 1248)),
    *((880, 1184), (944, 1104)),
)
KONTEXT_SIZES = (*_KONTEXT, (1024, 1024), *(size[::-1] for size in _KONTEXT))

FLUX_ROLES = (
    TextRole("text_encoder", "clip", TextConfig(pooled=True), CLIP_L),
    TextRole("text_encoder_2", "t5", T5TextConfig(length=512), T5_XXL),
)
SD3_ROLES = (
    TextRole("text_encoder", "clip", _PROJECTED, CLIP_L),
    TextRole("text_encoder_2", "clip", XL_BIG_G, CLIP_G),
    TextRole("text_encoder_3", "t5", T5TextConfig(length=256), T5_XXL, optional=True),
)
Z_IMAGE_ROLES = (
    TextRole(
        "text_encoder",
        "qwen3",
        Qwen3TextConfig(taps=(-2,), length=512),
        "qwen_3_4b.safetensors, from Comfy-Org/z_image_turbo (split_files/text_encoders/)",
    ),
)
FLUX2_ROLES = (
    TextRole(
        "text_encoder",
        "qwen3",
        Qwen3TextConfig(taps=(9, 18, 27), length=512),
        "qwen_3_4b.safetensors (or qwen_3_8b for 9B), from Comfy-Org/flux2-klein (text_encoders/)",
    ),
)

FLUX = Family(
    "FLUX.1 dev",
    FluxConfig(),
    FLUX_VAE,
    tuple(role.config for role in FLUX_ROLES),
    ProcessConfig("flow", shift="linear"),
    "flow",
    replace(_FLOW, guidance=3.5),
    prompt_encoder="flux",
    vae_file="ae.safetensors, from black-forest-labs/FLUX.1-schnell",
)
FLUX_SCHNELL = replace(
    FLUX,
    name="FLUX.1 schnell",
    network=FluxConfig(embeds_guidance=False),
    texts=(FLUX.texts[0], T5TextConfig(length=256)),
    process=ProcessConfig("flow", shift=1.0),
    defaults=replace(_FLOW, steps=4),
)
SD3 = Family(
    "Stable Diffusion 3.5 medium",
    SD3Config(),
    SD3_VAE,
    tuple(role.config for role in SD3_ROLES),
    ProcessConfig("flow", shift=3.0),
    "flow",
    replace(_FLOW, cfg=4.5, schedule=Schedule.LINEAR),
    prompt_encoder="sd3",
    vae_file="diffusion_pytorch_model.safetensors, from stabilityai/stable-diffusion-3.5-medium "
    "(vae/)",
)
Z_IMAGE = Family(
    "Z-Image",
    ZImageConfig(),
    FLUX_VAE,
    tuple(role.config for role in Z_IMAGE_ROLES),
    ProcessConfig("flow", shift=3.0),
    "flow",
    replace(_FLOW, steps=50, cfg=5.0),
    prompt_encoder="z-image",
    vae_file="ae.safetensors, from Comfy-Org/z_image_turbo (split_files/vae/)",
)
Z_IMAGE_TURBO = replace(
    Z_IMAGE,
    name="Z-Image Turbo",
    defaults=replace(_FLOW, steps=8),
)
FLUX2_KLEIN = Family(
    "FLUX.2 klein",
    Flux2Config(),
    FLUX2_VAE,
    tuple(role.config for role in FLUX2_ROLES),
    ProcessConfig("flow", shift="empirical"),
    "flow",
    replace(_FLOW, steps=4),
    prompt_encoder="flux2",
    takes_references=True,
    vae_file="flux2-vae.safetensors, from Comfy-Org/flux2-klein (split_files/vae/)",
)
FLUX2_KLEIN_BASE = replace(
    FLUX2_KLEIN, name="FLUX.2 klein base", defaults=replace(_FLOW, steps=50, cfg=4.0)
)


def flux_variant(network: FluxConfig, hints: str) -> Family:
    """Dev or schnell, which the network itself tells; Fill, Depth, Canny by their channels."""
    family = FLUX if network.embeds_guidance else FLUX_SCHNELL
    purpose = {80: "FLUX.1 Fill", 16: "FLUX.1 Depth or Canny"}.get(network.extra_channels)
    if purpose:
        guidance = 30.0 if network.extra_channels == 80 else 10.0
        defaults = replace(family.defaults, guidance=guidance, steps=50, strength=1.0)
        family = replace(family, name=purpose, defaults=defaults)
    elif "kontext" in hints:
        family = replace(
            family,
            name="FLUX.1 Kontext",
            defaults=replace(family.defaults, guidance=2.5),
            takes_references=True,
            reference_sizes=KONTEXT_SIZES,
        )
    return replace(family, network=network)


def sd3_variant(network: SD3Config, hints: str) -> Family:
    """Medium or large of 3.5, or 3, by the network; Turbo by the name."""
    defaults = SD3.defaults
    size = "3 medium" if not network.qk_norm else "3.5 medium"
    if network.layers >= 38:
        size, defaults = "3.5 large", replace(defaults, cfg=3.5)
    elif not network.qk_norm:
        defaults = replace(defaults, cfg=7.0)
    if "turbo" in hints:
        size, defaults = f"{size} turbo", replace(defaults, cfg=1.0, steps=4)
    return replace(SD3, name=f"Stable Diffusion {size}", network=network, defaults=defaults)


def z_image_variant(network: ZImageConfig, hints: str) -> Family:
    """Turbo by the name; base otherwise."""
    return replace(Z_IMAGE_TURBO if "turbo" in hints else Z_IMAGE, network=network)


def flux2_variant(network: Flux2Config, hints: str) -> Family:
    """Base by the name; the distilled one otherwise. Raises UnknownLayout for FLUX.2 dev."""
    if network.embeds_guidance:
        raise UnknownLayout("this is FLUX.2 dev, which is not supported; FLUX.2 klein is")
    family = FLUX2_KLEIN_BASE if "base" in hints else FLUX2_KLEIN
    size = "9B" if network.heads >= 32 else "4B"
    return replace(family, name=family.name.replace("klein", f"klein {size}"), network=network)
